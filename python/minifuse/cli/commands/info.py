"""minifuse info: the machine, its arithmetic ceiling, and how work would be dealt out."""

from __future__ import annotations

import argparse
import json
from typing import Any

from minifuse.cli.common import add_command

__all__ = ["add"]

_TITLES = {
    "cpu": "processor",
    "isa": "instruction sets",
    "supported_isas": "supported",
    "features": "features",
    "num_threads": "threads",
    "devices": "devices",
    "peak_gflops": "ceiling, GFLOP/s",
}


def add(commands: Any) -> None:
    """Add ``minifuse info`` to the commands."""
    sub = add_command(
        commands, "info", _run, "The machine: instruction sets, threads, ceiling, schedules."
    )
    sub.add_argument("--peak", action="store_true", help="measure the arithmetic ceiling")
    sub.add_argument("--json", action="store_true", help="as JSON, for programs")
    sub.add_argument(
        "--schedule",
        metavar="TOKENS",
        help="how a batch would be dealt out to the threads: sentences' token counts, as 500,3,3,3",
    )


def _run(arguments: argparse.Namespace) -> int:
    from minifuse import hardware
    from minifuse.bench import report

    about = hardware.describe()
    if arguments.peak:
        about["peak_gflops"] = {
            dtype: round(rate / 1e9, 1) for dtype, rate in hardware.peak().items()
        }
    rows = [] if arguments.schedule is None else _schedules(arguments)
    if arguments.json:
        print(json.dumps(about | ({"schedules": rows} if rows else {})))
        return 0
    for key, value in about.items():
        print(f"{_TITLES[key]:18s} {_told(value)}")
    if rows:
        columns = {
            "choice": "",
            "chunk_tokens": "tokens a chunk",
            "chunks": "chunks",
            "shared": "shared by all threads",
            "gflop": "GFLOP till the end",
        }
        print(f"\n{arguments.schedule.count(',') + 1} sentences, the cheapest of")
        print(report.format_table(rows, columns))
    return 0


def _schedules(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    from minifuse.bench import encode

    try:
        lengths = [int(length) for length in arguments.schedule.split(",")]
    except ValueError as error:
        raise ValueError(f"--schedule: {error}; wanted token counts, as 500,3,3,3") from error
    return encode.schedules(arguments.model, lengths, arguments.threads)


def _told(value: Any) -> str:
    """Return a list or a dictionary as people write one."""
    if isinstance(value, dict):
        return ", ".join(f"{one} {what}" for one, what in value.items())
    return ", ".join(value) if isinstance(value, list) else str(value)
