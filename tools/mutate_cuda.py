"""Plant faults in the CUDA kernels, one at a time, and see that a test fails for each.

    python tools/mutate_cuda.py [--changed-since REF] [--jobs N]

A fault is a replacement in one file. The sources are copied, the fault planted, the emulated
library built from the copy, and the named tests run against it (MINIFUSE_CUDA_SOURCES). A fault
that no test sees ends the run with status 1. With --changed-since only faults in files that differ
from the git revision are planted (all, if what they share has changed).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from planting import report  # noqa: E402

from cuda_library import EMULATOR, INTERFACE, compile_objects  # noqa: E402

EMULATED = "tests/cuda_emulator/"
# A change here may matter to every kernel.
SHARED = (
    "ptx.cuh",
    "hopper/params.h",
    "hopper/tensor_map",
    "elements.cuh",
    "kernels.h",
    "launch.cuh",
    "table.cuh",
)


@dataclass(frozen=True)
class Fault:
    """A change of a file of csrc/cuda, and the tests that must see it."""

    kind: str
    file: str
    old: str
    new: str
    tests: str


BARRIER = "removed barrier"
OFF_BY_ONE = "off by one in a shared tile"
FRAGMENT = "swapped fragment index"
PREDICATE = "missing predicate on the last ragged tile"

FAULTS = (
    Fault(
        BARRIER,
        "kernels/tile.cuh",
        "    ptx::barrier();  // everyone's",
        "    // everyone's",
        "test_linear",
    ),
    Fault(
        BARRIER,
        "kernels/tile.cuh",
        "  ptx::barrier();  // the ring may be used again\n",
        "\n",
        "test_linear_residual",
    ),
    Fault(
        BARRIER,
        "kernels/layernorm.cuh",
        "put(0, i, row_sum[i]);\n  ptx::barrier();",
        "put(0, i, row_sum[i]);",
        "test_linear_residual",
    ),
    Fault(
        BARRIER,
        "kernels/ffn.cuh",
        "    ptx::barrier();  // W1[f] is there; W2 and h have been used up",
        "",
        "test_ffn",
    ),
    Fault(
        BARRIER,
        "kernels/ffn.cuh",
        "    ptx::barrier();  // W2[:, f] and h are there; W1[f] has been used up",
        "",
        "test_ffn",
    ),
    Fault(
        BARRIER,
        "kernels/attention.cuh",
        "    ptx::copy_wait<0>();\n    ptx::warp_barrier();",
        "    ptx::copy_wait<0>();",
        "test_attention",
    ),
    Fault(
        BARRIER,
        "kernels/attention.cuh",
        "    ptx::warp_barrier();  // k and v have been used up",
        "",
        "test_attention",
    ),
    Fault(
        "wait for the wrong group",
        "kernels/tile.cuh",
        "ptx::copy_wait<kStages - 2>()",
        "ptx::copy_wait<kStages - 1>()",
        "test_linear",
    ),
    Fault(
        OFF_BY_ONE,
        "kernels/tile.cuh",
        "const std::byte* b_tile = stage + (Shape::kRows + b_row) * kStride;",
        "const std::byte* b_tile = stage + (Shape::kRows + b_row + 1) * kStride;",
        "test_linear",
    ),
    Fault(
        OFF_BY_ONE,
        "kernels/tile.cuh",
        "shared + row * shared_stride + 16 * piece",
        "shared + row * shared_stride + 16 * (piece + 1)",
        "test_linear",
    ),
    Fault(
        OFF_BY_ONE,
        "kernels/ffn.cuh",
        "hidden + row * kNarrow + column * Shape::kSize",
        "hidden + (row + 1) * kNarrow + column * Shape::kSize",
        "test_ffn",
    ),
    Fault(
        OFF_BY_ONE,
        "kernels/attention.cuh",
        "kV = kK + kAttentionKeys * kStride;",
        "kV = kK + (kAttentionKeys - 1) * kStride;",
        "test_attention",
    ),
    Fault(
        OFF_BY_ONE,
        "kernels/layernorm.cuh",
        "row_of_thread + 8 * i; };",
        "row_of_thread + 7 * i; };",
        "test_linear_residual",
    ),
    Fault(
        FRAGMENT,
        "kernels/tile.cuh",
        "(lane % 16) * stride + 16 * (lane / 16)",
        "(lane % 16) * stride + 16 * (lane / 8 % 2)",
        "test_linear",
    ),
    Fault(
        FRAGMENT,
        "kernels/tile.cuh",
        "(lane % 8 + 8 * (lane / 16)) * stride + 16 * (lane / 8 % 2)",
        "(lane % 16) * stride + 16 * (lane / 16)",
        "test_linear",
    ),
    Fault(
        FRAGMENT,
        "kernels/tile.cuh",
        "acc[m][n + 1], a_fragment[m], b_fragment[2], b_fragment[3]",
        "acc[m][n + 1], a_fragment[m], b_fragment[3], b_fragment[2]",
        "test_linear",
    ),
    Fault(
        FRAGMENT,
        "kernels/attention.cuh",
        "pack(T{}, p0[2], p0[3]), pack(T{}, p1[0], p1[1])",
        "pack(T{}, p1[0], p1[1]), pack(T{}, p0[2], p0[3])",
        "test_attention",
    ),
    Fault(
        FRAGMENT,
        "kernels/attention.cuh",
        "multiply(T{}, o[n + 1], a, b[2], b[3]);",
        "multiply(T{}, o[n + 1], a, b[3], b[2]);",
        "test_attention",
    ),
    Fault(
        FRAGMENT,
        "kernels/attention.cuh",
        "ptx::to_bits(p[0]), ptx::to_bits(p[2]), ptx::to_bits(p[1])",
        "ptx::to_bits(p[0]), ptx::to_bits(p[1]), ptx::to_bits(p[2])",
        "test_attention",
    ),
    Fault(
        FRAGMENT,
        "elements.cuh",
        "ptx::mma_tf32(d, low, first.high, second.high);",
        "ptx::mma_tf32(d, low, second.high, first.high);",
        "test_linear",
    ),
    Fault(
        "dropped term",
        "elements.cuh",
        "  ptx::mma_tf32(d, high, first.low, second.low);\n",
        "",
        "test_linear",
    ),
    Fault(
        PREDICATE,
        "kernels/tile.cuh",
        "const bool is_there = row < rows.num_rows;",
        "const bool is_there = true;",
        "test_linear",
    ),
    Fault(
        PREDICATE,
        "kernels/linear.cuh",
        "if (column >= num_columns) return;",
        "",
        "test_linear",
    ),
    Fault(
        PREDICATE,
        "kernels/linear.cuh",
        "if (row < num_rows) ptx::store",
        "ptx::store",
        "test_linear",
    ),
    Fault(
        PREDICATE,
        "kernels/layernorm.cuh",
        "if (row < num_rows) ptx::store",
        "ptx::store",
        "test_linear_residual or test_ffn",
    ),
    Fault(
        PREDICATE,
        "kernels/layernorm.cuh",
        "    if (column >= H) return;\n    const float d0",
        "if (column < 0) return;\n    const float d0",
        "test_linear_residual",
    ),
    Fault(
        PREDICATE,
        "kernels/attention.cuh",
        "is_key ? s[n][i] * scale_log2 : kMinusInfinity",
        "true ? s[n][i] * scale_log2 : kMinusInfinity",
        "test_attention",
    ),
    Fault(
        PREDICATE,
        "kernels/attention.cuh",
        "if (row >= tile.num_queries) continue;",
        "",
        "test_attention",
    ),
    Fault(PREDICATE, "kernels/embed.cuh", "  if (row >= p.M) return;\n", "", "test_embed"),
    Fault(PREDICATE, "kernels/row_norm.cuh", "  if (row >= p.M) return;\n", "", "test_layer_norm"),
    Fault(
        "no correction of the mean",
        "kernels/row_norm.cuh",
        "mean += difference * reciprocal_width;",
        "mean -= 1e-3f;",
        "test_layer_norm",
    ),
    Fault(
        "a mask not heeded",
        "kernels/pool.cuh",
        "if (!is_kept(row)) continue;",
        "",
        "test_mean_pool",
    ),
    Fault(
        "a mask not heeded",
        "kernels/attention.cuh",
        "ptx::load(p.mask + first + column) != 0",
        "true",
        "test_attention_leaves",
    ),
    Fault(
        "no key yet",
        "kernels/attention.cuh",
        "next == kMinusInfinity ? 0.0f : next",
        "next",
        "test_attention_leaves",
    ),
    Fault(
        BARRIER,
        "hopper/boxes.cuh",
        "    ptx::barrier();  // by both\n",
        "",
        "test_linear and sm_90a",
    ),
    Fault(
        "wait for the wrong group",
        "hopper/boxes.cuh",
        "ptx::warpgroup_wait<1>()",
        "ptx::warpgroup_wait<2>()",
        "test_linear and sm_90a",
    ),
    Fault(
        "wait for the wrong phase",
        "hopper/boxes.cuh",
        "box / Shape::kStages % 2",
        "0",
        "test_linear and sm_90a",
    ),
    Fault(
        OFF_BY_ONE,
        "hopper/boxes.cuh",
        "(K + kBoxColumns - 1) / kBoxColumns",
        "K / kBoxColumns",
        "test_linear and sm_90a",
    ),
    Fault(
        "bytes not announced",
        "hopper/boxes.cuh",
        "ptx::arrive_expecting(arrival, Shape::kStageBytes);",
        "ptx::arrive_expecting(arrival, Shape::kABytes);",
        "test_linear and sm_90a",
    ),
    Fault(
        BARRIER,
        "hopper/linear.cuh",
        "  ptx::barrier();  // the tile is there\n",
        "",
        "test_linear and sm_90a",
    ),
    Fault(
        BARRIER,
        "hopper/linear_norm.cuh",
        "  ptx::barrier();  // y is there\n",
        "",
        "test_linear_residual and sm_90a",
    ),
    Fault(
        "no wait for the residual",
        "hopper/linear_norm.cuh",
        "  ptx::wait_for_arrival(arrival, 0);\n",
        "",
        "test_linear_residual and sm_90a",
    ),
    Fault(
        "another swizzle",
        "hopper/box_rows.cuh",
        "% kBoxColumns / kPiece ^ row % 8",
        "% kBoxColumns / kPiece ^ row % 4",
        "test_linear_residual and sm_90a",
    ),
    Fault(
        PREDICATE,
        "hopper/box_rows.cuh",
        "row < 128 && first_row + row < M",
        "row < 128",
        "test_linear_residual and sm_90a",
    ),
    Fault(
        OFF_BY_ONE,
        "kernels/attention.cuh",
        "(num_keys + 15) / 16 * 2",
        "num_keys / 16 * 2",
        "test_attention",
    ),
    Fault(
        BARRIER,
        "hopper/ffn.cuh",
        "    ptx::barrier();  // both warpgroups have used the stage up\n",
        "",
        "test_ffn and sm_90a",
    ),
    Fault(
        "wait for the wrong group",
        "hopper/ffn.cuh",
        "    ptx::warpgroup_wait<0>();\n    ptx::hold(h);\n",
        "",
        "test_ffn and sm_90a",
    ),
    Fault(
        FRAGMENT,
        "hopper/ffn.cuh",
        "a[n / 2][2 * (n % 2) + half]",
        "a[n / 2][2 * half + n % 2]",
        "test_ffn and sm_90a",
    ),
    Fault(
        "another swizzle",
        "hopper/ffn.cuh",
        "ptx::box_address<Shape::kFBytes>(w2_boxes) + at",
        "ptx::box_address<kBoxRowBytes>(w2_boxes) + at",
        "test_ffn and sm_90a",
    ),
    Fault(
        "no correction of the sum",
        "kernels/attention.cuh",
        "sum[half] *= correction[half];",
        "",
        "test_attention",
    ),
    Fault(
        "no correction of the mean",
        "kernels/layernorm.cuh",
        "mean[i] += sum * reciprocal_width;",
        "mean[i] -= 1e-3f;",
        "test_linear_residual",
    ),
)


def plant(fault: Fault, folder: Path) -> None:
    """A copy of what the tests build from, with the fault in it."""
    for part in ("csrc", "tests"):
        shutil.copytree(ROOT / part, folder / part)
    path = folder / "csrc" / "cuda" / fault.file
    text = path.read_text(encoding="utf-8")
    # Wherever the formatter breaks a line.
    pattern = re.compile(r"\s+".join(re.escape(word) for word in fault.old.split()))
    found = len(pattern.findall(text))
    if found != 1:
        sys.exit(f"{fault.file}: {fault.old!r} stands there {found} times, wanted once")
    path.write_text(pattern.sub(lambda match: fault.new, text), encoding="utf-8")


def is_caught(fault: Fault, objects: Path) -> bool:
    """Return whether a test fails with the fault planted; objects: of the files without kernels."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plant(fault, folder)
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider",
                   "tests/cuda/test_cuda_kernels.py", "-k", fault.tests]  # fmt: skip
        environment = os.environ | {
            "MINIFUSE_CUDA_SOURCES": str(folder),
            "MINIFUSE_CUDA_OBJECTS": str(objects),
        }
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
    if done.returncode not in (0, 1):  # nothing was collected, or pytest itself broke
        sys.exit(done.stdout + done.stderr)
    if done.returncode == 1 and "CalledProcessError" in done.stdout:
        sys.exit(f"{fault.file}: the fault does not compile: {fault.new!r}\n{done.stdout}")
    return done.returncode == 1


def chosen(reference: str | None) -> list[Fault]:
    """The faults of files that have changed."""
    if reference is None:
        return list(FAULTS)
    names = subprocess.run(
        ["git", "diff", "--name-only", reference, "--", "csrc/cuda", EMULATED],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    changed = [name.removeprefix("csrc/cuda/") for name in names]
    if any(name.startswith((*SHARED, EMULATED)) for name in changed):
        return list(FAULTS)
    return [fault for fault in FAULTS if fault.file in changed]


def main() -> int:
    """Plant all, print a line each, and say how many went unseen."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--changed-since", metavar="REF")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    faults = chosen(arguments.changed_since)
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(arguments.jobs) as pool:
        objects = Path(name)
        if faults:
            compile_objects(ROOT, (*INTERFACE, *EMULATOR[1:]), objects)
        results = pool.map(lambda fault: is_caught(fault, objects), faults)
        return report(zip(faults, results, strict=True))


if __name__ == "__main__":
    sys.exit(main())
