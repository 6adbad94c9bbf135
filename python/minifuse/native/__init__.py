"""The border to the compiled core: the module itself, arrays on their way to it, devices."""

from __future__ import annotations

import atexit

try:
    from minifuse import _core as core
except ImportError as error:  # pragma: no cover - a broken installation
    raise ImportError(
        "minifuse's native module _core cannot be loaded; install a wheel, or build one with "
        f"'pip install .' from the source folder ({error})"
    ) from error

from minifuse.native.arrays import (
    FloatArray,
    as_float32,
    as_int32,
    as_mask,
    as_name,
    as_strided_float32,
    is_cuda_tensor,
    is_tensor,
    like,
    softmax_scale,
)

__all__ = [
    "FloatArray",
    "as_float32",
    "as_int32",
    "as_mask",
    "as_name",
    "as_strided_float32",
    "core",
    "is_cuda_tensor",
    "is_tensor",
    "like",
    "softmax_scale",
]

atexit.register(core.shutdown_threads)
