"""The native tokenizers beside the ``tokenizers`` package on one thread, in turn.

    python benchmarks/bench_tokenizers.py [FOLDER ...] [--texts NAME=FILE:LINES ...] [--json FILE]

FOLDER: of a model or a tokenizer, all-MiniLM-L6-v2 if none is named. Texts are cut at 256 tokens,
as its model has it; beside those that are named there is one of a million characters.
"""

from __future__ import annotations

import argparse
import os
import statistics
from importlib.metadata import version
from pathlib import Path
from typing import Any

from minifuse.bench import sample_text
from minifuse.bench.report import format_table, write_json
from minifuse.bench.timing import interleaved, machine
from minifuse.models.resolve import resolve_model
from minifuse.tokens.tokenization import TextTokenizer

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MOST_TOKENS = 256


def workloads(named: list[str]) -> dict[str, list[str]]:
    """Texts by their names, NAME=FILE:LINES."""
    found = {}
    for one in named:
        name, _, source = one.partition("=")
        file, _, lines = source.rpartition(":")
        found[name] = Path(file).read_text(encoding="utf-8").splitlines()[: int(lines)]
    sentences = list(sample_text.SENTENCES)
    found.setdefault("sentences", sentences)
    whole = " ".join(sentences)
    return found | {"1 MB": [whole * (1_000_000 // len(whole) + 1)]}


def measure(folder: Path, name: str, texts: list[str], rounds: int) -> dict[str, Any]:
    """Microseconds a text of both; the same ids are asked for first."""
    tokenizer = TextTokenizer.from_folder(folder)
    if tokenizer.native is None:
        raise ValueError(f"{folder}: the native core does not have this tokenizer")
    package = tokenizer.backend
    wanted = [one.ids for one in package.encode_batch_fast(texts)]
    ours = tokenizer.encode(texts, max(map(len, wanted)), 1)
    assert [ids for ids, _ in ours.rows()] == wanted, f"{folder}, {name}: other ids"

    def theirs() -> list[list[int]]:
        return [one.ids[:MOST_TOKENS] for one in package.encode_batch_fast(texts)]

    seconds = interleaved(
        {"minifuse": lambda: tokenizer.encode(texts, MOST_TOKENS, 1), "tokenizers": theirs}, rounds
    )
    us = {engine: 1e6 * statistics.median(s) / len(texts) for engine, s in seconds.items()}
    return {
        "tokenizer": folder.name,
        "texts": name,
        "us_minifuse": us["minifuse"],
        "us_tokenizers": us["tokenizers"],
        "speedup": us["tokenizers"] / us["minifuse"],
    }


def main() -> None:
    """Measure, print and write."""
    os.environ["RAYON_NUM_THREADS"] = "1"  # of the package, read when its pool starts
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("--texts", action="append", default=[], metavar="NAME=FILE:LINES")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    folders = arguments.folders or [resolve_model(MINILM)]
    rows = [
        measure(folder, name, texts, arguments.rounds)
        for folder in folders
        for name, texts in workloads(arguments.texts).items()
    ]
    print(format_table(rows, {key: key for key in rows[0]}))
    if arguments.json is not None:
        about = machine() | {"num_threads": 1}
        about["versions"]["tokenizers"] = version("tokenizers")
        write_json(arguments.json, {"machine": about, "rows": rows})


if __name__ == "__main__":
    main()
