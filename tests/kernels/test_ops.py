"""Every op against float64 NumPy and PyTorch, over shapes, instruction sets and inputs."""

from __future__ import annotations

import itertools
import mmap

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import shapes
from minifuse import ops
from minifuse.bench import reference
from minifuse.bench.parity import op_bound
from minifuse.models.layer import by_pair

KINDS = ("normal", "large_mean", "outliers", "denormal")


def inputs(rng, kind, *shape):
    x = rng.standard_normal(shape)
    if kind == "large_mean":
        x = x + 100
    elif kind == "outliers":
        x = np.where(rng.random(shape) < 0.01, x * 100, x)
    elif kind == "denormal":
        x = x * 1e-39
    return x.astype(np.float32)


def weights_for(rng, n, k):
    return (rng.standard_normal((n, k)) / np.sqrt(k)).astype(np.float32)


def magnitude_error(y, x, w, exact, b=0.0):
    """Error relative to the sum of magnitudes: what rounding can be held to under cancellation."""
    if not y.size:
        return 0.0
    scale = np.abs(x.astype(np.float64)) @ np.abs(w.astype(np.float64)).T + np.abs(b)
    return np.linalg.norm(y - exact) / max(np.linalg.norm(scale), 1e-300)


@pytest.mark.parametrize(("n", "k"), shapes.LINEAR)
@pytest.mark.parametrize("activation", [None, "gelu", "gelu_new", "relu"])
def test_linear(isa, rng, n, k, activation):
    w, b = weights_for(rng, n, k), rng.standard_normal(n).astype(np.float32)
    packed = ops.pack_linear(w)
    for m in shapes.ROWS:
        x = inputs(rng, "normal", m, k)
        y = ops.linear(x, packed, b, activation)
        assert y.shape == (m, n)
        exact = reference.linear(x, w, b, activation)
        # One product and a bias can cancel: held to the size of its terms, as rounding is.
        error = magnitude_error(y, x, w, exact, b) if k == 1 else reference.relative_error(y, exact)
        assert error <= op_bound(k)


@pytest.mark.parametrize("kind", KINDS)
def test_linear_on_hard_inputs(isa, rng, kind):
    w, x = weights_for(rng, 40, 384), inputs(rng, kind, 20, 384)
    y = ops.linear(x, w)
    if kind == "denormal":
        np.testing.assert_allclose(y, reference.linear(x, w), atol=1e-42)
    else:
        assert magnitude_error(y, x, w, reference.linear(x, w)) <= op_bound(384)


def test_linear_without_bias_and_many_rows(isa, rng):
    w, x = weights_for(rng, 96, 64), inputs(rng, "normal", 1500, 64)
    assert reference.relative_error(ops.linear(x, w), reference.linear(x, w)) <= op_bound(64)


@pytest.mark.parametrize("width", shapes.WIDTHS)
@pytest.mark.parametrize("with_residual", [False, True])
def test_layer_norm(isa, rng, width, with_residual):
    gamma, beta = inputs(rng, "normal", width), inputs(rng, "normal", width)
    for m in (0, 1, 3, 4, 5, 9):
        x = inputs(rng, "normal", m, width)
        residual = inputs(rng, "normal", m, width) if with_residual else None
        eps = 1e-5
        y = ops.layer_norm(x, gamma, beta, eps, residual)
        exact = reference.layer_norm(x, gamma, beta, eps, residual)
        # Rows of one or two columns are all cancellation: held to the input's rounding.
        bound = 1e-6 if width > 2 else 1e-3
        assert reference.relative_error(y, exact) <= bound


def test_layer_norm_with_a_mean_of_a_hundred_deviations(isa, rng):
    x = inputs(rng, "large_mean", 50, 384)
    one, zero = np.ones(384, np.float32), np.zeros(384, np.float32)
    assert (
        reference.relative_error(ops.layer_norm(x, one, zero), reference.layer_norm(x, one, zero))
        <= 1e-6
    )


