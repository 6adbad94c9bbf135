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
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from minifuse import hardware, ops
from minifuse.engines import Engine, installed_engines
from minifuse.sentence_transformer import SentenceTransformer

__all__ = ["bench_encode", "bench_ops", "format_table", "machine"]

_FLOPS_PER_TOKEN_TERM = 2
OP_TOKENS = (32, 128, 512, 2048, 4096)


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


def _seconds(f: Callable[[], Any]) -> float:
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def _interleaved(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    for run in runs.values():
        run()  # warm
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(_seconds(run))
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
        name: _encoder_share(model, texts, num_threads, rounds) for name, texts in workloads.items()
    }
    for name, texts in workloads.items():
        num_tokens = int(model._tokenize(list(texts)).seqlens.sum())
        vectors = {engine.name: engine.encode(texts) for engine in engines}
        # PyTorch is the referee where it is installed.
        referee = vectors.get("sentence-transformers", vectors["minifuse"])
        times = _interleaved(
            {e.name: (lambda e=e, t=texts: e.encode(t)) for e in engines}, rounds
        )
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


def _encoder_share(
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

    run()
    seconds, peaks = [], []
    for _ in range(max(rounds, 5)):
        peaks.append(hardware.peak(num_threads, 0.1)["float32"])
        seconds.append(_seconds(run))
    flops = encoder_flops(model, tokens.seqlens)
    rate = flops / float(np.median(seconds))
    peak = float(np.median(peaks))
    return {
        "tokens_per_second": float(tokens.seqlens.sum() / np.median(seconds)),
        "gflops": rate / 1e9,
        "peak_gflops": peak / 1e9,
        "share_of_peak": rate / peak,
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
            times = [_seconds(lambda e=engine: e.encode_one(query)) for _ in range(200)]  # type: ignore[misc]
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
        Rows with op, tokens, microseconds of PyTorch, of ours with packed and with unpacked weights,
        and the speed-ups.

    Raises:
        ImportError: PyTorch is not installed.
    """
    import torch

    functional = torch.nn.functional
    torch.set_num_threads(num_threads)
    generator = np.random.default_rng(0)
    hidden, inner, heads = 384, 1536, 12

    def random(*shape: int) -> Any:
        return (generator.standard_normal(shape) * 0.05).astype(np.float32)

    wo, bo, gamma, beta = random(hidden, hidden), random(hidden), random(hidden), random(hidden)
    w1, b1, w2, b2 = random(inner, hidden), random(inner), random(hidden, inner), random(hidden)
    packed_wo, packed_w1, packed_w2 = (ops.pack_linear(w) for w in (wo, w1, w2))
    t = {
        name: torch.from_numpy(a)
        for name, a in {
            "wo": wo, "bo": bo, "g": gamma, "b": beta, "w1": w1, "b1": b1, "w2": w2, "b2": b2,
        }.items()
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    for tokens in OP_TOKENS:
        x, residual = random(tokens, hidden), random(tokens, hidden)
        tx, tr = torch.from_numpy(x), torch.from_numpy(residual)
        seqlens = _ragged(tokens, generator)
        cu_seqlens = np.concatenate([[0], np.cumsum(seqlens)]).astype(np.int32)
        qkv = [random(tokens, heads, hidden // heads) for _ in range(3)]
        longest = int(seqlens.max())
        mask = np.arange(longest) < seqlens[:, None]
        padded = []
        for part in qkv:
            one = np.zeros((len(seqlens), longest, heads, hidden // heads), np.float32)
            one[mask] = part
            padded.append(torch.from_numpy(one.transpose(0, 2, 1, 3).copy()))
        tmask = torch.from_numpy(mask)[:, None, None, :]
        states = np.zeros((len(seqlens), longest, hidden), np.float32)
        states[mask] = x
        tstates, tkeep = torch.from_numpy(states), torch.from_numpy(mask)

        def torch_pool(s: Any = tstates, k: Any = tkeep) -> Any:
            weights = k.unsqueeze(-1).to(s.dtype)
            return (s * weights).sum(1) / weights.sum(1).clamp(min=1e-9)

        cases: dict[str, dict[str, Callable[[], Any]]] = {
            "linear + residual + LayerNorm": {
                "torch": lambda: functional.layer_norm(
                    functional.linear(tx, t["wo"], t["bo"]) + tr, (hidden,), t["g"], t["b"], 1e-12
                ),
                "packed": lambda: ops.linear_residual_layer_norm(
                    x, packed_wo, bo, residual, gamma, beta
                ),
                "unpacked": lambda: ops.linear_residual_layer_norm(
                    x, wo, bo, residual, gamma, beta
                ),
            },
            "GELU FFN": {
                "torch": lambda: functional.linear(
                    functional.gelu(functional.linear(tx, t["w1"], t["b1"])), t["w2"], t["b2"]
                ),
                "packed": lambda: ops.gelu_ffn(x, packed_w1, b1, packed_w2, b2),
                "unpacked": lambda: ops.gelu_ffn(x, w1, b1, w2, b2),
            },
            "attention, ragged": {
                "torch": lambda: functional.scaled_dot_product_attention(*padded, attn_mask=tmask),
                "packed": lambda: ops.attention_varlen(*qkv, cu_seqlens),
            },
            "masked mean pooling": {
                "torch": torch_pool,
                "packed": lambda: ops.masked_mean_pool(states, mask),
            },
        }
        for name, runs in cases.items():
            with torch.inference_mode():
                repeat = max(1, int(2e-3 / max(_seconds(runs["packed"]), 1e-6)))
                timed = {k: (lambda f=f: [f() for _ in range(repeat)]) for k, f in runs.items()}
                medians = {
                    k: float(np.median(v)) / repeat * 1e6
                    for k, v in _interleaved(timed, rounds).items()
                }
            unpacked = medians.get("unpacked")
            rows.append(
                {
                    "op": name,
                    "tokens": tokens,
                    "torch_us": medians["torch"],
                    "packed_us": medians["packed"],
                    "unpacked_us": unpacked,
                    "speedup_packed": medians["torch"] / medians["packed"],
                    "speedup_unpacked": medians["torch"] / unpacked if unpacked else None,
                }
            )
    return rows


def _ragged(tokens: int, generator: np.random.Generator) -> Any:
    """Sentence lengths of 8 to 40 tokens that add up to `tokens`."""
    lengths: list[int] = []
    while sum(lengths) < tokens:
        lengths.append(min(int(generator.integers(8, 41)), tokens - sum(lengths)))
    return np.array(lengths)


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
