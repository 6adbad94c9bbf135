"""Shared parts of the commands: the options of a model, and bars of progress."""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

__all__ = [
    "DEFAULT_MODEL",
    "WINDOW_TEXTS",
    "add_command",
    "hides_bar",
    "load_model",
    "show_bars",
    "windows",
]

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"

# Texts that are embedded and written at a time: what an interrupted command loses at most.
WINDOW_TEXTS = 4096


def add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int] | None,
    text: str,
    with_model: bool = True,
    with_dtype: bool = False,
) -> argparse.ArgumentParser:
    """Add a command that calls run, with the options of a model where it takes one."""
    sub: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    sub.set_defaults(run=run)
    if with_model:
        sub.add_argument(
            "-m", "--model", default=DEFAULT_MODEL, help="folder or name (%(default)s)"
        )
        sub.add_argument("--threads", type=int, help="at most this many threads")
    if with_dtype:
        sub.add_argument(
            "--dtype",
            choices=("float32", "bfloat16", "float16", "int8", "auto"),
            help="of the weights (float32, or as the folder has them); auto: the fastest here",
        )
        sub.add_argument("--device", help="cpu, cuda or cuda:N (cpu)")
    return sub


def hides_bar(arguments: argparse.Namespace) -> bool | None:
    """Return tqdm's ``disable``: None where a bar is shown if a terminal is there to show it."""
    return True if arguments.no_progress or sys.stderr is None else None


def show_bars(arguments: argparse.Namespace) -> None:
    """Let encode and predict show bars where a terminal is there to show them."""
    is_shown = not arguments.quiet and sys.stderr is not None and sys.stderr.isatty()
    level = logging.INFO if is_shown else logging.NOTSET
    logging.getLogger("minifuse.base_model").setLevel(level)


def load_model(arguments: argparse.Namespace) -> Any:
    """Load the model that the command's options name."""
    from minifuse import SentenceTransformer

    return SentenceTransformer(
        arguments.model,
        device=arguments.device,
        num_threads=arguments.threads,
        dtype=arguments.dtype,
    )


def windows(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Cut texts into lists of at most size."""
    iterator = iter(texts)
    while window := list(itertools.islice(iterator, size)):
        yield window
