"""The registers and spills of every instance of a CUDA kernel, as ptxas reports them.

    python tools/cuda/cuda_registers.py [--write]

Compiles csrc/cuda/kernels_*.cu for sm_80 and sm_90a, and hopper/kernels.cu for the latter
(minutes); --write puts the table into docs/cuda.md. The build itself fails on a spill, so the table
holds what is left to know.
"""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pages import CUDA_PAGE, page_parser, print_or_write

ROOT = Path(__file__).parents[2]
ARCHITECTURES = ("sm_80", "sm_90a")
TYPES = ("float32", "bfloat16", "float16")
INSTANCE = re.compile(
    r"Compiling entry function '_ZN8minifuse4cuda\d+([a-z_]+)_kernelI(\w*?)(?:Li(\d+)E)?EEv.*?"
    r"(\d+) bytes spill stores.*?Used (\d+) registers",
    re.S,
)
# Meaning of the number of an instance.
UNITS = {"attention": "heads of {0}", "linear_residual_layer_norm": "up to {1} columns",
         "ffn_residual_layer_norm": "up to {1} columns",
         "hopper_linear_residual_layer_norm": "up to {2} columns",
         "hopper_ffn_residual_layer_norm": "up to {2} columns"}  # fmt: skip
# As the compiler writes them.
MANGLED = {"float32": "f", "bfloat16": "Bfloat16", "float16": "Half"}


def instances(job: tuple[str, str]) -> dict[tuple[str, str], int]:
    """(kernel, number) -> registers, of one element type on one architecture."""
    architecture, element = job
    sources = [f"kernels_{element}.cu"]
    if architecture == "sm_90a" and element != "float32":
        sources.append("hopper/kernels.cu")
    found = {}
    for source in sources:
        command = ["nvcc", "-std=c++20", "-O3", "-fmad=false", f"-arch={architecture}",
                   "--expt-relaxed-constexpr", f"-I{ROOT / 'csrc'}", "-Xptxas=-v", "-cubin",
                   str(ROOT / "csrc" / "cuda" / source), "-o", "/dev/null"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        for kernel, kind, number, spills, registers in INSTANCE.findall(done.stderr + done.stdout):
            if int(spills):
                sys.exit(f"{kernel} {number} {element} {architecture}: {spills} bytes spilled")
            if kind.rstrip("E").endswith(MANGLED[element]):
                found[kernel, number] = int(registers)
    return found


def table() -> str:
    """All of them as Markdown: float32 / bfloat16 / float16."""
    jobs = [(architecture, element) for architecture in ARCHITECTURES for element in TYPES]
    with ThreadPoolExecutor(2) as pool:
        results = dict(zip(jobs, pool.map(instances, jobs), strict=True))
    names = sorted({name for found in results.values() for name in found},
                   key=lambda n: (n[0], int(n[1] or 0)))  # fmt: skip
    lines = ["| kernel | " + " | ".join(f"{a}: {' / '.join(TYPES)}" for a in ARCHITECTURES) + " |",
             "| --- " * (1 + len(ARCHITECTURES)) + "|"]  # fmt: skip
    for kernel, number in names:
        note = UNITS.get(kernel, "").format(number, 64 * int(number or 0), 16 * int(number or 0))
        cells = [
            " / ".join(str(results[a, t].get((kernel, number), "-")) for t in TYPES)
            for a in ARCHITECTURES
        ]
        lines.append(f"| `{kernel}`{', ' if note else ''}{note} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Print, or write into the page."""
    arguments = page_parser(__doc__.split("\n")[0]).parse_args()
    print_or_write(table(), CUDA_PAGE, "registers", arguments.write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
