"""Measure the start of an engine: seconds to its first vector, and peak memory.

Each engine starts in a process of its own (python -m minifuse.bench.footprint, one JSON object
in, one out), since neither can be measured in a process where others have run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["measure_footprint"]


def measure_footprint(
    engine: str, dtype: str, model: str | Path, num_threads: int, texts: Sequence[str]
) -> dict[str, float]:
    """Start an engine, embed one text, then all of them.

    Args:
        engine: its name in minifuse.bench.engines; what it needs must be installed and converted.
        dtype: "float32", "bfloat16" or "int8".
        model: a folder or name.
        num_threads: for the engine.
        texts: at least one.

    Returns:
        ``startup_seconds``: from the start of the process to the first vector, with the interpreter
        and every import (minifuse's own stand in each engine's); ``peak_mib``: the largest resident
        size of the process, texts and vectors included.

    Raises:
        RuntimeError: the process failed; its last line of error output.
    """
    request = {
        "engine": engine,
        "dtype": dtype,
        "model": str(Path(model).resolve()) if Path(model).is_dir() else str(model),
        "num_threads": num_threads,
        "texts": list(texts),
        "started": time.time(),
    }
    # -m puts the working folder first on the path: an empty one, so that no module of that name
    # where the user happens to be is run.
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "minifuse.bench.footprint"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
        )
    if done.returncode != 0:
        last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise RuntimeError(f"{engine}, {dtype}: {last}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _peak_mib() -> float:
    # Not getrusage where it can be helped: Linux counts the parent's peak as the child's.
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    import resource  # POSIX only, like the benchmark

    # macOS counts bytes, others KiB.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _main() -> None:
    request = json.load(sys.stdin)
    from minifuse.bench.engines import start_engine

    engine = start_engine(
        request["engine"], request["model"], request["num_threads"], request["dtype"]
    )
    engine.encode_one(request["texts"][0])
    seconds = time.time() - request["started"]
    engine.encode(request["texts"])

    print(json.dumps({"startup_seconds": seconds, "peak_mib": _peak_mib()}), flush=True)
    # Measured; how an engine takes itself down (OpenVINO's threads can abort there) does not count.
    os._exit(0)


if __name__ == "__main__":
    _main()
