"""The measured arithmetic ceiling, and what share of it each operation and the encoder reach.

    python benchmarks/bench_roofline.py [--json FILE]

The ceiling is a loop of multiply-adds that never leaves the registers (`minifuse.hardware.peak`),
measured between the runs it is compared with, on one thread and on all.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import numpy as np

from minifuse import SentenceTransformer, hardware, ops
from minifuse.bench import encode, report, sample_text, timing

# (N, K, activation) of MiniLM's matrices.
MATRICES = {
    "QKV 384 -> 1152": (1152, 384, None),
    "Wo 384 -> 384": (384, 384, None),
    "W1 + GELU 384 -> 1536": (1536, 384, "gelu"),
    "W2 1536 -> 384": (384, 1536, None),
}
ROWS = (1, 12, 48, 192, 1024)


def matrix_shares(rounds: int) -> list[dict[str, Any]]:
    """Each matrix of a layer at each number of rows, packed weights, all threads."""
    rng = np.random.default_rng(0)
    threads = hardware.describe()["num_threads"]
    rows = []
    for name, (n, k, activation) in MATRICES.items():
        weight = ops.pack_linear(rng.standard_normal((n, k)).astype(np.float32))
        bias = rng.standard_normal(n).astype(np.float32)
        for m in ROWS:
            x = rng.standard_normal((m, k)).astype(np.float32)
            flops = 2.0 * m * n * k
            repeat = max(1, int(2e8 / flops))  # calls of a millisecond
            run = timing.repeated(partial(ops.linear, x, weight, bias, activation), repeat)
            share = timing.share_of_peak(run, flops * repeat, threads, rounds)
            rows.append({"matrix": name, "rows": m} | share)
    return rows


def main() -> None:
    """Print the tables; write them where --json asks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()

    threads = hardware.describe()["num_threads"]
    peaks = {str(n): hardware.peak(n)["float32"] / 1e9 for n in sorted({1, threads})}
    for count, gflops in peaks.items():
        print(f"ceiling, {count} threads: {gflops:.1f} GFLOP/s in float32")
    rows = matrix_shares(arguments.rounds)
    print(report.format_table(rows, {"matrix": "matrix", "rows": "rows", "gflops": "GFLOP/s",
                                    "share_of_peak": "share"}))  # fmt: skip
    model = SentenceTransformer("sentence-transformers/all-MiniLM-L6-v2")
    workloads = {"short": sample_text.sentences(1000), "paragraphs": sample_text.paragraphs(300)}
    encoder = {
        name: encode.encoder_share(model, texts, threads, arguments.rounds)
        for name, texts in workloads.items()
    }
    for name, share in encoder.items():
        print(f"encoder, {name}: {share['share_of_peak']:.1%} of the ceiling")
    if arguments.json:
        result = {"machine": timing.machine(), "peak_gflops": peaks, "rows": rows}
        report.write_json(arguments.json, result | {"encoder": encoder})


if __name__ == "__main__":
    main()
