"""The build of the kernels by nvcc: spills and warnings are errors, and the script for a
machine with a GPU goes as far as a machine without one can.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import pytest

from cuda_library import ROOT
from minifuse import SentenceTransformer
from minifuse.native.devices import cuda_devices

needs_nvcc = pytest.mark.skipif(
    shutil.which("nvcc") is None, reason="nvcc is not on the PATH: the CUDA part is not built"
)


def nvcc_flags() -> list[str]:
    """Those of the build, as CMakeLists.txt has them."""
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    flags = re.search(r"set\(cuda_flags (.*?)\)", text, re.S)
    assert flags
    return re.findall(r'"([^"]+)"', flags[1])


@needs_nvcc
def test_the_part_was_built_and_loads_without_a_device():
    code = "from minifuse import _cuda; print(_cuda.Encoder)"
    subprocess.run([sys.executable, "-c", code], check=True)


@needs_nvcc
@pytest.mark.skipif(bool(cuda_devices()), reason="this machine has a device")
def test_no_device_is_said(tiny_folder):
    with pytest.raises(ValueError, match="this machine has no NVIDIA GPU, or no driver"):
        SentenceTransformer(tiny_folder, device="cuda")


@needs_nvcc
@pytest.mark.parametrize(("width", "status"), [(8, 0), (400, 1)])
def test_a_spill_fails_the_build(tmp_path, width, status):
    """The flags do what they are for: a kernel of too many registers does not compile."""
    source = tmp_path / "kernel.cu"
    source.write_text(
        f"""__global__ void __launch_bounds__(128) kernel(const float* x, float* y) {{
          float values[{width}];
          #pragma unroll
          for (int i = 0; i < {width}; ++i) values[i] = x[threadIdx.x + 128 * i];
          __syncthreads();
          #pragma unroll
          for (int i = 0; i < {width}; ++i) y[threadIdx.x + 128 * i] = values[{width} - 1 - i];
        }}"""
    )
    command = ["nvcc", "-std=c++20", "-arch=sm_80", *nvcc_flags(), "-cubin", str(source), "-o",
               str(tmp_path / "kernel.cubin")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert min(done.returncode, 1) == status, done.stdout + done.stderr


@needs_nvcc
def test_the_script_for_a_gpu_runs_to_the_first_cuda_call(tmp_path, minilm_folder):
    command = [sys.executable, str(ROOT / "tools" / "gpu_check.py"), "--dry-run", "--model",
               str(minilm_folder), "--out", str(tmp_path)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert {name: how["status"] for name, how in parts.items()} == {
        name: "passed" if name == "packages" else "reached CUDA"
        for name in ("machine", "packages", "kernels", "package", "tests", "sanitizer",
                     "agreement", "endurance", "encoder", "ops")
    }  # fmt: skip


def test_the_predictions_of_the_page_are_the_script_s():
    script = ROOT / "tools" / "cuda" / "predict_cuda.py"
    printed = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert printed.stdout in (ROOT / "docs" / "cuda.md").read_text(encoding="utf-8")
