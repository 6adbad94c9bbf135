"""minifuse similarity: every text against every other."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from minifuse.cli.common import add_command, load_model
from minifuse.cli.terminal import printable, printable_json

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add ``minifuse similarity`` to the commands."""
    sub = add_command(
        commands,
        "similarity",
        _run,
        "The similarity of every text with every other.",
        with_dtype=True,
    )
    sub.add_argument("texts", nargs="*", help="texts; none: lines of the standard input")
    sub.add_argument("--json", action="store_true")


def _run(arguments: argparse.Namespace) -> int:
    texts = arguments.texts or [line.rstrip("\n") for line in sys.stdin]
    if not texts:
        raise ValueError("no text: give texts as arguments, or lines on the standard input")
    model = load_model(arguments)
    embeddings = model.encode(texts)
    matrix = model.similarity(embeddings, embeddings)
    if arguments.json:
        print(printable_json({"texts": texts, "similarity": matrix.tolist()}))
        return 0
    for row, text in zip(matrix, texts, strict=True):
        print(" ".join(f"{value:8.4f}" for value in row), "", printable(text[:60]))
    return 0
