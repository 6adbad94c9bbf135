"""Describe this machine and measure its peak rates."""

from __future__ import annotations

import platform
from typing import Any

from minifuse.native import core
from minifuse.native.devices import cuda_devices

__all__ = ["DTYPES", "describe", "peak", "tile_rate"]

# Types in which weights can be stored and multiplied.
DTYPES = ("float32", "bfloat16", "int8")


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux: the platform module's answer will do
    return platform.processor() or platform.machine()


def describe() -> dict[str, Any]:
    """The instruction set in use per dtype, threads, and CPU features.

    Returns:
        ``isa``: dtype -> name of the instruction set; ``supported_isas``: best first;
        ``num_threads``: the default (least of affinity, cgroup quota, OMP_NUM_THREADS and physical
        cores); ``features``: those of the CPU that matter here and that the operating system
        enables; ``devices``: what ``device=`` accepts; ``cpu``: its name.

    Raises:
        ValueError: MINIFUSE_ISA names an instruction set that is unknown or unsupported here.
    """
    return {
        "cpu": _cpu_name(),
        "isa": {dtype: core.isa_of(dtype) for dtype in DTYPES},
        "supported_isas": core.supported_isas(),
        "features": core.cpu_features(),
        "num_threads": core.default_num_threads(),
        "devices": ["cpu", *(f"cuda:{i}" for i in range(len(cuda_devices())))],
    }


def peak(
    num_threads: int | None = None, seconds: float = 0.5, dtype: str | None = None
) -> dict[str, float]:
    """The measured arithmetic ceilings: multiply-adds that never leave the registers.

    Args:
        num_threads: threads that run at once; the default number if None.
        seconds: how long to measure each.
        dtype: only this one; all if None.

    Returns:
        dtype -> operations a second (a multiplication and an addition are two), all threads
        together, the median of many short loops per thread.
    """
    threads = core.default_num_threads() if num_threads is None else num_threads
    wanted = DTYPES if dtype is None else (dtype,)
    return {one: core.measure_peak(one, threads, seconds) for one in wanted}


def tile_rate(
    num_threads: int | None = None, seconds: float = 0.5, dtype: str = "float32"
) -> float:
    """Measure the micro-kernel on operands in L1: the limit of the code, below the machine's.

    One register tile of a linear layer is computed over and over, so nothing waits for L2 or
    memory. Where it stays below ``peak``, other work on the same core takes its share of decoding
    and loads, which a loop of multiply-adds alone does not feel.

    Args:
        num_threads: threads that run at once; the default number if None.
        seconds: how long to measure.
        dtype: "float32", "bfloat16" or "int8".

    Returns:
        Operations a second, as ``peak`` counts them; rows are rounded beforehand.
    """
    threads = core.default_num_threads() if num_threads is None else num_threads
    return core.measure_tile(dtype, threads, seconds)
