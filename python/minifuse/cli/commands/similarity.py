"""minifuse similarity: every text against every other."""

from __future__ import annotations

import argparse
from typing import Any

from minifuse.cli.common import add_command, load_model
from minifuse.cli.terminal import printable, printable_json

__all__ = ["add"]

_FLOATS_AT_ONCE = 1 << 22  # of the similarities


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
    from minifuse.files.texts import read_texts

    texts = arguments.texts or list(read_texts("-"))
    if not texts:
        raise ValueError("no text: give texts as arguments, or lines on the standard input")
    model = load_model(arguments)
    embeddings = model.encode(texts)
    # A few rows at a time: all of them would take the square of the texts' number.
    step = max(1, _FLOATS_AT_ONCE // len(texts))
    rows = (
        row
        for first in range(0, len(texts), step)
        for row in model.similarity(embeddings[first : first + step], embeddings)
    )
    if arguments.json:
        print(f'{{"texts": {printable_json(texts)}, "similarity": [', end="")
        for place, row in enumerate(rows):
            print(", " if place else "", printable_json(row.tolist()), sep="", end="")
        print("]}")
        return 0
    for row, text in zip(rows, texts, strict=True):
        print(" ".join(f"{value:8.4f}" for value in row), "", printable(text[:60]))
    return 0
