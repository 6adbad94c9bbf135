"""minifuse.ops on CUDA tensors: torch's memory, on torch's current stream, without a copy.

Each function stands for its namesake in minifuse.ops, in float32, bfloat16 or float16; torch is
never imported here. Tensors whose rows do not begin at multiples of 16 bytes, or lie in other
strides, are copied. Kernels take an inner dimension that is a multiple of 64 bytes, even widths,
heads of 32 or 64, and LayerNorm behind a matrix up to 1,024 columns; they say so of others.
"""

from __future__ import annotations

import functools
import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from minifuse import native
from minifuse.native.devices import CUDA_DTYPES, cuda_module

_View = tuple[int, int, int, int]


@dataclass(frozen=True)
class PackedLinear:
    """A weight as the kernels of a device read it: rows one after the other."""

    weight: Any
    isa: str = "cuda"

    @property
    def in_features(self) -> int:
        """The width of x."""
        return int(self.weight.shape[1])

    @property
    def out_features(self) -> int:
        """The width of the result."""
        return int(self.weight.shape[0])

    @property
    def dtype(self) -> str:
        """ "float32", "bfloat16" or "float16": x must have the same."""
        return _dtype_name("weight", self.weight)


def pack_linear(weight: Any, dtype: str | None = None) -> PackedLinear:
    """As minifuse.ops.pack_linear; None keeps the weight's own dtype."""
    if weight.ndim != 2:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, wanted 2 dimensions")
    name = dtype or _dtype_name("weight", weight)
    if name not in CUDA_DTYPES:
        raise ValueError(f"dtype is {name!r}, wanted one of {', '.join(CUDA_DTYPES)} on a device")
    copy = weight.detach().to(getattr(sys.modules["torch"], name), copy=True)
    return PackedLinear(copy.contiguous())


def layer_norm(x: Any, gamma: Any, beta: Any, eps: float = 1e-12, residual: Any = None) -> Any:
    """As minifuse.ops.layer_norm."""
    call = _Call("x", x)
    rows = call.rows("x", x)
    other = None
    if residual is not None:
        if residual.shape != x.shape:
            raise ValueError(f"residual has shape {tuple(residual.shape)}, wanted {tuple(x.shape)}")
        other = _view(call.rows("residual", residual))
    y = call.empty(*rows.shape)
    call.ops.layer_norm(
        call.stream,
        _view(rows),
        call.floats("gamma", gamma),
        call.floats("beta", beta),
        eps,
        other,
        _view(y),
    )
    return y.reshape(x.shape)


def linear(x: Any, weight: Any, bias: Any = None, activation: str | None = None) -> Any:
    """As minifuse.ops.linear."""
    call = _Call("x", x)
    return call.linear(x, "weight", weight, "bias", bias, activation)


def linear_residual_layer_norm(
    x: Any, weight: Any, bias: Any, residual: Any, gamma: Any, beta: Any, eps: float = 1e-12
) -> Any:
    """As minifuse.ops.linear_residual_layer_norm."""
    call = _Call("x", x)
    rows, matrix = call.rows("x", x), call.matrix("weight", weight)
    _check_width("weight", matrix, rows.shape[1])
    y = call.empty(len(rows), len(matrix))
    call.ops.linear_residual_layer_norm(
        call.stream,
        _view(rows),
        _view(matrix),
        call.optional_floats("bias", bias),
        _view(call.rows("residual", residual)),
        call.floats("gamma", gamma),
        call.floats("beta", beta),
        eps,
        _view(y),
    )
    return y.reshape(*x.shape[:-1], len(matrix))


def gelu_ffn(x: Any, w1: Any, b1: Any, w2: Any, b2: Any) -> Any:
    """As minifuse.ops.gelu_ffn; the intermediate rows go through the device's memory."""
    call = _Call("x", x)
    hidden = call.linear(x, "w1", w1, "b1", b1, "gelu")
    return call.linear(hidden, "w2", w2, "b2", b2, None)


def attention(q: Any, k: Any, v: Any, mask: Any = None, scale: float | None = None) -> Any:
    """As minifuse.ops.attention; a mask that is not bool is looked at, which waits."""
    call = _Call("q", q)
    batch, num_heads, seqlen_q, head_dim = _shape("q", q, 4)
    seqlen_k = _shape("k", k, 4)[2]
    wanted = (batch, num_heads, seqlen_k, head_dim)
    for name, tensor in (("k", k), ("v", v)):
        if _shape(name, tensor, 4) != wanted:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, wanted {wanted}")
    keep = None if mask is None else call.mask("mask", mask, (batch, seqlen_k))
    # [batch, heads, seqlen, head_dim] as [batch, seqlen, heads * head_dim]
    q, k, v = (tensor.transpose(1, 2).flatten(2) for tensor in (q, k, v))
    scale = native.softmax_scale(scale, head_dim)
    out = call.attention(q, k, v, keep, None, batch, num_heads, scale)
    return out.reshape(batch, seqlen_q, num_heads, head_dim).transpose(1, 2)


