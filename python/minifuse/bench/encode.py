"""Speed beside accuracy: whole encodes and single queries against the peers, and our own stages.

Rows that we lose stay.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from minifuse import hardware
from minifuse.bench.engines import Engine, installed_engines
from minifuse.bench.footprint import measure_footprint
from minifuse.bench.timing import interleaved, machine, share_of_peak, time_once
from minifuse.models.folder import read_model_folder
from minifuse.models.resolve import resolve_model
from minifuse.models.weights import new_encoder
from minifuse.sentence_transformer import SentenceTransformer

__all__ = [
    "bench_encode",
    "bench_profile",
    "encoder_flops",
    "encoder_share",
    "schedules",
]

_FLOPS_PER_TOKEN_TERM = 2
_REFEREE = "sentence-transformers, float32"


def encoder_flops(model: SentenceTransformer, seqlens: Any) -> float:
    """Floating-point operations of the encoder for sentences of these lengths (DESIGN's count)."""
    c = model.pipeline.folder.description
    hidden, inner, layers = c.hidden_size, c.intermediate_size, c.num_hidden_layers
    per_token = layers * _FLOPS_PER_TOKEN_TERM * (4 * hidden * hidden + 2 * hidden * inner)
    lengths = np.asarray(seqlens, np.float64)
    attention = layers * _FLOPS_PER_TOKEN_TERM * 2 * hidden * (lengths**2).sum()
    return float(per_token * lengths.sum() + attention)


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
        num_tokens = int(model.pipeline.tokenize(list(texts)).seqlens.sum())
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
    tokens, _ = model.pipeline.tokenize(list(texts)).sorted_by_length()
    cu_seqlens = tokens.cu_seqlens()

    def run() -> None:
        model.pipeline.encoder.encode(
            tokens.ids,
            cu_seqlens,
            poolings=model.pipeline.folder.poolings,
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
        tokens, _ = model.pipeline.tokenize(listed).sorted_by_length()
        middle = time.perf_counter()
        profile = model.pipeline.encoder.profile(tokens.ids, tokens.cu_seqlens(), **arguments)
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
    if any(not 0 <= seqlen < 1 << 31 for seqlen in seqlens) or sum(seqlens) >= 1 << 31:
        raise ValueError(
            f"token counts are {list(seqlens)!r:.60}, wanted at least 0 and below 2^31 together"
        )
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
        "num_tokens": len(model.pipeline.tokenize([query]).ids),
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
