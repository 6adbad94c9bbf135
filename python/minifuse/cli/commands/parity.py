"""minifuse parity: compare with float64 NumPy and with PyTorch, op by op and whole."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

from minifuse.cli.common import add_command

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add ``minifuse parity`` to the commands."""
    sub = add_command(
        commands, "parity", _run, "Compare with float64 NumPy and PyTorch, op by op and whole."
    )
    sub.add_argument("file", nargs="?", help="lines, or pairs as for evaluate; none: our own text")
    sub.add_argument("--limit", type=int, default=1000, help="sentences (%(default)s)")


def _sentences_of(path: str | None, limit: int) -> list[str]:
    from minifuse.bench import sample_text
    from minifuse.evaluation import read_scored_pairs
    from minifuse.files.texts import read_texts

    if path is None:
        return list(sample_text.SENTENCES)[:limit]
    if Path(path).suffix in (".tsv", ".csv"):
        pairs = read_scored_pairs(path)
        both = itertools.chain(*zip(pairs.sentences1, pairs.sentences2, strict=True))
        return list(itertools.islice(dict.fromkeys(both), limit))
    return list(itertools.islice(read_texts(path), limit))


def _run(arguments: argparse.Namespace) -> int:
    from minifuse.bench.parity import run_parity

    checks = run_parity(arguments.model, _sentences_of(arguments.file, arguments.limit))
    width = max(len(check.name) for check in checks)
    print(f"{'':{width}s}  {'minifuse':>9s}  {'PyTorch':>9s}  {'bound':>9s}")
    for check in checks:
        theirs = "" if check.torch_value is None else f"{check.torch_value:.2e}"
        bound = "" if check.bound is None else f"{check.bound:.2e}"
        verdict = "" if check.bound is None else "ok" if check.holds else "BEYOND THE BOUND"
        print(f"{check.name:{width}s}  {check.value:9.2e}  {theirs:>9s}  {bound:>9s}  {verdict}")
    return 0 if all(check.holds for check in checks) else 1
