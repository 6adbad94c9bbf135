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
from minifuse.footprint import measure_footprint
from minifuse.models.folder import read_model_folder
from minifuse.models.resolve import resolve_model
from minifuse.models.weights import new_encoder
from minifuse.op_cases import OP_TOKENS, op_cases
from minifuse.sentence_transformer import SentenceTransformer

__all__ = [
    "bench_encode",
    "bench_ops",
    "bench_profile",
    "format_table",
    "machine",
    "plot_encode",
    "schedules",
]

_FLOPS_PER_TOKEN_TERM = 2
_REFEREE = "sentence-transformers, float32"


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


def encoder_flops(model: SentenceTransformer, seqlens: Any) -> float:
    """Floating-point operations of the encoder for sentences of these lengths (DESIGN's count)."""
    c = model._folder.description
    hidden, inner, layers = c.hidden_size, c.intermediate_size, c.num_hidden_layers
    per_token = layers * _FLOPS_PER_TOKEN_TERM * (4 * hidden * hidden + 2 * hidden * inner)
    lengths = np.asarray(seqlens, np.float64)
    attention = layers * _FLOPS_PER_TOKEN_TERM * 2 * hidden * (lengths**2).sum()
    return float(per_token * lengths.sum() + attention)


def time_once(f: Callable[[], Any]) -> float:
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


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


