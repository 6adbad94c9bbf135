"""Speed beside accuracy: whole encodes and single queries against the peers, ops against PyTorch.

Everything runs in one process, interleaved, so that a machine whose speed drifts is fair to all;
medians and ratios are reported, and rows that we lose stay.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from minifuse import hardware
from minifuse.engines import Engine, installed_engines
from minifuse.op_cases import OP_TOKENS, op_cases
from minifuse.sentence_transformer import SentenceTransformer

__all__ = ["bench_encode", "bench_ops", "format_table", "machine"]

_FLOPS_PER_TOKEN_TERM = 2


def machine() -> dict[str, Any]:
    """What a figure is worth nothing without."""
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


def encoder_flops(model: SentenceTransformer, seqlens: Any) -> float:
    """Floating-point operations of the encoder for sentences of these lengths (DESIGN's count)."""
    c = model._folder.config
    hidden, inner, layers = c.hidden_size, c.intermediate_size, c.num_hidden_layers
    per_token = layers * _FLOPS_PER_TOKEN_TERM * (4 * hidden * hidden + 2 * hidden * inner)
    lengths = np.asarray(seqlens, np.float64)
    attention = layers * _FLOPS_PER_TOKEN_TERM * 2 * hidden * (lengths**2).sum()
    return float(per_token * lengths.sum() + attention)


def time_once(f: Callable[[], Any]) -> float:
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def _interleaved(
    runs: dict[str, Callable[[], Any]], rounds: int, warms_up: bool = False
) -> dict[str, list[float]]:
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


def bench_encode(
    model_name: str,
    workloads: dict[str, Sequence[str]],
    query: str,
    num_threads: int,
    rounds: int = 5,
) -> dict[str, Any]:
    """Every installed engine on every workload and on one query.

    Returns:
        ``machine``, ``absent`` (engine -> why), ``workloads`` (name -> rows with engine, tokens/s,
        ratio = ours / theirs in speed, cosine min and mean against the reference engine), ``query``
        (rows with milliseconds p50 and p99 of the best burst), ``encoder`` (share of the measured
        ceiling).
    """
    engines, absent = installed_engines(model_name, num_threads)
    model = SentenceTransformer(model_name, num_threads=num_threads)
    result: dict[str, Any] = {"machine": machine(), "absent": absent, "workloads": {}}
    result["encoder"] = {
        name: encoder_share(model, texts, num_threads, rounds) for name, texts in workloads.items()
    }
    for name, texts in workloads.items():
        num_tokens = int(model._tokenize(list(texts)).seqlens.sum())
        vectors = {engine.name: engine.encode(texts) for engine in engines}
        # PyTorch is the referee where it is installed.
        referee = vectors.get("sentence-transformers", vectors["minifuse"])
        times = _interleaved({e.name: partial(e.encode, texts) for e in engines}, rounds)
        ours = float(np.median(times["minifuse"]))
        rows = []
        for engine in engines:
            seconds = float(np.median(times[engine.name]))
            cosines = (vectors[engine.name] * referee).sum(1)
            rows.append(
                {
                    "engine": engine.name,
                    "tokens_per_second": num_tokens / seconds,
                    "ours_over_theirs": seconds / ours,
                    "cosine_min": float(cosines.min()),
                    "cosine_mean": float(cosines.mean()),
                }
            )
        result["workloads"][name] = {
            "num_texts": len(texts),
            "num_tokens": num_tokens,
            "rows": rows,
        }
    result["query"] = _bench_query(model, engines, query)
    return result


def encoder_share(
    model: SentenceTransformer, texts: Sequence[str], num_threads: int, rounds: int
) -> dict[str, float]:
    """The encoder alone against the ceiling that is measured between its runs."""
    tokens, _ = model._tokenize(list(texts)).sorted_by_length()
    cu_seqlens = tokens.cu_seqlens()

    def run() -> None:
        model._encoder.encode(
            tokens.ids,
            cu_seqlens,
            poolings=model._folder.poolings,
            pool_from=0,
            batch_size=32,
            num_threads=num_threads,
        )

    share = share_of_peak(run, encoder_flops(model, tokens.seqlens), num_threads, max(rounds, 5))
    return {"tokens_per_second": float(tokens.seqlens.sum()) / share["seconds"]} | share


def share_of_peak(
    run: Callable[[], Any], flops: float, num_threads: int, rounds: int
) -> dict[str, float]:
    """The rate of run against the arithmetic ceiling, measured between its calls; medians.

    Returns:
        ``seconds`` a call, ``gflops``, ``peak_gflops`` and ``share_of_peak``.
    """
    run()
    seconds, peaks = [], []
    for _ in range(rounds):
        peaks.append(hardware.peak(num_threads, 0.1)["float32"])
        seconds.append(time_once(run))
    median, peak = float(np.median(seconds)), float(np.median(peaks))
    return {
        "seconds": median,
        "gflops": flops / median / 1e9,
        "peak_gflops": peak / 1e9,
        "share_of_peak": flops / median / peak,
    }


def _bench_query(
    model: SentenceTransformer, engines: Sequence[Engine], query: str, bursts: int = 5
) -> dict[str, Any]:
    """Engines in turn, bursts of 200 warm calls each; an engine's best burst by its median."""
    best: dict[str, tuple[float, float]] = {}
    for _ in range(bursts):
        for engine in engines:
            for _ in range(20):
                engine.encode_one(query)
            times = []
            for _ in range(200):
                start = time.perf_counter()
                engine.encode_one(query)
                times.append(time.perf_counter() - start)
            p50, p99 = np.percentile(times, [50, 99])
            if engine.name not in best or p50 < best[engine.name][0]:
                best[engine.name] = (float(p50), float(p99))
    ours = best["minifuse"][0]
    return {
        "num_tokens": len(model._tokenize([query]).ids),
        "rows": [
            {
                "engine": name,
                "p50_ms": p50 * 1e3,
                "p99_ms": p99 * 1e3,
                "ours_over_theirs_time": ours / p50,
            }
            for name, (p50, p99) in best.items()
        ],
    }


def bench_ops(num_threads: int, rounds: int = 30) -> list[dict[str, Any]]:
    """Each fused op against PyTorch on MiniLM's shapes, 32 to 4,096 tokens, interleaved.

    Returns:
        Rows with op, tokens, microseconds of PyTorch, of ours with packed and unpacked weights, the
        speed-ups, and the share of the measured arithmetic ceiling with packed weights.

    Raises:
        ImportError: PyTorch is not installed.
    """
    import torch

    torch.set_num_threads(num_threads)
    rows: list[dict[str, Any]] = []
    for tokens in OP_TOKENS:
        for case in op_cases(tokens):
            runs = {"torch": case.torch, "packed": case.packed}
            if case.unpacked is not None:
                runs["unpacked"] = case.unpacked
            # Calls of some milliseconds, so that the clock's resolution does not matter.
            repeat = max(1, int(2e-3 / max(time_once(case.packed), 1e-6)))
            with torch.inference_mode():
                times = _interleaved(
                    {k: repeated(f, repeat) for k, f in runs.items()}, rounds, True
                )
            medians = {k: float(np.median(v)) / repeat * 1e6 for k, v in times.items()}
            unpacked = medians.get("unpacked")
            peak = hardware.peak(num_threads, 0.1)["float32"]
            rows.append(
                {
                    "op": case.name,
                    "tokens": tokens,
                    "torch_us": medians["torch"],
                    "packed_us": medians["packed"],
                    "unpacked_us": unpacked,
                    "speedup_packed": medians["torch"] / medians["packed"],
                    "speedup_unpacked": medians["torch"] / unpacked if unpacked else None,
                    "share_of_peak": case.flops / (medians["packed"] * 1e-6) / peak,
                }
            )
    return rows


def repeated(f: Callable[[], Any], count: int) -> Callable[[], Any]:
    def run() -> None:
        for _ in range(count):
            f()

    return run


def format_table(rows: Sequence[dict[str, Any]], columns: dict[str, str]) -> str:
    """Rows as a Markdown table; columns: key -> heading. Numbers get four significant digits."""

    def cell(value: Any) -> str:
        if value is None:
            return "-"
        if isinstance(value, float):
            return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
        return str(value)

    lines = ["| " + " | ".join(columns.values()) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(cell(row.get(key)) for key in columns) + " |" for row in rows]
    return "\n".join(lines)


def write_json(path: str, value: dict[str, Any]) -> None:
    """Write a result whole or not at all."""
    import os

    partial = f"{path}.partial"
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
    os.replace(partial, path)
