"""Every CUDA kernel, run by the emulator or on a device, against float64 NumPy over ragged shapes.

Bounds: the inputs are rounded beforehand, so float32 errs by its own arithmetic, and 16 bits by one
rounding of each result and of each intermediate that is stored in them. cuda_library.py has float32's.
"""

from __future__ import annotations

import ctypes
import itertools
import re
import subprocess

import numpy as np
import pytest

from cuda_library import ELEMENTS, UNIT_ROUNDOFF, Fault, Ops, float32_bound, rounded
from minifuse.bench import reference


@pytest.fixture(params=ELEMENTS)
def cuda(cuda_library, request) -> Ops:
    return Ops(cuda_library, request.param)


@pytest.fixture(
    params=[*((name, "sm_80") for name in ELEMENTS), *((name, "sm_90a") for name in ELEMENTS[1:])],
    ids="-".join,
)
def matrices(cuda_library, request, monkeypatch) -> Ops:
    """Those of sm_90a, too, for the ops that have some."""
    element, isa = request.param
    monkeypatch.setenv("MINIFUSE_CUDA_ISA", isa)
    return Ops(cuda_library, element, isa)


def assert_close(cuda, actual, wanted, K=1, roundings=1):
    """Relative Frobenius error within what rounding explains."""
    bound = float32_bound(K)
    if cuda.element != "float32":
        bound = 1e-6 + roundings * UNIT_ROUNDOFF[cuda.element]
    assert np.isfinite(actual).all()
    assert reference.relative_error(actual, wanted) <= bound


def normal(rng, cuda, *shape, scale=1.0):
    return rounded(rng.standard_normal(shape) * scale, cuda.element)


# Rows around the tiles' 16, 32, 64 and 128; columns around 8, 64 and 128.
@pytest.mark.parametrize(
    ("M", "N", "K"), [(1, 96, 32), (17, 130, 64), (64, 128, 96), (129, 258, 32), (33, 2, 384)]
)
def test_linear(matrices, rng, is_emulated, M, N, K):
    x, w = normal(rng, matrices, M, K), normal(rng, matrices, N, K, scale=K**-0.5)
    b = rng.standard_normal(N)
    for activation in (None, "gelu", "gelu_new", "relu"):
        y = matrices.linear(x, w, b, activation)
        assert_close(matrices, y, reference.linear(x, w, np.float32(b), activation), K)
    assert_close(matrices, matrices.linear(x, w), reference.linear(x, w), K)
    if is_emulated:
        names = ("wgmma", "box") if matrices.isa == "sm_90a" else ("ldmatrix",)
        assert all(matrices.count(name) > 0 for name in names)


# With K = 160 a product ends in the first stage of its ring, where LayerNorm's sums come next.
@pytest.mark.parametrize(
    ("M", "H", "K"),
    [
        *((M, H, 64) for M in (1, 37) for H in (32, 128, 384, 512, 768, 800, 1024)),
        (130, 160, 352),
        (37, 384, 160),
        (37, 1024, 160),
    ],
)
def test_linear_residual_layer_norm(matrices, rng, M, H, K):
    x, w = normal(rng, matrices, M, K), normal(rng, matrices, H, K, scale=K**-0.5)
    residual = normal(rng, matrices, M, H) + rounded(np.full((M, 1), 3.0), matrices.element)
    residual = rounded(residual, matrices.element)
    b, gamma, beta = (np.float32(rng.standard_normal(H)) for _ in range(3))
    y = matrices.linear_residual_layer_norm(x, w, b, residual, gamma, beta, 1e-12)
    wanted = reference.layer_norm(reference.linear(x, w, b), gamma, beta, 1e-12, residual)
    assert_close(matrices, y, wanted, K)


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize(
    ("M", "H", "F"), [(1, 32, 64), (70, 128, 192), (33, 384, 128), (9, 512, 64)]
)
def test_ffn_residual_layer_norm(matrices, rng, M, H, F, activation):
    x = normal(rng, matrices, M, H)
    w1, w2 = normal(rng, matrices, F, H, scale=H**-0.5), normal(rng, matrices, H, F, scale=F**-0.5)
    b1, b2, gamma, beta = (np.float32(rng.standard_normal(n)) for n in (F, H, H, H))
    arguments = (x, w1, b1, w2, b2, gamma, beta, 1e-12, activation)
    if matrices.element == "float32" and H > 384:  # the encoder takes two kernels
        with pytest.raises(Fault, match="H=512, wanted at most 384"):
            matrices.ffn_residual_layer_norm(*arguments)
        return
    y = matrices.ffn_residual_layer_norm(*arguments)
    wanted = reference.layer_norm(
        reference.gelu_ffn(x, w1, b1, w2, b2, activation), gamma, beta, 1e-12, x
    )
    assert_close(matrices, y, wanted, F, roundings=2)


