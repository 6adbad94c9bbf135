"""The command line: minifuse COMMAND; each has a file of its own here, and a --help."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from minifuse.cli.terminal import printable

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    from minifuse import __version__
    from minifuse.cli.commands import (
        bench,
        compare,
        encode,
        evaluate,
        explore,
        finetune,
        index,
        info,
        models,
        parity,
        quantize,
        similarity,
    )

    parser = argparse.ArgumentParser(
        prog="minifuse", description="Sentence embeddings on fused kernels, without PyTorch."
    )
    parser.add_argument("--version", action="version", version=f"minifuse {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (encode, similarity, evaluate, compare, explore, finetune, quantize, parity,
                    bench, index, info, models):  # fmt: skip
        command.add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status.

    A wrong argument or file is told in one line on the standard error, with status 2. Where nobody
    reads on (``| head``), nothing is said: status 141, as of programs that SIGPIPE ends.
    """
    arguments = _parser().parse_args(argv)
    try:
        status = int(arguments.run(arguments))
        if sys.stdout is not None:  # closed from the start
            sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Buffered output would raise the same error again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        # A message may quote a file of a stranger's.
        message = printable(str(error), keep="\n")
        print(f"minifuse {arguments.command}: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        # A checkpoint and an index being built hold what was done.
        goes_on = (arguments.command, getattr(arguments, "index_command", "")) in (
            ("finetune", ""),
            ("index", "build"),
        )
        kept = "run it again to go on" if goes_on else "nothing was kept"
        print(f"minifuse {arguments.command}: interrupted, {kept}", file=sys.stderr)
        return 130