@pytest.mark.parametrize("kind", ["normal", "outliers"])
@pytest.mark.parametrize("m", shapes.ROWS)
def test_linear_residual_layer_norm(isa, rng, m, kind):
    w, b = weights_for(rng, 96, 130), inputs(rng, "normal", 96)
    x, r = inputs(rng, kind, m, 130), inputs(rng, "normal", m, 96)
    g, beta = inputs(rng, "normal", 96), inputs(rng, "normal", 96)
    y = ops.linear_residual_layer_norm(x, w, b, r, g, beta)
    exact = reference.layer_norm(reference.linear(x, w, b), g, beta, residual=r)
    assert reference.relative_error(y, exact) <= 1e-6


@pytest.mark.parametrize("m", [*shapes.ROWS, 300])
def test_gelu_ffn(isa, rng, m):
    h, f = (64, 256) if isa == "scalar" else (384, 1536)
    w1, b1, w2, b2 = (
        weights_for(rng, f, h), inputs(rng, "normal", f), weights_for(rng, h, f), inputs(rng, "normal", h),
    )  # fmt: skip
    x = inputs(rng, "normal", m, h)
    y = ops.gelu_ffn(x, ops.pack_linear(w1), b1, ops.pack_linear(w2), b2)
    assert reference.relative_error(y, reference.gelu_ffn(x, w1, b1, w2, b2)) <= op_bound(f)


@pytest.mark.parametrize(("sq", "sk", "d"), shapes.ATTENTION)
def test_attention(isa, rng, sq, sk, d):
    if isa == "scalar" and sq > 200:
        sq = sk = 70  # the same code path in a tenth of the time
    q, k, v = (inputs(rng, "normal", 2, 2, s, d) for s in (sq, sk, sk))
    largest = np.abs(np.einsum("bhqd,bhkd->bhqk", q, k)).max() * d**-0.5
    y = ops.attention(q, k, v)
    assert reference.relative_error(y, reference.attention(q, k, v)) <= 1e-6 * max(1, largest)


def test_attention_with_masks(isa, rng):
    q, k, v = (inputs(rng, "normal", 5, 3, 37, 32) for _ in range(3))
    mask = rng.random((5, 37)) < 0.6
    mask[1] = np.arange(37) < 20  # padding on the right
    mask[2] = np.arange(37) >= 20  # and on the left
    mask[3] = False
    y = ops.attention(q, k, v, mask)
    assert reference.relative_error(y, reference.attention(q, k, v, mask[:, None])) <= 1e-6
    assert (y[3] == 0).all()
    for other in (mask.astype(np.int64), mask.astype(np.float32)):
        np.testing.assert_array_equal(y, ops.attention(q, k, v, other))


def test_attention_of_large_logits_stays_finite(isa, rng):
    q, k, v = (inputs(rng, "normal", 1, 1, 20, 32) * np.float32(300) for _ in range(3))
    y = ops.attention(q, k, v)
    assert np.isfinite(y).all()
    # A logit sums D products, each sum rounded by up to 2^-24 of itself, to either side: its error is
    # within four deviations of that. A weight is exp of the difference of two logits.
    q, k, v = (part.astype(np.float64) for part in (q, k, v))
    sizes = np.sqrt(q**2 @ (k**2).swapaxes(-1, -2)) / 32**0.5
    off = 4 * 32**0.5 * 2.0**-24 * sizes.max(-1, keepdims=True)
    scores = q @ k.swapaxes(-1, -2) / 32**0.5
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    bound = (np.expm1(2 * off) + 1e-6) * (weights @ np.abs(v))
    assert np.all(np.abs(y - weights @ v) <= bound)