@pytest.mark.parametrize(("num_heads", "head_dim"), [(1, 32), (5, 32), (4, 64)])
@pytest.mark.parametrize("seqlens", [[1], [17, 3, 64], [65, 0, 130]])
def test_attention(cuda, rng, num_heads, head_dim, seqlens):
    H, cu_seqlens = num_heads * head_dim, np.concatenate([[0], np.cumsum(seqlens)])
    qkv = normal(rng, cuda, cu_seqlens[-1], 3 * H)
    out = cuda.attention(qkv, cu_seqlens, num_heads, head_dim**-0.5)
    wanted = np.empty((cu_seqlens[-1], H))
    for begin, end in itertools.pairwise(cu_seqlens):
        q, k, v = (
            part.reshape(end - begin, num_heads, head_dim).swapaxes(0, 1)
            for part in np.split(qkv[begin:end], 3, axis=1)
        )
        one = reference.attention(q, k, v).swapaxes(0, 1)
        wanted[begin:end] = one.reshape(end - begin, H)
    assert_close(cuda, out, wanted, head_dim + max(seqlens), roundings=2)


def test_attention_leaves_masked_keys_out(cuda, rng):
    """Some of them, the whole of a first pass over 64 keys, and all."""
    cu_seqlens, H = [0, 20, 100, 103], 64
    qkv = normal(rng, cuda, 103, 3 * H)
    mask = rng.integers(0, 2, 103)
    mask[20:90] = 0
    mask[100:] = 0
    out = cuda.attention(qkv, cu_seqlens, 2, 0.2, mask)
    for begin, end in itertools.pairwise(cu_seqlens):
        kept = np.flatnonzero(mask[begin:end]) + begin
        q, k, v = (part.reshape(len(part), 2, 32).swapaxes(0, 1) for part in
                   (qkv[begin:end, :H], qkv[kept, H : 2 * H], qkv[kept, 2 * H :]))  # fmt: skip
        wanted = reference.attention(q, k, v, scale=0.2) if len(kept) else np.zeros(q.shape)
        wanted = wanted.swapaxes(0, 1).reshape(end - begin, H)
        if len(kept):
            assert_close(cuda, out[begin:end], wanted, roundings=2)
        else:
            assert np.array_equal(out[begin:end], wanted)


@pytest.mark.parametrize(("M", "H"), [(1, 2), (6, 384), (3, 130)])
@pytest.mark.parametrize("with_residual", [False, True])
def test_layer_norm(cuda, rng, M, H, with_residual):
    x = normal(rng, cuda, M, H)
    residual = normal(rng, cuda, M, H) if with_residual else None
    gamma, beta = (np.float32(rng.standard_normal(H)) for _ in range(2))
    y = cuda.layer_norm(x, gamma, beta, 1e-6, residual)
    assert_close(cuda, y, reference.layer_norm(x, gamma, beta, 1e-6, residual))


@pytest.mark.parametrize(("M", "H"), [(1, 32), (6, 384), (3, 130)])
def test_embed_layer_norm(cuda, rng, M, H):
    word, position = normal(rng, cuda, 20, H), normal(rng, cuda, 12, H)
    gamma, beta = (np.float32(rng.standard_normal(H)) for _ in range(2))
    ids, positions = rng.integers(0, 20, M), rng.integers(0, 12, M)
    y = cuda.embed_layer_norm(ids, positions, word, position, gamma, beta)
    wanted = reference.layer_norm(word[ids].astype(float) + position[positions], gamma, beta)
    assert_close(cuda, y, wanted)


def pooled(x, pooling, first_row):
    rows, places = x[first_row:].astype(float), np.arange(first_row, len(x)) + 1.0
    if len(rows) == 0:
        return np.zeros(x.shape[1])
    return {
        "mean": lambda: rows.mean(0),
        "cls": lambda: rows[0],
        "max": lambda: rows.max(0),
        "mean_sqrt_len": lambda: rows.sum(0) / len(rows) ** 0.5,
        "weightedmean": lambda: (rows * places[:, None]).sum(0) / places.sum(),
        "lasttoken": lambda: rows[-1],
    }[pooling]()


@pytest.mark.parametrize(
    "pooling", ["mean", "cls", "max", "mean_sqrt_len", "weightedmean", "lasttoken"]
)
@pytest.mark.parametrize("first_row", [0, 2])
def test_pool(cuda, rng, pooling, first_row):
    cu_seqlens = [0, 5, 6, 6, 25]
    x = normal(rng, cuda, 25, 290)
    wanted = np.stack(
        [pooled(x[a:b], pooling, first_row) for a, b in itertools.pairwise(cu_seqlens)]
    )
    y = cuda.pool(x, cu_seqlens, pooling, first_row)
    assert reference.relative_error(y, wanted) <= 1e-6


