"""Arrays on their way to the compiled core: arrays and tensors in, C-contiguous arrays across.

A CPU torch tensor shares its memory with the array made from it; other strides are copied. torch is
never imported here: a tensor can only be given where somebody else has imported it.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["FloatArray", "as_float32", "as_int32", "as_mask", "as_name", "as_strided_float32",
           "is_cuda_tensor", "is_tensor", "like", "softmax_scale"]  # fmt: skip

FloatArray = npt.NDArray[np.float32]


def is_tensor(value: object) -> bool:
    """Return whether value is a torch.Tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_cuda_tensor(value: object) -> bool:
    """Return whether value is a torch.Tensor on a CUDA device."""
    return is_tensor(value) and bool(value.device.type == "cuda")  # type: ignore[attr-defined]


def softmax_scale(scale: float | None, head_dim: int) -> float:
    """Return the factor of the attention scores: 1 / sqrt(head_dim) if scale is None.

    Raises:
        ValueError: not finite.
    """
    if scale is None:
        return 1.0 / math.sqrt(max(head_dim, 1))
    if not abs(scale) <= 3.4e38:  # the kernels use float32
        raise ValueError(f"scale is {scale}, wanted a finite number of float32")
    return float(scale)


def as_name(name: str, value: object, default: str) -> str:
    """A string that names a choice; the default for None.

    Raises:
        TypeError: something else.
    """
    if value is None:
        return default
    if not isinstance(value, str):
        raise TypeError(f"{name} is a {type(value).__name__}, wanted a string")
    return value or default


def like(result: FloatArray, example: object) -> Any:
    """The result as a tensor where example is one, sharing memory; else as it is."""
    if is_tensor(example):
        return sys.modules["torch"].from_numpy(result)
    return result


def _as_array(name: str, value: object) -> npt.NDArray[Any]:
    if isinstance(value, np.ndarray):
        return value
    if is_tensor(value):
        tensor: Any = value
        if tensor.device.type != "cpu":
            raise ValueError(
                f"{name} is on device {tensor.device}, wanted the CPU: pass {name}.cpu()"
            )
        if tensor.dtype == sys.modules["torch"].bfloat16:
            raise TypeError(f"{name} has dtype bfloat16, wanted float32: pass {name}.float()")
        array: npt.NDArray[Any] = tensor.detach().numpy()
        return array
    if hasattr(value, "__dlpack__"):
        return np.from_dlpack(value)
    raise TypeError(
        f"{name} is a {type(value).__name__}, wanted a NumPy array or a CPU torch tensor"
    )


def as_strided_float32(name: str, value: object, ndim: int) -> FloatArray:
    """A float32 array of ndim dimensions whose last one is contiguous; others may have any stride.

    Raises:
        TypeError: not an array or tensor, or another dtype.
        ValueError: another number of dimensions, or a tensor on another device.
    """
    array = _as_array(name, value)
    if array.dtype != np.float32:
        raise TypeError(f"{name} has dtype {array.dtype}, wanted float32: convert it first")
    if array.ndim != ndim:
        raise ValueError(f"{name} has shape {array.shape}, wanted {ndim} dimensions")
    itemsize = array.itemsize
    usable = array.flags.aligned and array.size > 0
    if not usable or array.strides[-1] != itemsize or any(s % itemsize for s in array.strides):
        array = np.ascontiguousarray(array)
    return array


def as_float32(name: str, value: object, ndim: int | None = None) -> FloatArray:
    """A C-contiguous float32 array, without a copy where value is one already.

    Raises as as_strided_float32 does.
    """
    array = _as_array(name, value)
    if array.dtype != np.float32:
        raise TypeError(f"{name} has dtype {array.dtype}, wanted float32: convert it first")
    if ndim is not None and array.ndim != ndim:
        raise ValueError(f"{name} has shape {array.shape}, wanted {ndim} dimensions")
    if not (array.flags.c_contiguous and array.flags.aligned):
        array = np.ascontiguousarray(array)
    return array


def as_int32(name: str, value: object) -> npt.NDArray[np.int32]:
    """A C-contiguous one-dimensional int32 array from integers of any width that fit.

    Raises:
        TypeError: not integers.
        ValueError: not one-dimensional, or a value beyond int32.
    """
    array = np.asarray(value) if isinstance(value, (list, tuple)) else _as_array(name, value)
    if array.size == 0 and isinstance(value, (list, tuple)):
        array = array.astype(np.int32)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} has dtype {array.dtype}, wanted int32")
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}, wanted one dimension")
    if array.dtype != np.int32:
        limits = np.iinfo(np.int32)
        if array.size and (array.min() < limits.min or array.max() > limits.max):
            raise ValueError(f"{name} has values beyond int32: {array.min()}..{array.max()}")
        array = array.astype(np.int32)
    return np.ascontiguousarray(array)


def as_mask(name: str, value: object, ndim: int) -> npt.NDArray[np.uint8]:
    """A C-contiguous uint8 array of 0 and 1 from bool, integers or floats that are 0 or 1.

    Raises:
        TypeError: another dtype.
        ValueError: another number of dimensions, or values other than 0 and 1.
    """
    array = _as_array(name, value)
    if array.ndim != ndim:
        raise ValueError(f"{name} has shape {array.shape}, wanted {ndim} dimensions")
    if array.dtype == np.bool_:
        return np.ascontiguousarray(array).view(np.uint8)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name} has dtype {array.dtype}, wanted bool or 0/1")
    keep = array != 0
    if not np.array_equal(array[keep], np.ones(int(keep.sum()), array.dtype)):
        raise ValueError(f"{name} has values other than 0 and 1 (1 keeps a token)")
    return np.ascontiguousarray(keep).view(np.uint8)
