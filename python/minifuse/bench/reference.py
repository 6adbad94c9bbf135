"""Every operation in float64 NumPy, as plain as its equation: the referee of tests and parity.

Nothing here is fast, and nothing of the package but `minifuse parity` and the tests uses it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from minifuse.models.description import ModelDescription
from minifuse.models.layer import by_pair, frequencies_of

__all__ = [
    "Float64",
    "attention",
    "erf",
    "gelu",
    "gelu_ffn",
    "gelu_new",
    "layer_norm",
    "linear",
    "mean_pool",
    "relative_error",
    "rotated",
]

F64 = npt.NDArray[np.float64]

_erf = np.frompyfunc(math.erf, 1, 1)


def f64(x: Any) -> F64:
    """As float64."""
    return np.asarray(x, np.float64)


def erf(x: Any) -> F64:
    """The error function."""
    return np.asarray(_erf(f64(x)), np.float64)


def gelu(x: Any) -> F64:
    """x/2 (1 + erf(x / sqrt 2))."""
    x = f64(x)
    return f64(x / 2 * (1 + erf(x / math.sqrt(2))))


def gelu_new(x: Any) -> F64:
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
    x = f64(x)
    return f64(x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


_ACTIVATIONS: dict[str | None, Callable[[Any], F64]] = {
    None: f64,
    "gelu": gelu,
    "gelu_new": gelu_new,
    "relu": lambda x: f64(np.maximum(x, 0)),
    "silu": lambda x: f64(x / (1 + np.exp(-f64(x)))),
}


def linear(x: Any, weight: Any, bias: Any = None, activation: str | None = None) -> F64:
    """activation(x W^T + b)."""
    y = f64(x) @ f64(weight).T
    return _ACTIVATIONS[activation](y if bias is None else y + f64(bias))


def layer_norm(x: Any, gamma: Any, beta: Any, eps: float = 1e-12, residual: Any = None) -> F64:
    """(x + r - mean) / sqrt(var + eps) * gamma + beta over the last dimension."""
    x = f64(x) if residual is None else f64(x) + f64(residual)
    mean = x.mean(-1, keepdims=True)
    var = ((x - mean) ** 2).mean(-1, keepdims=True)
    return f64((x - mean) / np.sqrt(var + eps) * f64(gamma) + (0.0 if beta is None else f64(beta)))


def gelu_ffn(x: Any, w1: Any, b1: Any, w2: Any, b2: Any, activation: str = "gelu") -> F64:
    """activation(x W1^T + b1) W2^T + b2."""
    return linear(linear(x, w1, b1, activation), w2, b2)


def attention(
    q: Any, k: Any, v: Any, mask: Any = None, scale: float | None = None, bias: Any = 0.0
) -> F64:
    """softmax(scale q k^T + bias) v over [..., seqlen, head_dim]; mask [..., seqlen_k], True keeps.

    bias [..., seqlen, seqlen_k].
    """
    q, k, v = f64(q), f64(k), f64(v)
    scores = q @ np.swapaxes(k, -1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores + f64(bias)
    keep = np.ones(k.shape[-2], bool) if mask is None else np.asarray(mask, bool)
    keep = np.broadcast_to(keep[..., None, :] if keep.ndim > 1 else keep, scores.shape)
    scores = np.where(keep, scores, -np.inf)
    top = scores.max(-1, keepdims=True, initial=-1e300)
    weights = np.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    return f64(np.divide(weights, total, out=np.zeros_like(weights), where=total > 0) @ v)


def rotated(x: Any, num_heads: int, frequencies: Any) -> F64:
    """Rows x [seqlen, heads * head_dim], each head of row i turned by i times the frequencies."""
    x = f64(x)
    heads = x.reshape(len(x), num_heads, -1)
    places = np.arange(len(x), dtype=np.float32)
    turn = f64(places[:, None] * frequencies)[:, None]  # rounded to float32, as a model has it
    a, b = np.split(heads, 2, axis=2)
    cosine, sine = np.cos(turn), np.sin(turn)
    return f64(np.concatenate([a * cosine - b * sine, b * cosine + a * sine], 2).reshape(x.shape))


def mean_pool(x: Any, mask: Any) -> F64:
    """The mean of the rows of x [batch, seqlen, H] that mask [batch, seqlen] keeps; none: zeros."""
    m = f64(mask)[..., None]
    return f64((f64(x) * m).sum(1) / np.maximum(m.sum(1), 1))


class Float64:
    """The steps of minifuse.models.layer in float64 NumPy, on one sentence."""

    @staticmethod
    def rows(table: Any, ids: Any) -> F64:
        """Rows of a table."""
        return f64(table[ids])

    linear = staticmethod(linear)
    layer_norm = staticmethod(layer_norm)

    @staticmethod
    def projections(x: Any, *parts: tuple[Any, Any]) -> list[F64]:
        """x W^T + b for each part."""
        return [linear(x, *part) for part in parts]

    @staticmethod
    def rms_norm(x: Any, gamma: Any, eps: float) -> F64:
        """x / sqrt(mean(x^2) + eps) * gamma."""
        x = f64(x)
        return f64(x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * f64(gamma))

    @classmethod
    def heads(
        cls, projections: list[F64], description: ModelDescription, layer: int, of: Any
    ) -> list[F64]:
        """Heads of query and key through their norms and turned by their positions."""
        frequencies, width = frequencies_of(description, layer), description.columns_of_head()
        placed = []
        for name, x in zip(("query_norm", "key_norm"), projections[:2], strict=True):
            heads = x.reshape(len(x), -1, width)
            if description.has_head_norms:
                heads = cls.rms_norm(heads, of(name)[0], description.layer_norm_eps)
            placed.append(heads.reshape(x.shape))
            if frequencies is not None:
                placed[-1] = rotated(placed[-1], heads.shape[1], frequencies)
        return [*placed, projections[2]]

    @staticmethod
    def attention(
        projections: list[F64], description: ModelDescription, layer: int, bias: Any = None
    ) -> F64:
        """softmax(scale Q K^T + bias) V of each head, [seqlen, heads * D]."""
        width, heads = description.columns_of_head(), description.num_attention_heads
        q, k, v = (y.reshape(len(y), -1, width).swapaxes(0, 1) for y in projections)
        k, v = (np.repeat(y, heads // len(y), axis=0) for y in (k, v))
        biases = 0.0 if bias is None else by_pair(f64(bias), q.shape[1])
        context = attention(q, k, v, scale=description.attention_scale or None, bias=biases)
        return f64(context.swapaxes(0, 1).reshape(projections[0].shape))

    @staticmethod
    def dropped(x: Any, layer: int, place: int) -> Any:
        """x: nothing is dropped."""
        return x


def relative_error(actual: Any, expected: Any) -> float:
    """Frobenius norm of the difference over that of expected."""
    expected = f64(expected)
    scale = float(np.linalg.norm(expected))
    return float(np.linalg.norm(f64(actual) - expected)) / (scale or 1.0)
