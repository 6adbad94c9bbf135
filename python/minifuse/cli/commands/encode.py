"""minifuse encode: texts in, vectors out, a window at a time."""

from __future__ import annotations

import argparse
import contextlib
import os
import stat
import sys
from typing import Any

from minifuse.cli.common import WINDOW_TEXTS, add_command, load_model, windows
from minifuse.cli.terminal import printable_json

__all__ = ["add"]

_EXAMPLES = """examples:
  minifuse encode notes.txt -o vectors.npy
  minifuse encode papers.csv --column abstract -o papers.parquet --dtype int8
  minifuse encode "How do I reset my password?" -o -
"""


def add(commands: Any) -> None:
    """Add ``minifuse encode`` to the commands."""
    sub = add_command(
        commands, "encode", _run, "Embed texts; any size in constant memory.", with_dtype=True
    )
    sub.epilog, sub.formatter_class = _EXAMPLES, argparse.RawDescriptionHelpFormatter
    sub.add_argument(
        "inputs",
        nargs="*",
        default=["-"],
        help="files of lines, .jsonl, .csv, .tsv; a text in quotes; - for stdin",
    )
    sub.add_argument(
        "-o", "--output", required=True, help=".npy, .jsonl or .parquet; - prints lines of JSON"
    )
    sub.add_argument(
        "--column", help="the column or key that holds the text (default: the only one, or text)"
    )
    sub.add_argument("--batch-size", type=int, default=32)
    sub.add_argument("--normalize", action="store_true", help="vectors of length 1")
    sub.add_argument("--truncate-dim", type=int, help="keep only the first dimensions")
    sub.add_argument("--prompt", help="put before every text")
    sub.add_argument("--truncation", choices=("cut", "error"), default="cut")
    sub.add_argument(
        "-q", "--quiet", "--no-progress", dest="quiet", action="store_true",
        help="no bar and no summary",
    )  # fmt: skip


def _run(arguments: argparse.Namespace) -> int:
    from minifuse.cli.inputs import Encoding, files_of, open_inputs
    from minifuse.files.vectors import open_writer
    from minifuse.files.whole import check_distinct

    is_printed = arguments.output == "-"
    files = files_of(arguments.inputs)
    if is_printed:
        _check_stdout(files)
    else:
        check_distinct(arguments.output, files)
    with contextlib.ExitStack() as stack:
        # The output first: a wrong name is told before a gigabyte is read.
        opened: Any = _Printer() if is_printed else open_writer(arguments.output)
        writer = stack.enter_context(opened)
        texts, total = open_inputs(arguments.inputs, arguments.column)
        model = load_model(arguments)
        width = model.get_embedding_dimension()
        if arguments.truncate_dim is not None and arguments.truncate_dim > width:
            raise ValueError(
                f"--truncate-dim is {arguments.truncate_dim}, and the vectors have {width} "
                "dimensions"
            )
        encoding = stack.enter_context(
            Encoding(
                model,
                total,
                arguments.quiet,
                refuses_long=arguments.truncation == "error",
                batch_size=arguments.batch_size,
                normalize_embeddings=arguments.normalize,
                truncate_dim=arguments.truncate_dim,
                prompt=arguments.prompt,
            )
        )
        vectors = encoding.vectors([])
        for window in windows(texts, WINDOW_TEXTS):
            vectors = encoding.vectors(window)
            writer.write(window, vectors)
        if not encoding.done:
            writer.write([], vectors)
    encoding.tell(f"{arguments.output} ({encoding.done:,} x {vectors.shape[1]})")
    return 0


class _Printer(contextlib.AbstractContextManager["_Printer"]):
    """Prints a line of JSON a text, which no terminal obeys."""

    def write(self, texts: list[str], vectors: Any) -> None:
        for text, vector in zip(texts, vectors, strict=True):
            print(printable_json({"text": text, "embedding": vector.tolist()}))

    def __exit__(self, *_: object) -> None:
        if sys.stdout is not None:
            sys.stdout.flush()


def _check_stdout(files: list[str]) -> None:
    """Refuse a standard output that is one of the inputs, which would never end."""
    if sys.stdout is None:
        raise ValueError("there is no standard output to print to")
    try:
        output = os.fstat(sys.stdout.fileno())
    except (OSError, ValueError):  # what a program has put there
        return
    for path in files:
        with contextlib.suppress(OSError):
            if stat.S_ISREG(output.st_mode) and os.path.samestat(output, os.stat(path)):
                raise ValueError(f"the standard output is the input {path}; give another output")