def test_attention_takes_strided_views(rng):
    packed = inputs(rng, "normal", 2, 21, 3, 4, 32)  # batch, seqlen, qkv, heads, head_dim
    q, k, v = (packed[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
    copies = (np.ascontiguousarray(a) for a in (q, k, v))
    np.testing.assert_array_equal(ops.attention(q, k, v), ops.attention(*copies))


def test_long_attention_is_divided(rng):
    """The queries of a head are computed in parts, which change no bit of a row."""
    q, k, v = (rng.standard_normal((1, 1, 4000, 64), dtype=np.float32) for _ in range(3))
    whole = ops.attention(q, k, v)
    for first, last in ((0, 60), (1990, 2100), (3999, 4000)):
        np.testing.assert_array_equal(
            ops.attention(np.ascontiguousarray(q[:, :, first:last]), k, v), whole[:, :, first:last]
        )
    offsets = np.array([0, 4000], np.int32)
    rows = ops.attention_varlen(*(x[0].transpose(1, 0, 2).copy() for x in (q, k, v)), offsets)
    np.testing.assert_array_equal(rows[:, 0], whole[0, 0])


@pytest.mark.parametrize("place", ["q", "k", "v"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_attention_of_what_is_no_number_is_pytorchs(isa, rng, place, value):
    arrays = {name: rng.standard_normal((1, 2, 37, 24), dtype=np.float32) for name in "qkv"}
    arrays[place][0, 1, 5, 3] = value
    found = ops.attention(*arrays.values())
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(torch.from_numpy(array) for array in arrays.values())
    ).numpy()
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
    with pytest.raises(ValueError, match="scale is 1e\\+39"):
        ops.attention(*arrays.values(), scale=1e39)


def test_layer_norm_of_equal_columns(isa, rng):
    """The variance is nothing, and must not be rounded to less."""
    x = np.repeat(rng.uniform(1e4, 1e6, (500, 1)).astype(np.float32), 2401, axis=1)
    ones, beta = np.ones(2401, np.float32), np.full(2401, 0.5, np.float32)
    assert np.isfinite(ops.layer_norm(x, ones, beta, 1e-12)).all()


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=0, max_size=9),
    heads=st.integers(1, 4),
    head_dim=st.sampled_from([16, 24, 32, 64]),
    seed=st.integers(0, 2**16),
)
def test_attention_varlen_is_attention_sentence_by_sentence(lengths, heads, head_dim, seed):
    rng = np.random.default_rng(seed)
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    q, k, v = (inputs(rng, "normal", sum(lengths), heads, head_dim) for _ in range(3))
    y = ops.attention_varlen(q, k, v, cu_seqlens)
    for begin, end in itertools.pairwise(cu_seqlens):
        one = (a[begin:end].swapaxes(0, 1)[None] for a in (q, k, v))
        np.testing.assert_array_equal(y[begin:end].swapaxes(0, 1)[None], ops.attention(*one))


@pytest.mark.parametrize("lengths", [(1,), (16, 5), (31, 33, 2), (70,)])
@pytest.mark.parametrize("head_dim", [24, 32])
def test_attention_with_relative_biases(isa, rng, lengths, head_dim):
    heads, most = 3, 70
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    q, k, v = (inputs(rng, "normal", sum(lengths), heads, head_dim) for _ in range(3))
    bias = 3 * inputs(rng, "normal", heads, 2 * most - 1)
    y = ops.attention_varlen(q, k, v, cu_seqlens, relative_bias=bias)
    for begin, end in itertools.pairwise(cu_seqlens):
        one = (a[begin:end].swapaxes(0, 1) for a in (q, k, v))
        exact = reference.attention(*one, bias=by_pair(bias, end - begin))
        assert reference.relative_error(y[begin:end].swapaxes(0, 1), exact) <= 4e-6
    np.testing.assert_array_equal(
        ops.attention_varlen(q, k, v, cu_seqlens, relative_bias=np.zeros_like(bias)),
        ops.attention_varlen(q, k, v, cu_seqlens),
    )


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(0, 5),
    seqlen=st.integers(1, 30),
    width=st.integers(1, 70),
    seed=st.integers(0, 999),
)
def test_pooling(batch, seqlen, width, seed):
    rng = np.random.default_rng(seed)
    x, mask = inputs(rng, "normal", batch, seqlen, width), rng.random((batch, seqlen)) < 0.5
    y = ops.masked_mean_pool(x, mask)
    np.testing.assert_allclose(y, reference.mean_pool(x, mask), rtol=1e-5, atol=1e-6)
    assert (y[~mask.any(1)] == 0).all()
    cu_seqlens = np.concatenate([[0], np.cumsum(mask.sum(1))])
    np.testing.assert_array_equal(ops.mean_pool_varlen(x[mask], cu_seqlens), y)


