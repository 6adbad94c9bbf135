"""Devices: a model runs on the CPU, or on CUDA through the module _cuda, imported on first use."""

from __future__ import annotations

import sys
from typing import Any

__all__ = [
    "CUDA_DTYPES",
    "Device",
    "Dtype",
    "cuda_devices",
    "cuda_module",
    "new_tensor",
    "resolve_device",
]

# Types of weights and activations on a CUDA device.
CUDA_DTYPES = ("float32", "bfloat16", "float16")


class Device(str):
    """A device name with torch.device's ``type`` and ``index``, which equals that device, too."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other if isinstance(other, str) else str(other))

    def __ne__(self, other: object) -> bool:
        return not self == other

    @property
    def type(self) -> str:
        """ "cpu" or "cuda" """
        return self.partition(":")[0]

    @property
    def index(self) -> int | None:  # type: ignore[override]  # torch.device has no such method
        """The number behind the colon, if any."""
        number = self.partition(":")[2]
        return int(number) if number else None


class Dtype(str):
    """A dtype's name, which equals torch's dtype of that name, too."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        name = other if isinstance(other, str) else str(other).removeprefix("torch.")
        return str.__eq__(self, name)

    def __ne__(self, other: object) -> bool:
        return not self == other


def resolve_device(device: Any) -> Device:
    """None, a name or a torch.device -> "cpu" or "cuda:N".

    A list of the CPU, once or several times, is the CPU: threads do the work of its processes.

    Raises:
        ValueError: another device, or several.
    """
    if isinstance(device, (list, tuple)) and {str(one) for one in device} == {"cpu"}:
        return Device("cpu")
    if isinstance(device, (list, tuple)):
        raise ValueError(
            f"device is a list ({device!r}): minifuse runs on threads of one process, which is "
            "faster than processes; pass device=None and num_threads"
        )
    name = Device("cpu" if device is None else str(device))
    kind, colon, number = name.partition(":")
    if kind == "cpu" and not number:
        return Device("cpu")
    if kind == "cuda" and (number.isdecimal() or not colon):
        return Device(f"cuda:{number or 0}")
    raise ValueError(f"device is {str(device)!r}, wanted 'cpu', 'cuda' or 'cuda:N'")


def cuda_module() -> Any:
    """The native module of CUDA devices.

    Raises:
        ValueError: this build has none.
    """
    try:
        from minifuse import _cuda
    except ImportError as error:
        raise ValueError(
            "device='cuda': this build of minifuse has no CUDA part. Build it where nvcc is on the "
            "PATH (CUDA 12.4 or later): pip install . --config-settings=cmake.define.MINIFUSE_CUDA="
            f"ON; or use device='cpu' ({error})"
        ) from error
    return _cuda


def new_tensor(num_rows: int, width: int, device: Device) -> Any:
    """An empty float32 tensor on a CUDA device that nobody is still at work on."""
    torch = sys.modules["torch"]
    tensor = torch.empty((num_rows, width), dtype=torch.float32, device=device)
    # torch orders what used this memory before on its own stream, which ours do not wait for.
    torch.cuda.current_stream(tensor.device).synchronize()
    return tensor


def cuda_devices() -> list[dict[str, Any]]:
    """Name, compute capability and memory of each CUDA device; empty where there is none."""
    try:
        found: list[dict[str, Any]] = cuda_module().devices()
    except (ValueError, RuntimeError):  # no such part, or no driver
        return []
    return found
