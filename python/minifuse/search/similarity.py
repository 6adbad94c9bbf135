"""Similarities, normalisation and quantisation, by sentence-transformers' names.

Inputs are arrays, tensors or lists of them, [n, d] or [d]. Arrays in, array out; where an input is
a torch tensor the result is one.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from minifuse import native
from minifuse.tensors import result_like

__all__ = [
    "PRECISIONS",
    "SIMILARITIES",
    "SimilarityFunction",
    "as_matrix",
    "cos_sim",
    "dot_score",
    "euclidean_sim",
    "manhattan_sim",
    "name_of",
    "normalize_embeddings",
    "pairwise_angle_sim",
    "pairwise_cos_sim",
    "pairwise_dot_score",
    "pairwise_euclidean_sim",
    "pairwise_manhattan_sim",
    "quantize_embeddings",
    "truncate_embeddings",
    "unit_rows",
]

Array = npt.NDArray[Any]
PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")


def as_matrix(name: str, value: Any) -> tuple[Array, Any]:
    """A float array [n, d] and the tensor that the result should be like, if any."""
    example = value
    if isinstance(value, (list, tuple)) and value:
        example = value[0]
        value = np.stack([_plain(one) for one in value])
    array = np.asarray(_plain(value))
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name} has dtype {array.dtype}, wanted numbers")
    if array.dtype != np.float64:
        array = array.astype(np.float32, copy=False)
    if array.ndim == 1:
        array = array[None, :]
    if array.ndim != 2:
        raise ValueError(f"{name} has shape {array.shape}, wanted [n, d] or [d]")
    return array, example


def _plain(value: Any) -> Any:
    if native.is_tensor(value):
        tensor = value.detach().cpu()
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return value


def _pair(a: Any, b: Any) -> tuple[Array, Array, Any]:
    x, example_a = as_matrix("a", a)
    y, example_b = as_matrix("b", b)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"a has {x.shape[1]} dimensions and b has {y.shape[1]}, wanted the same")
    return x, y, example_a if native.is_tensor(example_a) else example_b


def _rows_pair(a: Any, b: Any) -> tuple[Array, Array, Any]:
    x, y, example = _pair(a, b)
    if len(x) != len(y):
        raise ValueError(f"a has {len(x)} rows and b has {len(y)}, wanted the same number")
    return x, y, example


def unit_rows(x: Array) -> Array:
    """Rows divided by max(||row||, 1e-12): [n, d]."""
    norms: Array = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x / np.maximum(norms, 1e-12))


def cos_sim(a: Any, b: Any) -> Any:
    """Cosine of every row of a with every row of b: [n_a, n_b]."""
    x, y, example = _pair(a, b)
    return result_like(unit_rows(x) @ unit_rows(y).T, example)


def dot_score(a: Any, b: Any) -> Any:
    """Dot product of every row of a with every row of b: [n_a, n_b]."""
    x, y, example = _pair(a, b)
    return result_like(x @ y.T, example)


def euclidean_sim(a: Any, b: Any) -> Any:
    """Minus the Euclidean distance: [n_a, n_b]."""
    x, y, example = _pair(a, b)
    result = np.result_type(x, y)
    # In float64: what is left of |x|^2 + |y|^2 - 2 x y where x is near y are float32's roundings.
    x, y = x.astype(np.float64), y.astype(np.float64)
    squares = (x * x).sum(1)[:, None] + (y * y).sum(1)[None, :] - 2 * (x @ y.T)
    return result_like(-np.sqrt(np.maximum(squares, 0)).astype(result), example)


def manhattan_sim(a: Any, b: Any) -> Any:
    """Minus the sum of absolute differences: [n_a, n_b]."""
    x, y, example = _pair(a, b)
    out = np.empty((len(x), len(y)), np.result_type(x, y))
    for i, row in enumerate(x):
        out[i] = -np.abs(row - y).sum(1)
    return result_like(out, example)


def pairwise_cos_sim(a: Any, b: Any) -> Any:
    """Cosine of a[i] with b[i]: [n]."""
    x, y, example = _rows_pair(a, b)
    return result_like((unit_rows(x) * unit_rows(y)).sum(1), example)


def pairwise_dot_score(a: Any, b: Any) -> Any:
    """Dot product of a[i] with b[i]: [n]."""
    x, y, example = _rows_pair(a, b)
    return result_like((x * y).sum(1), example)


def pairwise_euclidean_sim(a: Any, b: Any) -> Any:
    """Minus the Euclidean distance of a[i] and b[i]: [n]."""
    x, y, example = _rows_pair(a, b)
    return result_like(-np.linalg.norm(x - y, axis=1), example)


def pairwise_manhattan_sim(a: Any, b: Any) -> Any:
    """Minus the sum of absolute differences of a[i] and b[i]: [n]."""
    x, y, example = _rows_pair(a, b)
    return result_like(-np.abs(x - y).sum(1), example)


def pairwise_angle_sim(x: Any, y: Any) -> Any:
    """The absolute AnglE similarity of x[i] and y[i] (Li and Li 2023, arXiv:2309.12871): [n].

    |cos + sin| of unit rows, whose dimensions i and i + d/2 are the parts of a complex number; an
    odd d is filled up with a zero.
    """
    first, second, example = _rows_pair(x, y)
    odd = ((0, 0), (0, first.shape[1] % 2))
    a, b = (unit_rows(np.pad(one, odd)) for one in (first, second))
    half = a.shape[1] // 2
    sines = (a[:, half:] * b[:, :half] - a[:, :half] * b[:, half:]).sum(1)
    return result_like(np.abs((a * b).sum(1) + sines), example)


def normalize_embeddings(embeddings: Any) -> Any:
    """Rows divided by max(||row||, 1e-12): [n, d]."""
    x, example = as_matrix("embeddings", embeddings)
    return native.like(unit_rows(x), example)


def truncate_embeddings(embeddings: Any, truncate_dim: int | None) -> Any:
    """The first truncate_dim columns; all of them for None."""
    return embeddings if truncate_dim is None else embeddings[..., :truncate_dim]


SIMILARITIES: dict[str, tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]] = {
    "cosine": (cos_sim, pairwise_cos_sim),
    "dot": (dot_score, pairwise_dot_score),
    "euclidean": (euclidean_sim, pairwise_euclidean_sim),
    "manhattan": (manhattan_sim, pairwise_manhattan_sim),
}


def name_of(value: Any) -> str:
    """Return the name of a similarity, given by it or by a member of SimilarityFunction.

    Raises:
        ValueError: there is none of that name.
    """
    name = str(getattr(value, "value", value))
    if name in ("maxsim", "meanmaxsim"):
        raise ValueError(
            f"similarity_fn_name is {name!r}, which compares the rows of all tokens: that takes "
            "sentence-transformers' MultiVectorEncoder"
        )
    if name not in SIMILARITIES:
        raise ValueError(f"similarity_fn_name is {name!r}, wanted one of {', '.join(SIMILARITIES)}")
    return name


class SimilarityFunction(Enum):
    """Names of similarities, as sentence-transformers has them."""

    COSINE = "cosine"
    DOT_PRODUCT = "dot"
    DOT = "dot"
    EUCLIDEAN = "euclidean"
    MANHATTAN = "manhattan"

    @staticmethod
    def to_similarity_fn(similarity_function: str | SimilarityFunction) -> Callable[..., Any]:
        """Return the function of every row with every row."""
        return SIMILARITIES[SimilarityFunction(similarity_function).value][0]

    @staticmethod
    def to_similarity_pairwise_fn(
        similarity_function: str | SimilarityFunction,
    ) -> Callable[..., Any]:
        """Return the function of row i with row i."""
        return SIMILARITIES[SimilarityFunction(similarity_function).value][1]

    @staticmethod
    def possible_values() -> list[str]:
        """Return the names."""
        return [one.value for one in SimilarityFunction]


def quantize_embeddings(
    embeddings: Any,
    precision: str,
    ranges: Array | None = None,
    calibration_embeddings: Array | None = None,
) -> Array:
    """Embeddings [n, d] in fewer bits, as sentence-transformers does it.

    Args:
        embeddings: floats [n, d].
        precision: "float32"; "int8" or "uint8" (256 buckets a dimension between its minimum and
            maximum); "binary" or "ubinary" (the sign, eight dimensions a byte).
        ranges: [2, d], minimum and maximum of each dimension.
        calibration_embeddings: where the ranges are read from if not given; else the embeddings.

    Raises:
        ValueError: an unknown precision, or ranges that would come from a single vector.
    """
    x, _ = as_matrix("embeddings", embeddings)
    if precision == "float32":
        return x.astype(np.float32)
    if precision in ("int8", "uint8"):
        if ranges is None:
            source = x if calibration_embeddings is None else np.asarray(calibration_embeddings)
            if len(source) < 2 and len(x):
                raise ValueError(
                    f"precision {precision!r} needs a range per dimension, which one vector does "
                    "not give: pass ranges or calibration_embeddings, or encode several texts"
                )
            ranges = (
                np.stack([source.min(0), source.max(0)])
                if len(source)
                else np.zeros((2, x.shape[1]))
            )
        ranges = np.asarray(_plain(ranges), np.float32)
        if ranges.shape != (2, x.shape[1]) or not np.isfinite(ranges).all():
            raise ValueError(
                f"ranges has shape {ranges.shape}, wanted finite numbers [2, {x.shape[1]}]: "
                "minimum and maximum of each dimension"
            )
        starts = ranges[0]
        steps = (ranges[1] - starts) / 255
        steps = np.where(steps == 0, 1, steps)
        buckets = np.clip(np.floor((x - starts) / steps), 0, 255)
        if precision == "uint8":
            return np.asarray(buckets, np.uint8)
        return np.asarray(buckets - 128, np.int8)
    if precision == "ubinary":
        return np.packbits(x > 0, axis=-1)
    if precision == "binary":
        return (np.packbits(x > 0, axis=-1).astype(np.int16) - 128).astype(np.int8)
    raise ValueError(f"Precision {precision!r} is not supported, must be one of {list(PRECISIONS)}")
