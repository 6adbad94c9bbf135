"""Write the measured tables into README.md and docs/, between their markers, from results/*.json.

    python benchmarks/render_tables.py [--check]

A table stands between `<!-- table NAME -->` and `<!-- end -->`. With --check nothing is written and
the exit status is 1 where a page differs from its results, as the tests ask.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minifuse.bench.report import format_table

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
PAGES = ("README.md", "docs/benchmarks.md", "docs/cuda.md")
PEERS = {
    "sentence-transformers": "sentence-transformers",
    "torch": "PyTorch",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "ctranslate2": "CTranslate2",
    "tokenizers": "tokenizers",
}

# Rows, and key -> heading of their columns, as format_table takes them.
Table = tuple[list[dict[str, Any]], dict[str, str]]


def _where(machine: dict[str, Any]) -> str:
    versions = machine["versions"]
    peers = ", ".join(f"{PEERS[k]} {versions[k]}" for k in PEERS if k in versions)
    if device := machine.get("device"):
        return f"{device}, {machine['date']}; minifuse {versions['minifuse']}, {peers}."
    isa = "/".join(dict.fromkeys(machine["isa"].values()))
    return (
        f"{machine['cpu']} ({isa}), {machine['num_threads']} threads, {machine['date']}; "
        f"minifuse {versions['minifuse']}, {peers}."
    )


def encode_table(result: dict[str, Any]) -> Table:
    """tokens/s on each workload, milliseconds for a query, cosines: a row an engine."""
    rows: dict[str, dict[str, Any]] = {}
    columns = {"engine": "engine", "dtype": "dtype"}
    for name, workload in result["workloads"].items():
        columns[name] = f"{name}, tokens/s"
        columns[f"{name} ratio"] = "speed-up"
        for row in workload["rows"]:
            key = f"{row['engine']}, {row['dtype']}"
            one = rows.setdefault(key, {"engine": row["engine"], "dtype": row["dtype"]})
            one[name] = f"{row['tokens_per_second']:,.0f}"
            one[f"{name} ratio"] = f"{row['ours_over_theirs']:.2f}x"
            worst = min(row["cosine_min"], float(one.get("cosine", 1)))
            one["cosine"] = f"{worst:.6f}"
    columns |= {"p50": f"one query ({result['query']['num_tokens']} tokens), ms"}
    columns |= {"query ratio": "speed-up", "cosine": "minimum cosine"}
    for row in result["query"]["rows"]:
        one = rows[f"{row['engine']}, {row['dtype']}"]
        one["p50"] = f"{row['p50_ms']:.2f}"
        one["query ratio"] = f"{1 / row['ours_over_theirs_time']:.2f}x"
    return list(rows.values()), columns


def encoder_table(result: dict[str, Any]) -> Table:
    """The encoder alone against the ceiling."""
    rows = [
        {
            "workload": name,
            "dtype": dtype,
            "tokens": f"{share['tokens_per_second']:,.0f}",
            "rate": f"{share['gflops']:.0f}",
            "peak": f"{share['peak_gflops']:.0f}",
            "share": f"{share['share_of_peak']:.1%}",
            "tile": f"{share['tile_share_of_peak']:.1%}" if "tile_share_of_peak" in share else "-",
        }
        for name, shares in result["encoder"].items()
        for dtype, share in shares.items()
    ]
    columns = {"workload": "workload", "dtype": "dtype", "tokens": "tokens/s", "rate": "GFLOP/s",
               "peak": "measured ceiling", "share": "share"}  # fmt: skip
    if any(row["tile"] != "-" for row in rows):
        columns["tile"] = "a tile in L1"
    return rows, columns


def footprint_table(result: dict[str, Any]) -> Table:
    """Start-up and memory of every engine, each in a process of its own."""
    rows = [
        {
            "engine": row["engine"],
            "dtype": row["dtype"],
            "startup": f"{row['startup_seconds']:.2f}",
            "peak": f"{row['peak_mib']:,.0f}",
        }
        for row in result["footprint"]
    ]
    columns = {"engine": "engine", "dtype": "dtype", "startup": "first vector after, s",
               "peak": "peak memory, MiB"}  # fmt: skip
    return rows, columns


def ops_table(result: dict[str, Any]) -> Table:
    """Every op at every size against PyTorch."""
    rows = [
        {
            "op": row["op"],
            "tokens": row["tokens"],
            "torch": f"{row['torch_us']:,.1f}",
            "packed": f"{row['packed_us']:,.1f}",
            "speedup": f"{row['speedup_packed']:.2f}x",
            "unpacked": "-" if row["unpacked_us"] is None else f"{row['unpacked_us']:,.1f}",
            "speedup2": "-"
            if row["speedup_unpacked"] is None
            else f"{row['speedup_unpacked']:.2f}x",
        }
        for row in result["rows"]
    ]
    columns = {"op": "op", "tokens": "tokens", "torch": "PyTorch, us", "packed": "minifuse, us",
               "speedup": "speed-up", "unpacked": "weights not packed, us",
               "speedup2": "speed-up"}  # fmt: skip
    return rows, columns


def profile_table(result: dict[str, Any]) -> Table:
    """Shares of a whole encode, a column for each workload and dtype."""
    rows: dict[str, dict[str, Any]] = {}
    for name, profile in result["profiles"].items():
        for row in profile[:-1]:
            rows.setdefault(row["stage"], {"stage": row["stage"]})[name] = row["share"]
        whole = rows.setdefault("encode, us a token", {"stage": "encode, us a token"})
        whole[name] = f"{profile[-1]['us_per_token']:.0f}"
    whole = rows.pop("encode, us a token")
    columns = {"stage": "stage"} | {name: name for name in result["profiles"]}
    return [*rows.values(), whole], columns


def search_table(result: dict[str, Any]) -> Table:
    """Milliseconds of a search, a row an engine, columns by the number of queries."""
    rows: dict[str, dict[str, Any]] = {}
    columns = {"engine": "engine"}
    for row in result["rows"]:
        queries = row["queries"]
        columns[f"ms {queries}"] = f"{queries} queries, ms" if queries > 1 else "one query, ms"
        columns[f"ratio {queries}"] = "faster than float32"
        one = rows.setdefault(row["engine"], {"engine": row["engine"]})
        one[f"ms {queries}"], one[f"ratio {queries}"] = f"{row['ms']:,.1f}", row["ratio"]
        one["recall"] = f"{row['recall']:.4f}"
    return list(rows.values()), columns | {"recall": "recall@10"}


def training_table(result: dict[str, Any]) -> Table:
    """Pairs a second of both trainers, and what they learnt."""
    ours = result["rows"][0]["pairs_per_second"]
    rows = [
        {
            "engine": row["engine"],
            "rate": f"{row['pairs_per_second']:.2f}",
            "ratio": f"{ours / row['pairs_per_second']:.2f}x",
            "before": f"{row['mrr_before']:.4f}",
            "after": f"{row['mrr_after']:.4f}",
        }
        for row in result["rows"]
    ]
    columns = {"engine": "engine", "rate": "pairs/s", "ratio": "speed-up",
               "before": "MRR before", "after": "MRR after"}  # fmt: skip
    return rows, columns


def models_table(result: dict[str, Any]) -> Table:
    """Seconds and tokens/s of other models, and how much faster ours is in both dtypes."""
    rows = [
        {
            "shape": row.get("shape"),
            "engine": row["engine"],
            "tokens": f"{row['tokens_per_second']:,.0f}",
            "float32": f"{row['float32 is faster']:.2f}x",
            "int8": f"{row['int8 is faster']:.2f}x",
        }
        for row in result["rows"]
    ]
    columns = {"engine": "engine", "tokens": "tokens/s", "float32": "minifuse in float32 is faster",
               "int8": "in int8"}  # fmt: skip
    return rows, ({"shape": "shape"} | columns if rows[0]["shape"] else columns)


def tokenizers_table(result: dict[str, Any]) -> Table:
    """Microseconds a text on one thread."""
    rows = [
        row
        | {key: f"{row[key]:,.1f}" for key in ("us_minifuse", "us_tokenizers")}
        | {"speedup": f"{row['speedup']:,.1f}x"}
        for row in result["rows"]
    ]
    columns = {"tokenizer": "tokenizer", "texts": "texts", "us_minifuse": "minifuse, us a text",
               "us_tokenizers": "tokenizers, us a text", "speedup": "speed-up"}  # fmt: skip
    return rows, columns


def cuda_table(result: dict[str, Any]) -> Table:
    """tokens/s of the encoder and of whole encodes on a device, and microseconds for a query."""
    rows: dict[str, dict[str, Any]] = {}
    columns = {"engine": "engine", "dtype": "dtype"}
    for isa, found in result["isas"].items():
        queries = {(row["engine"], row["dtype"]): row for row in found["query"]}
        for name in ("short", "paragraphs"):
            columns |= {name: f"{name}: encoder, M tokens/s", f"{name} share": "share of the peak",
                        f"{name} whole": "whole encode"}  # fmt: skip
            for row in found["workloads"][name]["rows"]:
                is_ours = row["engine"] == "minifuse"
                if is_ours and row["dtype"] == "float32" and isa != "sm_80":
                    continue  # the same kernels
                engine = f"minifuse, {isa}" if is_ours else f"{row['engine']}, SDPA"
                one = rows.setdefault(f"{engine} {row['dtype']}",
                                      {"engine": engine, "dtype": row["dtype"]})  # fmt: skip
                one[name] = f"{row['encoder_tokens_per_second'] / 1e6:.2f}"
                one[f"{name} whole"] = f"{row['encode_tokens_per_second'] / 1e6:.2f}"
                one[f"{name} share"] = f"{row['share_of_peak']:.1%}"
                worst = min(row["cosine_min"], float(one.get("cosine", 1)))
                one["cosine"] = f"{worst:.6f}"
                query = queries.get((row["engine"], row["dtype"]))
                one["query"] = f"{query['encoder_us']:,.0f}" if query else "-"
    return list(rows.values()), columns | {"query": "a query, us", "cosine": "minimum cosine"}


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], Table]]] = {
    "encode": ("encode.json", encode_table),
    "encode_vnni": ("encode_vnni.json", encode_table),
    "encoder_vnni": ("encode_vnni.json", encoder_table),
    "cuda": ("cuda.json", cuda_table),
    "encoder": ("encode.json", encoder_table),
    "footprint": ("encode.json", footprint_table),
    "ops": ("ops.json", ops_table),
    "rerank": ("rerank.json", models_table),
    "search": ("search.json", search_table),
    "shapes": ("shapes.json", models_table),
    "sparse": ("sparse.json", models_table),
    "tokenizers": ("tokenizers.json", tokenizers_table),
    "training": ("training.json", training_table),
    "profile": ("profile.json", profile_table),
}


def rendered(text: str) -> str:
    """The page with every table made anew."""

    def table(match: re.Match[str]) -> str:
        file, rows_of = TABLES[match[1]]
        result = json.loads((RESULTS / file).read_text(encoding="utf-8"))
        text = f"{format_table(*rows_of(result))}\n\n{_where(result['machine'])}"
        return f"<!-- table {match[1]} -->\n{text}\n<!-- end -->"

    return re.sub(r"<!-- table (\w+) -->\n.*?<!-- end -->", table, text, flags=re.S)


def main() -> int:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    stale = []
    for name in PAGES:
        page = ROOT / name
        text = page.read_text(encoding="utf-8")
        if (new := rendered(text)) == text:
            continue
        stale.append(name)
        if not arguments.check:
            page.write_text(new, encoding="utf-8")
    if arguments.check and stale:
        print(f"not as results/ say: {', '.join(stale)}; run benchmarks/render_tables.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