def bench_encode(
    model_name: str,
    workloads: dict[str, Sequence[str]],
    query: str,
    num_threads: int,
    rounds: int = 5,
    dtypes: Sequence[str] = ("float32",),
) -> dict[str, Any]:
    """Every installed engine, in each of the dtypes, on every workload and on one query.

    Returns:
        ``machine``, ``absent`` (engine and dtype -> why), ``workloads`` (name -> rows with engine,
        dtype, tokens/s, ratio = ours / theirs in speed at the same dtype, cosine min and mean
        against the reference engine), ``query`` (rows with milliseconds p50 and p99 of the best
        burst), ``encoder`` (workload -> dtype -> share of the measured ceiling), ``footprint``
        (rows with seconds to the first vector and the peak memory of a process that embeds the
        first workload).
    """
    engines, absent = installed_engines(model_name, num_threads, dtypes)
    labels = [f"{engine.name}, {engine.dtype}" for engine in engines]
    models = {
        dtype: SentenceTransformer(model_name, num_threads=num_threads, dtype=dtype)
        for dtype in dtypes
    }
    model = next(iter(models.values()))
    result: dict[str, Any] = {"machine": machine(), "absent": absent, "workloads": {}}
    result["encoder"] = {
        name: {
            dtype: encoder_share(one, texts, num_threads, rounds) for dtype, one in models.items()
        }
        for name, texts in workloads.items()
    }
    for name, texts in workloads.items():
        num_tokens = int(model._tokenize(list(texts)).seqlens.sum())
        vectors = [engine.encode(texts) for engine in engines]
        # PyTorch in float32 is the referee where it is installed.
        referee = vectors[labels.index(_REFEREE) if _REFEREE in labels else 0]
        runs: dict[str, Callable[[], Any]] = {
            label: partial(engine.encode, texts)
            for label, engine in zip(labels, engines, strict=True)
        }
        seconds = {k: float(np.median(v)) for k, v in interleaved(runs, rounds).items()}
        rows = []
        for label, engine, theirs in zip(labels, engines, vectors, strict=True):
            cosines = (theirs * referee).sum(1)
            rows.append(
                {
                    "engine": engine.name,
                    "dtype": engine.dtype,
                    "tokens_per_second": num_tokens / seconds[label],
                    "ours_over_theirs": seconds[label] / seconds[f"minifuse, {engine.dtype}"],
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
    result["footprint"] = _bench_footprint(
        model_name, engines, num_threads, next(iter(workloads.values()), [query]), absent
    )
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

    flops = encoder_flops(model, tokens.seqlens)
    share = share_of_peak(run, flops, num_threads, max(rounds, 5), model.dtype)
    return {"tokens_per_second": float(tokens.seqlens.sum()) / share["seconds"]} | share


# The encoder's stages as bench_profile names them.
_STAGES = {
    "matrices": "matrix products",
    "attention": "attention",
    "activation": "GELU",
    "layer_norm": "LayerNorm",
    "quantization": "quantisation",
    "embedding": "embedding",
    "pooling": "pooling",
}


def bench_profile(
    model: SentenceTransformer, texts: Sequence[str], num_threads: int, rounds: int = 5
) -> list[dict[str, Any]]:
    """Profile a whole encode: the time of each part, medians over rounds.

    Tokenising, sorting and the encoder are timed apart; what encode takes beyond them is Python's.
    The encoder's stages are counted by its threads in ticks of the processor's counter.

    Returns:
        Rows with ``stage``, ``share`` of the encode and ``us_per_token``, the last one the whole.
    """
    listed = list(texts)
    arguments = {"batch_size": 32, "num_threads": num_threads}
    seconds: dict[str, list[float]] = {"encode": [], "tokens": [], "encoder": []}
    shares: dict[str, list[float]] = {stage: [] for stage in _STAGES}
    model.encode(listed, num_threads=num_threads)
    for _ in range(rounds):
        seconds["encode"].append(time_once(lambda: model.encode(listed, num_threads=num_threads)))
        start = time.perf_counter()
        tokens, _ = model._tokenize(listed).sorted_by_length()
        middle = time.perf_counter()
        profile = model._encoder.profile(tokens.ids, tokens.cu_seqlens(), **arguments)
        seconds["tokens"].append(middle - start)
        seconds["encoder"].append(time.perf_counter() - middle)
        for stage, share in profile.items():
            shares[stage].append(share)
    whole, tokenising, encoder = (float(np.median(v)) for v in seconds.values())
    parts = {"tokenisation": tokenising}
    parts |= {name: encoder * float(np.median(shares[s])) for s, name in _STAGES.items()}
    # Threads that wait for the last one, and Python; noise of the medians can make it negative.
    parts["Python and the rest"] = whole - sum(parts.values())
    per_token = 1e6 / max(1, len(tokens.ids))
    rows = [
        {"stage": name, "share": f"{one / whole:.1%}", "us_per_token": one * per_token}
        for name, one in parts.items()
    ]
    return [*rows, {"stage": "encode", "share": "100%", "us_per_token": whole * per_token}]


def schedules(
    model_name: str,
    seqlens: Sequence[int],
    num_threads: int | None = None,
    batch_size: int = 32,
    dtype: str = "float32",
) -> list[dict[str, Any]]:
    """List the ways to divide sentences with these token counts among the threads.

    Args:
        model_name: its configuration decides what a token, a pair of tokens and fetching the
            weights cost; no weight is read.
        seqlens: token counts, in the order of the batch.
        num_threads: the default number if None.
        batch_size: the most sentences in a chunk.
        dtype: of the weights.

    Returns:
        Rows with ``choice`` ("chosen" or ""), ``chunk_tokens`` aimed at, ``chunks``, ``shared`` of
        them that all threads compute together, one after the other, before each takes the next of
        the rest alone, and ``gflop`` until the last thread is done, in the time that one takes for
        10^9 floating-point operations. The cheapest is what ``encode`` does.

    Raises:
        ValueError: a token count that is negative or above max_position_embeddings.
    """
    config = read_model_folder(resolve_model(model_name)).description
    cu_seqlens = np.concatenate([[0], np.cumsum(seqlens, dtype=np.int64)]).astype(np.int32)
    threads = hardware.describe()["num_threads"] if num_threads is None else num_threads
    chosen, *considered = new_encoder(config, dtype).plan(
        cu_seqlens, batch_size=batch_size, num_threads=threads
    )
    return [
        {
            "choice": "chosen" if row == chosen else "",
            "chunk_tokens": row[0],
            "chunks": row[1],
            "shared": row[2],
            "gflop": row[3] / 1e9,
        }
        for row in considered
    ]


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


def _bench_query(
    model: SentenceTransformer, engines: Sequence[Engine], query: str, bursts: int = 5
) -> dict[str, Any]:
    """Engines in turn, bursts of 200 warm calls each; an engine's best burst by its median."""
    best: dict[tuple[str, str], tuple[float, float]] = {}
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
            key = (engine.name, engine.dtype)
            if key not in best or p50 < best[key][0]:
                best[key] = (float(p50), float(p99))
    return {
        "num_tokens": len(model._tokenize([query]).ids),
        "rows": [
            {
                "engine": name,
                "dtype": dtype,
                "p50_ms": p50 * 1e3,
                "p99_ms": p99 * 1e3,
                "ours_over_theirs_time": best["minifuse", dtype][0] / p50,
            }
            for (name, dtype), (p50, p99) in best.items()
        ],
    }


def _bench_footprint(
    model_name: str,
    engines: Sequence[Engine],
    num_threads: int,
    texts: Sequence[str],
    absent: dict[str, str],
    rounds: int = 3,
) -> list[dict[str, Any]]:
    """Medians over processes, the engines in turn; one that fails is told in absent."""
    runs: list[list[dict[str, float]]] = [[] for _ in engines]
    for _ in range(rounds):
        for engine, results in zip(engines, runs, strict=True):
            try:
                results.append(
                    measure_footprint(engine.name, engine.dtype, model_name, num_threads, texts)
                )
            except RuntimeError as error:  # the figures before it must not be lost
                absent[f"start-up of {engine.name}, {engine.dtype}"] = str(error)
    return [
        {"engine": engine.name, "dtype": engine.dtype}
        | {key: float(np.median([one[key] for one in results])) for key in results[0]}
        for engine, results in zip(engines, runs, strict=True)
        if results
    ]


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
                times = interleaved({k: repeated(f, repeat) for k, f in runs.items()}, rounds, True)
            medians = {k: float(np.median(v)) / repeat * 1e6 for k, v in times.items()}
            unpacked = medians.get("unpacked")
            peak = hardware.peak(num_threads, 0.1, "float32")["float32"]
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


def plot_encode(result: dict[str, Any], path: str) -> None:
    """The engines' speeds as bars, a chart a workload: a .png, .svg or .pdf.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: another ending.
    """
    from minifuse.plots import new_figure, save_figure

    workloads = result["workloads"]
    rows = max(len(workload["rows"]) for workload in workloads.values())
    figure = new_figure(5.5 * len(workloads), 1.2 + 0.32 * rows)
    charts = figure.subplots(1, len(workloads), squeeze=False)[0]
    for chart, (name, workload) in zip(charts, workloads.items(), strict=True):
        ranked = sorted(workload["rows"], key=lambda row: row["tokens_per_second"])
        names = [f"{row['engine']}, {row['dtype']}" for row in ranked]
        colors = ["C1" if row["engine"] == "minifuse" else "C0" for row in ranked]
        bars = chart.barh(names, [row["tokens_per_second"] for row in ranked], color=colors)
        chart.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=8)
        chart.set_title(f"{name}: {workload['num_texts']} texts, tokens/s", fontsize=10)
        chart.margins(x=0.15)
        chart.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(f"{result['machine']['cpu']}, {result['machine']['date']}", fontsize=8)
    save_figure(figure, path)


def write_json(path: str, value: dict[str, Any]) -> None:
    """Write a result whole or not at all."""
    from minifuse.whole_files import write_text

    write_text(path, json.dumps(value, indent=1) + "\n")
