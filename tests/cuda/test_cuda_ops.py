"""minifuse.ops on CUDA tensors: on the emulator, with CPU tensors in their place, or on a device.

As tests/cuda/test_cuda_kernels.py, tools/gpu_check.sh runs it where there is one.
"""

from __future__ import annotations

import inspect
import itertools
import os

import numpy as np
import pytest

from cuda_library import UNIT_ROUNDOFF, float32_bound
from minifuse import native, ops
from minifuse.bench import reference
from minifuse.native import cuda_ops

torch = pytest.importorskip("torch", reason="the ops take torch's tensors")

IS_EMULATED = "MINIFUSE_CUDA_LIBRARY" not in os.environ
DEVICE = "cpu" if IS_EMULATED else "cuda:0"


@pytest.fixture
def on_device(request, monkeypatch):
    """Every tensor counts as one on a device, and its stream is the emulator's."""
    if not IS_EMULATED:
        yield
        return
    request.getfixturevalue("cuda_device")
    cuda_ops._ops.cache_clear()
    monkeypatch.setattr(native, "is_cuda_tensor", native.is_tensor)
    monkeypatch.setattr(cuda_ops, "_current_stream", lambda device: 0)
    yield
    cuda_ops._ops.cache_clear()


@pytest.fixture(params=["float32", "bfloat16", "float16"])
def tensor(on_device, request, rng):
    """Makes a normal tensor of the type, at a multiple of 64 bytes as a device's allocator does."""

    def make(*shape, scale=1.0):
        values = torch.from_numpy(rng.standard_normal(shape) * scale)
        return aligned(values.to(getattr(torch, request.param)))

    make.bound = (
        float32_bound(384) if request.param == "float32" else 2 * UNIT_ROUNDOFF[request.param]
    )
    make.dtype = request.param
    return make


def aligned(value):
    flat = torch.empty(value.numel() + 64, dtype=value.dtype, device=DEVICE)
    skip = -flat.data_ptr() // value.element_size() % (64 // value.element_size())
    return flat[skip : skip + value.numel()].view(value.shape).copy_(value)


def assert_agrees(tensor, actual, wanted, roundings=1):
    assert torch.is_tensor(actual)
    assert str(actual.dtype) == f"torch.{tensor.dtype}"
    error = reference.relative_error(*f64(actual), np.asarray(wanted))
    assert error <= roundings * tensor.bound


def f64(*tensors):
    return [None if t is None else t.double().cpu().numpy() for t in tensors]


def test_layer_norm(tensor, rng):
    x, residual = tensor(3, 5, 70), tensor(3, 5, 70)
    gamma, beta = tensor(70), tensor(70)
    assert_agrees(
        tensor, ops.layer_norm(x, gamma, beta), reference.layer_norm(*f64(x, gamma, beta))
    )
    actual = ops.layer_norm(x, gamma=gamma, beta=beta, eps=1e-5, residual=residual)
    wanted = reference.layer_norm(*f64(x, gamma, beta), 1e-5, *f64(residual))
    assert_agrees(tensor, actual, wanted)


def test_linear_packed_or_not(tensor):
    x, weight, bias = tensor(2, 17, 64), tensor(34, 64, scale=0.125), tensor(34)
    wanted = reference.linear(*f64(x, weight, bias), "gelu")
    actual = ops.linear(x, weight, bias, "gelu")
    assert_agrees(tensor, actual, wanted)
    packed = ops.pack_linear(weight)
    assert (packed.in_features, packed.out_features) == (64, 34)
    assert (packed.dtype, packed.isa) == (tensor.dtype, "cuda")
    assert torch.equal(ops.linear(x, packed, bias, "gelu"), actual)
    assert ops.linear(x[:0], weight).shape == (0, 17, 34)


@pytest.mark.parametrize("isa", ["sm_80", "sm_90a"])
def test_one_row_of_a_wider_matrix(tensor, monkeypatch, isa):
    """Its stride is no multiple of 16 bytes, and means nothing."""
    monkeypatch.setenv("MINIFUSE_CUDA_ISA", isa)
    cuda_ops._ops.cache_clear()
    x, weight = tensor(4, 385)[:1, :384], tensor(32, 384, scale=0.05)
    assert x.contiguous().stride(0) == 385
    assert_agrees(tensor, ops.linear(x, weight), reference.linear(*f64(x, weight)))