def test_against_pytorch(rng):
    """Twice the error that PyTorch itself makes against float64, or the bound if that is larger."""
    functional = torch.nn.functional
    x, r = inputs(rng, "normal", 70, 384), inputs(rng, "normal", 70, 384)
    w, b = weights_for(rng, 384, 384), inputs(rng, "normal", 384)
    g, beta = inputs(rng, "normal", 384), inputs(rng, "normal", 384)
    t = [torch.from_numpy(a) for a in (x, r, w, b, g, beta)]
    theirs = functional.layer_norm(
        functional.linear(t[0], t[2], t[3]) + t[1], (384,), t[4], t[5], 1e-12
    )
    ours = ops.linear_residual_layer_norm(t[0], t[2], t[3], t[1], t[4], t[5])
    assert isinstance(ours, torch.Tensor)
    exact = reference.layer_norm(reference.linear(x, w, b), g, beta, residual=r)
    error = reference.relative_error(theirs.numpy(), exact)
    assert reference.relative_error(ours.numpy(), exact) <= max(2 * error, op_bound(384))
    q, k, v = (
        torch.randn(2, 12, 33, 32, generator=torch.Generator().manual_seed(i)) for i in range(3)
    )
    mask = torch.arange(33)[None] < torch.tensor([[33], [9]])
    theirs = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
    exact = reference.attention(q, k, v, mask[:, None].numpy())
    error = reference.relative_error(theirs.numpy(), exact)
    ours = ops.attention(q, k, v, mask).numpy()
    assert reference.relative_error(ours, exact) <= max(2 * error, op_bound(33))
    x = torch.linspace(-6, 6, 1001)[:, None]
    identity = torch.ones(1, 1)
    torch.testing.assert_close(
        ops.linear(x, identity, None, "gelu"), functional.gelu(x), rtol=0, atol=1e-6
    )
    theirs = functional.gelu(x, approximate="tanh")
    torch.testing.assert_close(ops.linear(x, identity, None, "gelu_new"), theirs, rtol=0, atol=2e-6)


def test_tensors_share_memory_and_requires_grad_is_taken(rng):
    x = torch.randn(5, 8, requires_grad=True)
    y = ops.layer_norm(x, torch.ones(8), torch.zeros(8))
    assert isinstance(y, torch.Tensor)
    assert not y.requires_grad


def test_leading_dimensions_strides_and_read_only(rng):
    w, x = weights_for(rng, 10, 12), inputs(rng, "normal", 3, 4, 12)
    y = ops.linear(x, w)
    assert y.shape == (3, 4, 10)
    wide = inputs(rng, "normal", 3, 4, 24)
    wide[..., ::2] = x
    np.testing.assert_array_equal(ops.linear(wide[..., ::2], w), y)
    np.testing.assert_array_equal(ops.linear(x[::-1], w), y[::-1])
    x.flags.writeable = False
    w.flags.writeable = False
    np.testing.assert_array_equal(ops.linear(x, w), y)
    np.testing.assert_array_equal(ops.linear(x[1, 2], w), y[1, 2])


