"""Exact search among a million vectors against faiss and NumPy, in one run, engines in turn.

    python benchmarks/bench_search.py [--vectors 1000000] [--json FILE]

float32 against faiss's IndexFlatIP and a matrix product with argpartition; bfloat16 and int8 with
rescoring beside them, with their recall against float32's. Vectors are random directions around a
thousand random centres; queries are vectors with noise.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from minifuse import Index, hardware
from minifuse.bench.report import format_table, write_json
from minifuse.bench.timing import machine

DIM, K = 384, 10


def clustered(rng: np.random.Generator, count: int) -> np.ndarray:
    centers = rng.standard_normal((1000, DIM), np.float32)
    vectors = np.empty((count, DIM), np.float32)
    for first in range(0, count, 50_000):
        part = vectors[first : first + 50_000]
        part[:] = centers[rng.integers(0, 1000, len(part))]
        part += 1.2 * rng.standard_normal(part.shape, np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return vectors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    threads = hardware.describe()["num_threads"]
    rng = np.random.default_rng(0)
    vectors = clustered(rng, arguments.vectors)
    noise = rng.standard_normal((256, DIM), np.float32) / DIM**0.5
    queries = vectors[rng.integers(0, len(vectors), 256)] + 0.5 * noise
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)

    engines: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ("float32", "bfloat16", "int8"):
            index = Index(DIM, dtype, "dot", rescore=dtype == "int8", num_threads=threads)
            for first in range(0, len(vectors), 100_000):
                index.add(vectors[first : first + 100_000])
            path = Path(folder) / f"{dtype}.index"
            index.save(path)
            index = Index.load(path, num_threads=threads)
            engines[f"minifuse, {dtype}{', rescored' if index.rescores else ''}"] = index.search

        try:
            import faiss

            faiss.omp_set_num_threads(threads)
            flat = faiss.IndexFlatIP(DIM)
            flat.add(vectors)
            engines["faiss IndexFlatIP"] = flat.search
        except ImportError:
            print("faiss-cpu is not installed")

        def by_numpy(some: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
            scores = some @ vectors.T
            ids = np.argpartition(scores, -k, axis=1)[:, -k:]
            found = np.take_along_axis(scores, ids, 1)
            order = np.argsort(-found, axis=1)
            return np.take_along_axis(found, order, 1), np.take_along_axis(ids, order, 1)

        engines["NumPy"] = by_numpy
        rows = measure(engines, queries, arguments.rounds)
    columns = {"engine": "engine", "queries": "queries", "ms": "ms", "ratio": "faster than float32",
               "recall": "recall@10"}  # fmt: skip
    print(format_table(rows, columns))
    if arguments.json:
        write_json(
            arguments.json, {"machine": machine(), "num_vectors": len(vectors), "rows": rows}
        )


def measure(engines: dict[str, Any], queries: np.ndarray, rounds: int) -> list[dict[str, Any]]:
    _, exact = engines["minifuse, float32"](queries, K)
    rows = []
    for batch in (1, 8, 64):
        seconds: dict[str, list[float]] = {name: [] for name in engines}
        for round_ in range(rounds + 1):
            for name, search in engines.items():
                part = queries[round_ * batch % 128 :][:batch]
                time.sleep(0.02)  # another engine's threads spin for a while
                start = time.perf_counter()
                search(part, K)
                if round_:
                    seconds[name].append(time.perf_counter() - start)
        ours = float(np.median(seconds["minifuse, float32"]))
        for name, search in engines.items():
            _, found = search(queries, K)
            same = [len(set(a) & set(b)) for a, b in zip(found, exact, strict=True)]
            median = float(np.median(seconds[name]))
            rows.append(
                {
                    "engine": name,
                    "queries": batch,
                    "ms": median * 1e3,
                    "ratio": f"{ours / median:.2f}x",
                    "recall": float(np.mean(same)) / K,
                }
            )
    return rows


if __name__ == "__main__":
    main()
