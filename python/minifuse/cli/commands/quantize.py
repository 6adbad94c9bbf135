"""minifuse quantize: write a model in int8."""

from __future__ import annotations

import argparse
from typing import Any

from minifuse.cli.common import add_command

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add ``minifuse quantize`` to the commands."""
    sub = add_command(
        commands, "quantize", _run, "Write a model in int8, which loads at once.", False
    )
    sub.add_argument("model", help="folder or name")
    sub.add_argument("output", help="a new folder")
    sub.add_argument("--threads", type=int, help="at most this many threads")


def _run(arguments: argparse.Namespace) -> int:
    from minifuse.models.quantization import quantize

    output = quantize(arguments.model, arguments.output, num_threads=arguments.threads)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print(f"{output}: {size / 1e6:.1f} MB")
    return 0