def test_linear_residual_layer_norm(tensor):
    x, weight, residual = tensor(19, 64), tensor(96, 64, scale=0.125), tensor(19, 96)
    gamma, beta = tensor(96), tensor(96)
    actual = ops.linear_residual_layer_norm(x, weight, None, residual, gamma, beta)
    product = reference.linear(*f64(x, weight))
    wanted = reference.layer_norm(product, *f64(gamma, beta), 1e-12, *f64(residual))
    assert_agrees(tensor, actual, wanted)


def test_gelu_ffn(tensor):
    x, w1, w2 = tensor(9, 64), tensor(128, 64, scale=0.125), tensor(64, 128, scale=0.1)
    b1, b2 = tensor(128), tensor(64)
    actual = ops.gelu_ffn(x, w1, b1, w2, b2)
    assert_agrees(tensor, actual, reference.gelu_ffn(*f64(x, w1, b1, w2, b2)), roundings=2)


@pytest.mark.parametrize("head_dim", [32, 64])
@pytest.mark.parametrize("is_view", [False, True])
def test_attention(tensor, head_dim, is_view):
    """In either layout; a mask of bool or of numbers; more keys than queries."""
    if is_view:  # as a projection leaves them: no copy
        q = tensor(2, 19, 3, head_dim).transpose(1, 2)
        k, v = (tensor(2, 70, 3, head_dim).transpose(1, 2) for _ in range(2))
    else:
        q, k, v = tensor(2, 3, 19, head_dim), tensor(2, 3, 70, head_dim), tensor(2, 3, 70, head_dim)
    wanted = reference.attention(*f64(q, k, v))
    assert_agrees(tensor, ops.attention(q, k, v), wanted, roundings=2)
    mask = torch.arange(140, device=DEVICE).view(2, 70) % 3 != 0
    mask[1] = False
    actual = ops.attention(q, k, v, mask, scale=0.3)
    wanted = reference.attention(*f64(q, k, v), mask.cpu().numpy()[:, None], 0.3)
    assert_agrees(tensor, actual, wanted, roundings=2)
    assert not actual[1].any()
    assert torch.equal(ops.attention(q, k, v, mask.long(), scale=0.3), actual)


def test_attention_varlen_takes_slices_of_one_projection(tensor):
    qkv = tensor(40, 3, 2, 32)
    q, k, v = qkv.unbind(1)
    cu_seqlens = np.array([0, 3, 3, 20, 40], np.int32)
    out = ops.attention_varlen(q, k, v, cu_seqlens)
    for first, last in itertools.pairwise(cu_seqlens):
        if first == last:
            continue
        one = [t[first:last].transpose(0, 1) for t in (q, k, v)]
        wanted = reference.attention(*f64(*one)).swapaxes(0, 1)
        assert_agrees(tensor, out[first:last], wanted, roundings=2)
    assert torch.equal(ops.attention_varlen(q, k, v, torch.from_numpy(cu_seqlens)), out)


def test_pooling(tensor):
    x = tensor(3, 7, 66)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0, 0], [0, 1, 0, 1, 0, 0, 1], [0] * 7], device=DEVICE)
    wanted = reference.mean_pool(*f64(x), mask.cpu().numpy())
    assert_agrees(tensor, ops.masked_mean_pool(x, mask.bool()), wanted)
    assert_agrees(tensor, ops.masked_mean_pool(x, mask), wanted)
    rows = x.flatten(0, 1)
    actual = ops.mean_pool_varlen(rows, [0, 4, 4, 21])
    assert_agrees(
        tensor, actual, np.stack([f64(rows[:4])[0].mean(0), np.zeros(66), f64(rows[4:])[0].mean(0)])
    )