def test_mean_pool_leaves_masked_rows_out(cuda, rng):
    x, mask = normal(rng, cuda, 12, 70), np.array([1, 0, 1, 1, 0, 0, 0, 1, 1, 1, 1, 0])
    y = cuda.pool(x, [0, 4, 7, 12], mask=mask)
    wanted = [x[[0, 2, 3]].mean(0), np.zeros(70), x[7:11].mean(0)]
    assert reference.relative_error(y, np.array(wanted)) <= 1e-6
    with pytest.raises(Fault, match="a mask goes with the mean only"):
        cuda.pool(x, [0, 12], "max", mask=mask)


def test_a_row_has_the_same_bits_in_every_batch(matrices, rng):
    """Tiles are cut elsewhere for one row than for many: no bit may depend on it."""
    M, H, F = 70, 128, 64
    x = normal(rng, matrices, M, H)
    w1, w2 = normal(rng, matrices, F, H, scale=H**-0.5), normal(rng, matrices, H, F, scale=F**-0.5)
    b1, b2, gamma, beta = (np.float32(rng.standard_normal(n)) for n in (F, H, H, H))
    square = normal(rng, matrices, H, H, scale=H**-0.5)
    calls = [
        lambda x: matrices.linear(x, w1, b1, "gelu"),
        lambda x: matrices.ffn_residual_layer_norm(x, w1, b1, w2, b2, gamma, beta),
        lambda x: matrices.linear_residual_layer_norm(x, square, b2, x, gamma, beta),
    ]
    for call in calls:
        whole = call(x)
        for row in (0, 15, 16, 63, 69):
            alone = call(x[row : row + 1])
            assert np.array_equal(alone.view(np.uint32), whole[row : row + 1].view(np.uint32))
    qkv = normal(rng, matrices, 100, 3 * H)
    whole = matrices.attention(qkv, [0, 3, 20, 100], 4, 0.1)
    alone = matrices.attention(qkv[20:], [0, 80], 4, 0.1)
    assert np.array_equal(whole[20:].view(np.uint32), alone.view(np.uint32))


@pytest.mark.parametrize("element", ELEMENTS[1:])
@pytest.mark.parametrize(
    ("isa", "H"), [*(("sm_80", H) for H in (32, 128, 384, 512)),
                   *(("sm_90a", H) for H in (32, 128, 384))]
)  # fmt: skip
def test_two_kernels_give_the_fused_ones_bits(cuda_library, rng, monkeypatch, element, isa, H):
    """Up to Kernels::max_split_hidden: the encoder takes them for few tokens."""
    monkeypatch.setenv("MINIFUSE_CUDA_ISA", isa)
    matrices = Ops(cuda_library, element, isa)
    M, F = 18, 128
    x = normal(rng, matrices, M, H)
    w1, w2 = normal(rng, matrices, F, H, scale=H**-0.5), normal(rng, matrices, H, F, scale=F**-0.5)
    b1, b2, gamma, beta = (np.float32(rng.standard_normal(n)) for n in (F, H, H, H))
    fused = matrices.ffn_residual_layer_norm(x, w1, b1, w2, b2, gamma, beta)
    hidden = matrices.linear(x, w1, b1, "gelu")
    parted = matrices.linear_residual_layer_norm(hidden, w2, b2, x, gamma, beta)
    assert np.array_equal(fused.view(np.uint32), parted.view(np.uint32))


def test_shapes_that_no_instance_takes_are_refused(cuda, rng):
    x = normal(rng, cuda, 2, 30)
    with pytest.raises(Fault, match="K=30, wanted a multiple of"):
        cuda.linear(x, x)
    with pytest.raises(Fault, match="head_dim=16, wanted 32 or 64"):
        cuda.attention(normal(rng, cuda, 2, 48), [0, 2], 1, 1.0)
    wide = normal(rng, cuda, 1040, 64)
    with pytest.raises(Fault, match="N=1040, wanted at most 1024"):
        cuda.linear_residual_layer_norm(x=wide[:1], weight=wide, bias=None,
                                        residual=normal(rng, cuda, 1, 1040),
                                        gamma=np.ones(1040), beta=np.ones(1040))  # fmt: skip


def test_every_instance_has_run(cuda_library, is_emulated):
    """Complete by construction: the cuda_library's own symbols are the list. Runs last in this file."""
    if not is_emulated:
        pytest.skip("reads the emulator's list of launches, which a real device does not keep")
    cuda_library.cuda_launched.restype = ctypes.c_char_p
    path = cuda_library._name
    symbols = subprocess.run(
        ["nm", "--defined-only", path], capture_output=True, text=True, check=True
    )
    instances = set(
        re.findall(r"\b(_ZN8minifuse4cuda\d+[a-z_]+_kernelI\w+)$", symbols.stdout, re.M)
    )
    assert len(instances) >= 30
    launched = set(cuda_library.cuda_launched().decode().split())
    assert not instances - launched
