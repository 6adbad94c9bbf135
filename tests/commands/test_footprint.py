"""Start-up and memory are measured in a process of their own, which says what went wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest

from minifuse.bench.footprint import measure_footprint

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the resource module is POSIX's")


def test_our_own(tiny_folder):
    result = measure_footprint("minifuse", "int8", tiny_folder, 1, ["a dog", "a cat"])
    assert 0 < result["startup_seconds"] < 60
    assert 10 < result["peak_mib"] < 1000


def test_the_parents_memory_is_not_the_engines(tiny_folder):
    script = (
        "import sys, numpy as np; from minifuse.bench.footprint import measure_footprint\n"
        "a = np.ones((600, 1 << 20), np.uint8)\n"
        "print(measure_footprint('minifuse', 'float32', sys.argv[1], 1, ['a dog'])['peak_mib'])"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(tiny_folder)], capture_output=True, text=True, check=True
    )
    assert float(run.stdout) < 500


def test_a_failing_process_is_named(tiny_folder, tmp_path):
    with pytest.raises(RuntimeError, match=r"abacus, float32: .*wanted one of minifuse, sentence"):
        measure_footprint("abacus", "float32", tiny_folder, 1, ["a dog"])
    with pytest.raises(RuntimeError, match=r"minifuse, float32: FileNotFoundError.*no-such"):
        measure_footprint("minifuse", "float32", tmp_path / "no-such", 1, ["a dog"])