def test_nothing_is_copied_that_lies_well(tensor, monkeypatch):
    """The kernel reads the tensors' own memory; a misaligned tensor is copied."""
    seen = []
    monkeypatch.setattr(cuda_ops._Call, "rows", _recording(cuda_ops._Call.rows, seen))
    wide = tensor(8, 128)
    x, weight = wide[:, :64], tensor(32, 64)
    ops.linear(x, weight)
    assert [t.data_ptr() for t in seen] == [x.data_ptr(), weight.data_ptr()]
    seen.clear()
    odd = wide.flatten()[1:65].view(1, 64)
    actual = ops.linear(odd, weight)
    assert seen[0].data_ptr() != odd.data_ptr()
    assert torch.equal(actual, ops.linear(odd.clone(), weight))


def _recording(method, seen):
    def rows(self, name, x):
        seen.append(method(self, name, x))
        return seen[-1]

    return rows


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda x, w: ops.linear(x, w[:, :32]), ValueError, r"weight has shape \(32, 32\), wanted"),
        (lambda x, w: ops.linear(x[:, :30].clone(), w[:, :30].clone()), ValueError, "wanted a mul"),
        (lambda x, w: ops.linear(x, w[:3]), ValueError, "N=3, wanted an even number"),
        (lambda x, w: ops.linear(x, w, activation="tanh"), ValueError, "activation is 'tanh'"),
        (lambda x, w: ops.linear(x, w, w[0, :3].clone()), ValueError, "bias has 3 elements, wanted 32"),
        (lambda x, w: ops.linear(x, w.double()), TypeError, "weight has dtype torch.float64, want"),
        (lambda x, w: ops.linear(x.double(), w), TypeError, "x has dtype float64, wanted one of"),
        (lambda x, w: ops.linear(x, w.cpu().numpy()), TypeError, "weight is a ndarray, wanted a tensor"),
        (lambda x, w: ops.pack_linear(w, "int8"), ValueError, "dtype is 'int8', wanted one of flo"),
        (lambda x, w: ops.layer_norm(x, w[0], w[0], residual=x[:2]), ValueError, "residual has sh"),
        (lambda x, w: ops.layer_norm(x, w[0, :3], w[0]), ValueError, "gamma has 3 elements, wante"),
        (lambda x, w: ops.mean_pool_varlen(x, [0, 9]), ValueError, "goes from 0 to 9, wanted 0 to"),
        (lambda x, w: ops.mean_pool_varlen(x, [0, 4, 2, 8]), ValueError, "cu_seqlens descends at 2"),
        (lambda x, w: ops.masked_mean_pool(x[None], torch.full_like(x[:1, :8], 2)), ValueError, "other than"),
        (lambda x, w: ops.masked_mean_pool(x[None], x[:1, :7]), ValueError, "attention_mask"),
        (lambda x, w: ops.attention(*[x.view(1, 4, 8, 16)] * 3), ValueError, "head_dim=16, wanted"),
        (lambda x, w: ops.attention(*[x.view(1, 2, 8, 32)] * 3, scale=float("nan")), ValueError,
         "scale is nan, wanted a finite number"),
        (lambda x, w: ops.attention_varlen(x, x, x, [0, 8]), ValueError, "wanted 3 dimensions"),
    ],
)  # fmt: skip
def test_wrong_arguments_name_themselves(on_device, call, error, text):
    x, weight = aligned(torch.ones(8, 64)), aligned(torch.ones(32, 64))
    with pytest.raises(error, match=text):
        call(x, weight)


def test_tensors_on_two_devices(on_device):
    text = rf"weight is on device meta, wanted {DEVICE}: pass weight\.to\('{DEVICE}'\)"
    with pytest.raises(ValueError, match=text):
        ops.linear(torch.ones(2, 64, device=DEVICE), torch.ones(32, 64, device="meta"))


def test_every_op_has_a_namesake_with_the_same_arguments():
    for name in ops.__all__:
        wanted = inspect.signature(getattr(ops, name)).parameters
        assert list(inspect.signature(getattr(cuda_ops, name)).parameters.values()) == list(
            wanted.values()
        ), name