def attention_varlen(
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens: Any,
    scale: float | None = None,
    relative_bias: Any = None,
) -> Any:
    """As minifuse.ops.attention_varlen; cu_seqlens on the CPU saves waiting for the device."""
    if relative_bias is not None:
        raise ValueError("relative_bias: only tensors on the CPU have it, wanted None")
    call = _Call("q", q)
    wanted = _shape("q", q, 3)
    for name, tensor in (("k", k), ("v", v)):
        if _shape(name, tensor, 3) != wanted:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, wanted {wanted}")
    _, num_heads, head_dim = wanted
    offsets = call.offsets(cu_seqlens, len(q))
    tiles = call.upload(cuda_module().attention_tiles(offsets))
    q, k, v = (tensor.flatten(1) for tensor in (q, k, v))
    scale = native.softmax_scale(scale, head_dim)
    return call.attention(q, k, v, None, tiles, 0, num_heads, scale).reshape(wanted)


def masked_mean_pool(x: Any, attention_mask: Any) -> Any:
    """As minifuse.ops.masked_mean_pool; a mask that is not bool is looked at, which waits."""
    call = _Call("x", x)
    batch, seqlen, _ = _shape("x", x, 3)
    keep = call.mask("attention_mask", attention_mask, (batch, seqlen))
    offsets = sys.modules["torch"].arange(batch + 1, dtype=sys.modules["torch"].int32,
                                          device=x.device) * seqlen  # fmt: skip
    return call.mean_pool(x, offsets, keep)


def mean_pool_varlen(x: Any, cu_seqlens: Any) -> Any:
    """As minifuse.ops.mean_pool_varlen; cu_seqlens on the CPU saves waiting for the device."""
    call = _Call("x", x)
    _shape("x", x, 2)
    return call.mean_pool(x, call.upload(call.offsets(cu_seqlens, len(x))), None)