def test_packing_copies_and_gives_the_same_bits(rng):
    w, x = weights_for(rng, 50, 30), inputs(rng, "normal", 9, 30)
    packed = ops.pack_linear(w)
    expected = ops.linear(x, w)
    w[:] = 0
    np.testing.assert_array_equal(ops.linear(x, packed), expected)
    assert (packed.in_features, packed.out_features) == (30, 50)
    assert "in_features=30" in repr(packed)


def test_nothing_is_read_or_written_past_the_end(isa, rng):
    """Inputs that end at a page which must not be touched."""

    def at_the_end(array):
        size = array.nbytes
        pages = -(-size // mmap.PAGESIZE)
        memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
        import ctypes

        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        libc = ctypes.CDLL(None, use_errno=True)
        guard = ctypes.c_void_p(address + pages * mmap.PAGESIZE)
        assert libc.mprotect(guard, mmap.PAGESIZE, 0) == 0
        view = np.frombuffer(memory, array.dtype, array.size, pages * mmap.PAGESIZE - size)
        view = view.reshape(array.shape)
        view[...] = array
        keep.append((memory, libc, guard))
        return view

    keep: list = []
    for n, k in ((7, 13), (17, 31), (33, 5)):
        x, w, b = inputs(rng, "normal", 13, k), weights_for(rng, n, k), inputs(rng, "normal", n)
        expected = ops.linear(x, w, b)
        np.testing.assert_array_equal(
            ops.linear(at_the_end(x), at_the_end(w), at_the_end(b)), expected
        )
    q = inputs(rng, "normal", 1, 1, 17, 26)
    np.testing.assert_array_equal(
        ops.attention(*(at_the_end(q) for _ in range(3))), ops.attention(q, q, q)
    )
    x, g = inputs(rng, "normal", 5, 37), inputs(rng, "normal", 37)
    np.testing.assert_array_equal(
        ops.layer_norm(at_the_end(x), at_the_end(g), at_the_end(g)), ops.layer_norm(x, g, g)
    )
    for _, libc, guard in keep:  # so that the maps can be freed
        libc.mprotect(guard, mmap.PAGESIZE, 3)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda f: ops.linear(f(2, 3).astype(np.float64), f(4, 3)), TypeError, "x has dtype float64, wanted float32"),
        (lambda f: ops.linear(f(2, 3), f(4, 5)), ValueError, r"x has shape \(2, 3\), wanted \(rows, 5\)"),
        (lambda f: ops.linear([1.0], f(4, 5)), TypeError, "x is a list"),
        (lambda f: ops.linear(f(2, 3), f(4, 3), f(5)), ValueError, r"bias has shape \(5,\), wanted \(4,\)"),
        (lambda f: ops.linear(f(2, 3), f(4, 3), None, "swish"), ValueError, "activation is 'swish'"),
        (lambda f: ops.linear(f(2, 3), f(4, 3), None, b"\xff"), TypeError, "activation is a bytes"),
        (lambda f: ops.pack_linear(f(4, 3), b"int8"), TypeError, "dtype is a bytes"),
        (lambda f: ops.linear(f(2, 3), f(3)), ValueError, r"weight has shape \(3,\), wanted 2 dimensions"),
        (lambda f: ops.linear(np.array(1, np.float32), f(3, 3)), ValueError, "scalar"),
        (lambda f: ops.layer_norm(f(2, 3), f(4), f(3)), ValueError, "gamma has shape"),
        (lambda f: ops.layer_norm(f(2, 3), f(3), f(3), residual=f(1, 3)), ValueError, "residual has shape"),
        (lambda f: ops.gelu_ffn(f(2, 3), f(8, 3), None, f(3, 7), None), ValueError, "w2 has 7 inputs, wanted the 8"),
        (lambda f: ops.attention(f(1, 2, 3, 4), f(1, 2, 3, 5), f(1, 2, 3, 4)), ValueError, "k has shape"),
        (lambda f: ops.attention(f(2, 3, 4), f(2, 3, 4), f(2, 3, 4)), ValueError, "wanted 4 dimensions"),
        (lambda f: ops.attention(*[f(1, 1, 3, 4)] * 3, f(1, 3) + 2), ValueError, "values other than 0 and 1"),
        (lambda f: ops.attention(*[f(1, 1, 3, 4)] * 3, f(1, 4) * 0), ValueError, "mask has shape"),
        (lambda f: ops.attention(*[f(1, 1, 3, 300)] * 3), ValueError, "head_dim=300"),
        (lambda f: ops.attention(*[f(1, 1, 3, 4)] * 3, scale=float("nan")), ValueError, "scale is nan"),
        (lambda f: ops.attention_varlen(*[f(5, 1, 4)] * 3, [0, 3, 2, 5]), ValueError, "descends at 2: 3 then 2"),
        (lambda f: ops.attention_varlen(*[f(5, 1, 4)] * 3, [0, 9]), ValueError, "ends at 9"),
        (lambda f: ops.attention_varlen(*[f(5, 1, 4)] * 3, [1, 5]), ValueError, r"cu_seqlens\[0\] is 1"),
        (lambda f: ops.attention_varlen(*[f(5, 1, 4)] * 3, [-1, 5]), ValueError, r"cu_seqlens\[0\] is -1"),
        (lambda f: ops.attention_varlen(*[f(5, 1, 4)] * 3, [0.0, 5.0]), TypeError, "cu_seqlens has dtype float64"),
        (lambda f: ops.attention_varlen(*[f(5, 1, 4)] * 3, [0, 2**40]), ValueError, "beyond int32"),
        (lambda f: ops.attention_varlen(*[f(5, 1, 4)] * 3, []), ValueError, "at least one"),
        (lambda f: ops.attention_varlen(*[f(5, 1, 4)] * 3, [0, 5], relative_bias=f(1, 8)), ValueError, r"shape \(1, 8\), wanted \(1, 2 P - 1\)"),
        (lambda f: ops.attention_varlen(*[f(5, 1, 4)] * 3, [0, 5], relative_bias=f(1, 7)), ValueError, "sentences of 4 tokens, and one has 5"),
        (lambda f: ops.masked_mean_pool(f(2, 3, 4), np.ones((2, 4))), ValueError, "attention_mask has shape"),
        (lambda f: ops.masked_mean_pool(f(2, 3, 4), np.array([["a"]])), TypeError, "wanted bool or 0/1"),
        (lambda f: ops.mean_pool_varlen(f(3), [0, 3]), ValueError, "wanted 2 dimensions"),
    ],
)  # fmt: skip
def test_wrong_arguments_name_themselves(call, error, text):
    def f(*shape):
        return np.ones(shape, np.float32)

    with pytest.raises(error, match=text):
        call(f)


def test_wrong_tensors():
    with pytest.raises(ValueError, match="x is on device meta, wanted the CPU"):
        ops.linear(torch.ones(2, 2, device="meta"), torch.ones(2, 2))
    with pytest.raises(TypeError, match="bfloat16"):
        ops.linear(torch.ones(2, 2, dtype=torch.bfloat16), torch.ones(2, 2))


def test_packed_for_another_instruction_set_is_refused(rng):
    from minifuse.native import core

    if len(core.supported_isas()) < 2:
        pytest.skip(
            "needs a second instruction set to pack for, and this CPU has none but the scalar one"
        )
    packed = ops.pack_linear(weights_for(rng, 8, 8))
    before = core.isa()
    here = core.isa_of("float32")
    for other in core.supported_isas():  # a VNNI set shares the float32 kernels of the one below
        core.select_isa(other)
        if core.isa_of("float32") != here:
            break
    try:
        with pytest.raises(ValueError, match="pack it again"):
            ops.linear(inputs(rng, "normal", 2, 8), packed)
    finally:
        core.select_isa(before)
