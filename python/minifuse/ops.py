"""Each fused kernel on its own, on NumPy arrays and torch tensors of the CPU or of a CUDA device.

On the CPU everything is float32. Contiguous inputs are taken without a copy, read-only ones too;
other strides are copied. Arrays in, array out; tensors in, tensor out (the first argument decides).
CUDA tensors, in float32, bfloat16 or float16, stay where they are (cuda_ops.py). Wrong dtypes raise
TypeError, wrong shapes and devices ValueError, naming the argument, what was given and what is
wanted. The equations are those of the post-LN BERT encoder (Devlin et al. 2019).
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, TypeVar

from minifuse import native
from minifuse.native import core

__all__ = [
    "attention",
    "attention_varlen",
    "gelu_ffn",
    "layer_norm",
    "linear",
    "linear_residual_layer_norm",
    "masked_mean_pool",
    "mean_pool_varlen",
    "pack_linear",
]

PackedLinear = core.PackedLinear

_Op = TypeVar("_Op", bound=Callable[..., Any])


def _on_its_device(op: _Op) -> _Op:
    """Leave calls whose first argument is on a CUDA device to the namesake in cuda_ops."""

    name = next(iter(inspect.signature(op).parameters))

    @functools.wraps(op)
    def call(*args: Any, **kwargs: Any) -> Any:
        if native.is_cuda_tensor(args[0] if args else kwargs.get(name)):
            from minifuse.native import cuda_ops

            return getattr(cuda_ops, op.__name__)(*args, **kwargs)
        return op(*args, **kwargs)

    return call  # type: ignore[return-value]


@_on_its_device
def pack_linear(weight: Any, dtype: str | None = None) -> Any:
    """Reorder a weight once into the kernels' panels; the result is accepted wherever a weight is.

    Args:
        weight: [out_features, in_features] float32, as torch.nn.Linear stores it.
        dtype: "float32", as None means; "bfloat16", rounded to nearest even, multiplied in float32;
            or "int8", a scale per output channel, against rows of x that are quantised one by one
            to 8 bits with a zero point, the sums exact in int32. On a CUDA device None means the
            weight's own.

    Returns:
        An opaque matrix with in_features, out_features, dtype and isa; it keeps no reference to
        weight.

    Raises:
        ValueError: another dtype.
    """
    name = native.as_name("dtype", dtype, "float32")
    return core.pack_linear(native.as_float32("weight", weight, 2), name)


def _packed(name: str, weight: Any) -> core.PackedLinear:
    if isinstance(weight, core.PackedLinear):
        return weight
    return core.pack_linear(native.as_float32(name, weight, 2), "float32")


def _optional(name: str, value: Any, ndim: int = 1) -> native.FloatArray | None:
    return None if value is None else native.as_float32(name, value, ndim)


def _rows(name: str, x: Any) -> tuple[native.FloatArray, tuple[int, ...]]:
    """x [..., K] as [M, K], and the leading shape to give back."""
    array = native.as_float32(name, x)
    if array.ndim == 0:
        raise ValueError(f"{name} is a scalar, wanted at least one dimension")
    rows = math.prod(array.shape[:-1])
    return array.reshape(rows, array.shape[-1]), array.shape[:-1]


@_on_its_device
def layer_norm(x: Any, gamma: Any, beta: Any, eps: float = 1e-12, residual: Any = None) -> Any:
    """LayerNorm(x + residual) * gamma + beta over the last dimension (Ba et al. 2016).

    Biased variance; two passes, the second correcting the mean.

    Args:
        x: [..., H].
        gamma, beta: [H].
        eps: added to the variance.
        residual: the shape of x, or None.

    Returns:
        The shape of x.
    """
    rows, lead = _rows("x", x)
    other = None
    if residual is not None:
        other, residual_lead = _rows("residual", residual)
        if residual_lead != lead or other.shape != rows.shape:
            given = (*residual_lead, other.shape[-1])
            raise ValueError(f"residual has shape {given}, wanted {(*lead, rows.shape[-1])}")
    y = core.layer_norm(
        rows,
        native.as_float32("gamma", gamma, 1),
        native.as_float32("beta", beta, 1),
        eps,
        other,
    )
    return native.like(y.reshape(*lead, rows.shape[-1]), x)


@_on_its_device
def linear(x: Any, weight: Any, bias: Any = None, activation: str | None = None) -> Any:
    """activation(x W^T + bias).

    Args:
        x: [..., in_features].
        weight: [out_features, in_features], or pack_linear(weight), which is faster.
        bias: [out_features], or None.
        activation: None, "gelu" (exact, by erf), "gelu_new" (by tanh) or "relu".

    Returns:
        [..., out_features].
    """
    rows, lead = _rows("x", x)
    name = native.as_name("activation", activation, "none")
    y = core.linear(rows, _packed("weight", weight), _optional("bias", bias), name)
    return native.like(y.reshape(*lead, y.shape[-1]), x)


@_on_its_device
def linear_residual_layer_norm(
    x: Any, weight: Any, bias: Any, residual: Any, gamma: Any, beta: Any, eps: float = 1e-12
) -> Any:
    """LayerNorm(x W^T + bias + residual) * gamma + beta, in one pass over row blocks in cache.

    Args:
        x: [..., in_features].
        weight: [out_features, in_features], or pack_linear(weight).
        bias: [out_features], or None.
        residual: [..., out_features].
        gamma, beta: [out_features].
        eps: added to the variance.

    Returns:
        [..., out_features].
    """
    rows, lead = _rows("x", x)
    other, _ = _rows("residual", residual)
    y = core.linear_residual_layer_norm(
        rows,
        _packed("weight", weight),
        _optional("bias", bias),
        other,
        native.as_float32("gamma", gamma, 1),
        native.as_float32("beta", beta, 1),
        eps,
    )
    return native.like(y.reshape(*lead, y.shape[-1]), x)


@_on_its_device
def gelu_ffn(x: Any, w1: Any, b1: Any, w2: Any, b2: Any) -> Any:
    """GELU(x W1^T + b1) W2^T + b2; the intermediate rows stay in cache.

    Args:
        x: [..., H].
        w1: [F, H], or pack_linear(w1); b1: [F], or None.
        w2: [H_out, F], or pack_linear(w2); b2: [H_out], or None.

    Returns:
        [..., H_out].
    """
    rows, lead = _rows("x", x)
    y = core.gelu_ffn(
        rows, _packed("w1", w1), _optional("b1", b1), _packed("w2", w2), _optional("b2", b2)
    )
    return native.like(y.reshape(*lead, y.shape[-1]), x)


@_on_its_device
def attention(q: Any, k: Any, v: Any, mask: Any = None, scale: float | None = None) -> Any:
    """softmax(scale q k^T) v per sentence and head (Vaswani et al. 2017, equation 1).

    Args:
        q: [batch, heads, seqlen, head_dim]; strided views are taken without a copy as long as the
            last dimension is contiguous.
        k, v: [batch, heads, seqlen_k, head_dim].
        mask: [batch, seqlen_k], bool or 0/1, 1 keeps a key; None keeps all. A sentence whose keys
            are all masked gives zeros.
        scale: 1 / sqrt(head_dim) if None.

    Returns:
        The shape of q.
    """
    queries = native.as_strided_float32("q", q, 4)
    out = core.attention(
        queries,
        native.as_strided_float32("k", k, 4),
        native.as_strided_float32("v", v, 4),
        None if mask is None else native.as_mask("mask", mask, 2),
        native.softmax_scale(scale, queries.shape[-1]),
    )
    return native.like(out, q)


@_on_its_device
def attention_varlen(
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens: Any,
    scale: float | None = None,
    relative_bias: Any = None,
) -> Any:
    """Attention within each sentence of a packed batch: no padding, no mask.

    Args:
        q, k, v: [total_tokens, heads, head_dim].
        cu_seqlens: int32 [batch + 1]; sentence b owns rows cu_seqlens[b] .. cu_seqlens[b + 1] - 1.
        scale: 1 / sqrt(head_dim) if None.
        relative_bias: [heads, 2 P - 1] for sentences of at most P tokens: relative_bias[h, P - 1 +
            j - i] is added to the scaled score of query i and key j (Raffel et al. 2020; Press et
            al. 2022). On the CPU only.

    Returns:
        [total_tokens, heads, head_dim].
    """
    queries = native.as_strided_float32("q", q, 3)
    out = core.attention_varlen(
        queries,
        native.as_strided_float32("k", k, 3),
        native.as_strided_float32("v", v, 3),
        native.as_int32("cu_seqlens", cu_seqlens),
        native.softmax_scale(scale, queries.shape[-1]),
        None if relative_bias is None else native.as_float32("relative_bias", relative_bias, 2),
    )
    return native.like(out, q)


@_on_its_device
def masked_mean_pool(x: Any, attention_mask: Any) -> Any:
    """The mean of the rows that the mask keeps (Reimers and Gurevych 2019).

    Args:
        x: [batch, seqlen, H].
        attention_mask: [batch, seqlen], bool or 0/1, 1 keeps a token.

    Returns:
        [batch, H]; zeros for a fully masked row.
    """
    y = core.masked_mean_pool(
        native.as_float32("x", x, 3), native.as_mask("attention_mask", attention_mask, 2)
    )
    return native.like(y, x)


@_on_its_device
def mean_pool_varlen(x: Any, cu_seqlens: Any) -> Any:
    """The mean of each sentence's rows in a packed batch.

    Args:
        x: [total_tokens, H].
        cu_seqlens: int32 [batch + 1].

    Returns:
        [batch, H]; zeros for a sentence without tokens.
    """
    y = core.mean_pool_varlen(
        native.as_float32("x", x, 2), native.as_int32("cu_seqlens", cu_seqlens)
    )
    return native.like(y, x)