class _Call:
    """Device and type of a call's first tensor; converts the other tensors to them.

    It keeps copies that it made until the kernel has been put onto the stream; from then on torch
    lets nobody else use their memory before the kernel is done.
    """

    def __init__(self, name: str, first: Any) -> None:
        self._first = first.detach()
        self._kept: list[Any] = []
        self.ops = _ops(first.device.index or 0, _dtype_name(name, first))
        self.stream = _current_stream(first.device)

    def _check(self, name: str, tensor: Any) -> Any:
        if not native.is_tensor(tensor):
            raise TypeError(
                f"{name} is a {type(tensor).__name__}, wanted a tensor on {self._first.device}"
            )
        if tensor.device != self._first.device:
            raise ValueError(
                f"{name} is on device {tensor.device}, wanted {self._first.device}: "
                f"pass {name}.to({str(self._first.device)!r})"
            )
        return tensor.detach()

    def _keep_aligned(self, tensor: Any) -> Any:
        if tensor.data_ptr() % 16:
            tensor = tensor.clone()
        self._kept.append(tensor)
        return tensor

    def empty(self, *shape: int) -> Any:
        """A new tensor on the device, of the call's type."""
        return self._first.new_empty(shape)

    def rows(self, name: str, x: Any) -> Any:
        """x [..., K] as [M, K]."""
        x = self._check(name, x)
        if x.dtype != self._first.dtype:
            raise TypeError(f"{name} has dtype {x.dtype}, wanted {self._first.dtype}")
        if x.ndim == 0:
            raise ValueError(f"{name} is a scalar, wanted at least one dimension")
        x = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        if x.stride(1) != 1 or x.stride(0) < x.shape[1] or x.stride(0) * x.element_size() % 16:
            x = x.contiguous()
        return self._keep_aligned(x)

    def matrix(self, name: str, weight: Any) -> Any:
        """A weight [N, K], packed or not, contiguous."""
        if isinstance(weight, PackedLinear):
            weight = weight.weight
        if _shape(name, weight, 2)[1] == 0:
            raise ValueError(f"{name} has no columns")
        return self.rows(name, weight.contiguous())

    def floats(self, name: str, vector: Any) -> _View:
        """[H] in float32."""
        vector = self._check(name, vector)
        if vector.ndim != 1 or not vector.is_floating_point():
            raise ValueError(
                f"{name} has shape {tuple(vector.shape)} and dtype {vector.dtype}, wanted one "
                "dimension of floats"
            )
        return _flat(self._keep_aligned(vector.float().contiguous()))

    def optional_floats(self, name: str, vector: Any) -> _View | None:
        """The same, or None."""
        return None if vector is None else self.floats(name, vector)

    def mask(self, name: str, mask: Any, shape: tuple[int, ...]) -> _View:
        """A byte an element, 0 or 1."""
        mask = self._check(name, mask)
        if tuple(mask.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(mask.shape)}, wanted {shape}")
        torch = sys.modules["torch"]
        keep = mask if mask.dtype == torch.bool else mask != 0
        if keep is not mask and bool((keep != mask).any()):
            raise ValueError(f"{name} has values other than 0 and 1 (1 keeps a token)")
        self._kept.append(keep.contiguous().view(torch.uint8))
        return _flat(self._kept[-1])

    def offsets(self, cu_seqlens: Any, num_rows: int) -> npt.NDArray[np.int32]:
        """cu_seqlens on the host, found to describe num_rows rows."""
        if native.is_tensor(cu_seqlens):
            cu_seqlens = cu_seqlens.cpu()
        array = native.as_int32("cu_seqlens", cu_seqlens)
        cuda_module().check_offsets("cu_seqlens", array, num_rows)
        return array

    def upload(self, array: npt.NDArray[np.int32]) -> Any:
        """The array on the device."""
        self._kept.append(sys.modules["torch"].from_numpy(array).to(self._first.device))
        return self._kept[-1]

    # ---- the ops that two functions share -----------------------------------------------------

    def linear(
        self, x: Any, weight_name: str, weight: Any, bias_name: str, bias: Any,
        activation: str | None,
    ) -> Any:  # fmt: skip
        """activation(x W^T + bias)."""
        rows, matrix = self.rows("x", x), self.matrix(weight_name, weight)
        _check_width(weight_name, matrix, rows.shape[1])
        y = self.empty(len(rows), len(matrix))
        self.ops.linear(self.stream, _view(rows), _view(matrix),
                        self.optional_floats(bias_name, bias), activation or "none",
                        _view(y))  # fmt: skip
        return y.reshape(*x.shape[:-1], len(matrix))

    def attention(self, q: Any, k: Any, v: Any, mask: _View | None, tiles: Any, batch: int,
                  num_heads: int, scale: float) -> Any:  # fmt: skip
        """softmax(scale q k^T) v of rows [M, heads * head_dim]."""
        q, k, v = self.rows("q", q), self.rows("k", k), self.rows("v", v)
        out = self.empty(*q.shape)
        self.ops.attention(self.stream, _view(q), _view(k), _view(v), mask,
                           None if tiles is None else _view(tiles), batch, num_heads, scale,
                           _view(out))  # fmt: skip
        return out

    def mean_pool(self, x: Any, cu_seqlens: Any, mask: _View | None) -> Any:
        """The mean of each sentence's rows, in x's dtype."""
        rows = self.rows("x", x)
        y = rows.new_empty((len(cu_seqlens) - 1, rows.shape[1]), dtype=sys.modules["torch"].float32)
        self.ops.mean_pool(self.stream, _view(rows), _flat(cu_seqlens), mask, _view(y))
        return y.to(rows.dtype)


def _view(rows: Any) -> _View:
    return rows.data_ptr(), rows.shape[0], rows.shape[1], rows.stride(0)


def _flat(tensor: Any) -> _View:
    return tensor.data_ptr(), 1, tensor.numel(), tensor.numel()


def _shape(name: str, tensor: Any, ndim: int) -> tuple[int, ...]:
    if not native.is_tensor(tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}, wanted a tensor")
    if tensor.ndim != ndim:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, wanted {ndim} dimensions")
    return tuple(tensor.shape)


def _check_width(name: str, matrix: Any, width: int) -> None:
    if matrix.shape[1] != width:
        raise ValueError(f"{name} has shape {tuple(matrix.shape)}, wanted (rows, {width})")


def _dtype_name(name: str, tensor: Any) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in CUDA_DTYPES:
        raise TypeError(f"{name} has dtype {dtype}, wanted one of {', '.join(CUDA_DTYPES)}")
    return dtype


@functools.cache
def _ops(device: int, dtype: str) -> Any:
    return cuda_module().Ops(device, dtype)


def _current_stream(device: Any) -> int:
    """The handle of the stream that torch would put its own work onto."""
    return int(sys.modules["torch"].cuda.current_stream(device).cuda_stream)
