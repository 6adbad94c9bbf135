"""How everything is timed: in one process and in turn, so that a drifting machine is fair to all.

What counts are medians and ratios.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from minifuse import hardware

__all__ = ["interleaved", "machine", "repeated", "share_of_peak", "time_once"]


def machine() -> dict[str, Any]:
    """Return the machine and the versions of libraries, recorded with every result."""
    packages = ("torch", "sentence-transformers", "onnxruntime", "openvino", "ctranslate2")
    versions = {"minifuse": version("minifuse"), "python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    about = hardware.describe()
    return {
        "date": date.today().isoformat(),
        "cpu": about["cpu"],
        "isa": about["isa"],
        "num_threads": about["num_threads"],
        "versions": versions,
    }


def time_once(f: Callable[[], Any]) -> float:
    """Return the seconds that one call takes."""
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def repeated(f: Callable[[], Any], count: int) -> Callable[[], Any]:
    """Return a function that calls f count times."""

    def run() -> None:
        for _ in range(count):
            f()

    return run


def interleaved(
    runs: dict[str, Callable[[], Any]], rounds: int, warms_up: bool = False
) -> dict[str, list[float]]:
    """Seconds of each call, rounds times in turn."""
    for run in runs.values():
        run()  # warm
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            # An engine's threads spin for some milliseconds after their work (OpenMP's do): they
            # must sleep before the next engine is timed, which is warmed up again first.
            time.sleep(0.02)
            if warms_up:
                run()
            times[name].append(time_once(run))
    return times


def share_of_peak(
    run: Callable[[], Any], flops: float, num_threads: int, rounds: int, dtype: str = "float32"
) -> dict[str, float]:
    """The rate of run against the arithmetic ceiling, measured between its calls; medians.

    Returns:
        ``seconds`` a call, ``gflops``, ``peak_gflops`` and ``share_of_peak``; and
        ``tile_share_of_peak``, of the micro-kernel on operands in L1.
    """
    run()
    seconds, peaks, tiles = [], [], []
    for _ in range(rounds):
        peaks.append(hardware.peak(num_threads, 0.1, dtype)[dtype])
        seconds.append(time_once(run))
        tiles.append(hardware.tile_rate(num_threads, 0.1, dtype))
    median, peak = float(np.median(seconds)), float(np.median(peaks))
    return {
        "tile_share_of_peak": float(np.median(tiles)) / peak,
        "seconds": median,
        "gflops": flops / median / 1e9,
        "peak_gflops": peak / 1e9,
        "share_of_peak": flops / median / peak,
    }
