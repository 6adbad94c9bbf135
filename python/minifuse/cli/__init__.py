"""The command line: minifuse COMMAND; each has a file of its own here, and a --help."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence

from minifuse.cli.terminal import printable

__all__ = ["main"]

# A wrong argument or file can end in these, and a machine without room for the work.
_ERRORS = (
    *(ValueError, TypeError, OSError, ImportError, FloatingPointError),
    *(MemoryError, RuntimeError),
)


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
        with _ended_like_ctrl_c():
            status = int(arguments.run(arguments))
        if sys.stdout is not None:  # closed from the start
            sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Buffered output would raise the same error again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except _ERRORS as error:
        # A message may quote a file of a stranger's.
        is_memory = isinstance(error, MemoryError) and not str(error)
        text = "there is not enough memory" if is_memory else str(error) or type(error).__name__
        message = printable(text, keep="\n")
        _say(f"minifuse {arguments.command}: {message}")
        return 2
    except KeyboardInterrupt as interrupt:
        # A checkpoint and an index being built hold what was done.
        goes_on = (arguments.command, getattr(arguments, "index_command", "")) in (
            ("finetune", ""),
            ("index", "build"),
        )
        kept = "run it again to go on" if goes_on else "nothing was kept"
        _say(f"minifuse {arguments.command}: interrupted, {kept}")
        return 128 + (interrupt.number if isinstance(interrupt, _Ended) else signal.SIGINT)


class _Ended(KeyboardInterrupt):
    """A signal wants the process to end, and what Ctrl-C keeps is to be kept."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextlib.contextmanager
def _ended_like_ctrl_c() -> Iterator[None]:
    """Let `docker stop`, `timeout` and a terminal that is closed leave no temporary files."""

    def end(number: int, _: object) -> None:
        raise _Ended(number)

    ours = []
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")]
        ours = [one for one in numbers if one and signal.getsignal(one) is signal.SIG_DFL]
    try:
        for number in ours:
            signal.signal(number, end)
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _say(message: str) -> None:
    if sys.stderr is not None:  # else print would take the standard output
        with contextlib.suppress(OSError):  # a terminal that is gone
            print(message, file=sys.stderr, flush=True)
