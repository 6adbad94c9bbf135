"""minifuse info: the machine, its arithmetic ceiling, and how work would be dealt out."""

from __future__ import annotations

import argparse
from typing import Any

from minifuse.cli.common import add_command

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add ``minifuse info`` to the commands."""
    sub = add_command(
        commands, "info", _run, "The machine: instruction sets, threads, ceiling, schedules."
    )
    sub.add_argument("--peak", action="store_true", help="measure the arithmetic ceiling")
    sub.add_argument(
        "--schedule",
        metavar="TOKENS",
        help="how a batch would be dealt out to the threads: sentences' token counts, as 500,3,3,3",
    )


def _run(arguments: argparse.Namespace) -> int:
    from minifuse import hardware
    from minifuse.bench import encode, report

    about = hardware.describe()
    if arguments.peak:
        about["peak_gflops"] = {
            dtype: round(rate / 1e9, 1) for dtype, rate in hardware.peak().items()
        }
    for key, value in about.items():
        text = ", ".join(value) if isinstance(value, list) else value
        print(f"{key:15s} {text}")
    if arguments.schedule is not None:
        try:
            lengths = [int(length) for length in arguments.schedule.split(",")]
        except ValueError as error:
            raise ValueError(f"--schedule: {error}; wanted token counts, as 500,3,3,3") from error
        print(f"\n{len(lengths)} sentences, the cheapest of")
        columns = {
            "choice": "",
            "chunk_tokens": "tokens a chunk",
            "chunks": "chunks",
            "shared": "shared by all threads",
            "gflop": "GFLOP till the end",
        }
        rows = encode.schedules(arguments.model, lengths, arguments.threads)
        print(report.format_table(rows, columns))
    return 0
