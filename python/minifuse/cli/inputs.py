"""The texts that a command reads: of files, of the standard input, or given as arguments.

Files are read through once before the model is loaded, where they can be: what is wrong with line
4,101 is said at once, and the bar of progress knows where it ends.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from minifuse.files.texts import read_header, read_objects, read_texts
from minifuse.tokens.tokenization import LoneSurrogate

__all__ = ["Encoding", "Inputs", "files_of", "open_inputs"]

_TABLES = (".csv", ".tsv")
_OBJECTS = (".jsonl", ".ndjson")
# A file's name ends so, and hardly ever a text.
_ENDING = re.compile(r"\.[a-z]{1,7}", re.IGNORECASE)
# Larger inputs are read only once.
_MOST_BYTES = 1 << 30
# A bar that moves every second is believed.
_SECONDS = 1.0


class Inputs(NamedTuple):
    """Texts, and their number; None: nobody knows it."""

    texts: Iterator[str]
    total: int | None


def open_inputs(inputs: Sequence[str], column: str | None) -> Inputs:
    """Open the inputs of a command, one behind the other.

    Args:
        inputs: files; "-" for the standard input; or texts, which have white space and are the
            name of no file.
        column: the column or key of the files that have some. None takes the only one, or "text".

    Raises:
        FileNotFoundError, IsADirectoryError, ValueError: as read_texts, and for a wrong line of any
            file, unless it is a pipe or the files have more than 1 GB together; a column is given,
            and no file has any.
    """
    if column is not None and not any(map(_has_columns, inputs)):
        raise ValueError(
            f"no input has a column {column!r}; wanted a file whose name ends with one of "
            f"{', '.join(_TABLES + _OBJECTS)}"
        )
    texts = _chained(inputs, column)  # a missing file is told first
    files = {one for one in files_of(inputs) if Path(one).is_file()}
    total: int | None = None
    if sum(Path(one).stat().st_size for one in files) <= _MOST_BYTES:
        twice = [one for one in inputs if one in files or _is_text(one)]
        count = sum(1 for _ in _chained(twice, column))
        total = count if len(twice) == len(inputs) else None
    return Inputs(texts, total)


def files_of(inputs: Iterable[str]) -> list[str]:
    """Return the inputs that are names of files, whether they are there or not."""
    return [one for one in inputs if one != "-" and not _is_text(one)]


def _chained(inputs: Sequence[str], column: str | None) -> Iterator[str]:
    return itertools.chain.from_iterable([_texts_of(one, column) for one in inputs])


def _texts_of(given: str, column: str | None) -> Iterable[str]:
    if _is_text(given):
        return [given]
    if not _has_columns(given):
        return read_texts(given)
    path = Path(given)
    if column is None and path.is_file():
        column = _column_of(given)
    elif column is None and (path.is_dir() or not path.exists()):
        column = "text"  # read_texts tells what is wrong before it looks for one
    return read_texts(given, column)


def _is_text(given: str) -> bool:
    """Return whether an argument is a text and not the name of a file that is missing."""
    if len(given.split()) < 2 or _ENDING.fullmatch(Path(given).suffix):
        return False
    try:
        Path(given).lstat()
    except ValueError:  # a NUL
        return True
    except OSError as error:
        return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
    return False


def _has_columns(given: str) -> bool:
    return Path(given).suffix.lower() in _TABLES + _OBJECTS and not _is_text(given)


def _column_of(path: str) -> str:
    """The column of a file that holds the text, where nobody has to say which."""
    if Path(path).suffix.lower() in _TABLES:
        names = read_header(path)
    else:
        names = list(next(read_objects(path), (0, {}))[1])
    if "text" in names or not names:
        return "text"
    if len(names) == 1:
        return names[0]
    raise ValueError(
        f"{path}: which column holds the text? It has {', '.join(names):.300}: pass --column NAME"
    )


class Encoding:
    """Encodes windows of texts in pieces of about a second, with a bar and a summary.

    Args:
        model: a SentenceTransformer.
        total: the number of texts; None: nobody knows it.
        is_quiet: show neither bar nor summary.
        refuses_long: a text that would be cut is an error.
        options: further arguments of the model's encode.

    Attributes:
        done: texts encoded so far.
        cut: how many of them were cut.
    """

    def __init__(
        self,
        model: Any,
        total: int | None,
        is_quiet: bool,
        refuses_long: bool = False,
        **options: Any,
    ) -> None:
        from tqdm import tqdm

        self._limit: int = model.max_seq_length
        self._encode: Callable[..., Any] = model.encode
        self._options = options | {"return_info": True, "show_progress_bar": False}
        self._refuses_long = refuses_long
        self._is_quiet = is_quiet or sys.stderr is None
        self._start = time.perf_counter()
        # None: the bar is shown if a terminal is there to show it.
        self._bar = tqdm(
            total=total, unit=" texts", disable=True if self._is_quiet else None, leave=False
        )
        self._size = 16
        self._tokens = self.done = self.cut = 0

    def __enter__(self) -> Encoding:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):  # a terminal that is gone
            self._bar.close()

    def vectors(self, window: list[str]) -> Any:
        """Return the vectors float32 [n, dim] of a window.

        Raises:
            ValueError: a text is no valid Unicode, or too long and refused; it is told by its
                number among all texts.
        """
        if not window:
            return self._encode([], **self._options)[0]
        pieces, texts = [], iter(window)
        while piece := list(itertools.islice(texts, self._size)):
            start = time.perf_counter()
            pieces.append(self._vectors(piece))
            seconds = time.perf_counter() - start
            if seconds < _SECONDS / 2 and len(piece) == self._size:
                self._size *= 2
            elif seconds > _SECONDS:
                self._size = max(self._size // 2, 8)
        return np.concatenate(pieces)

    def _vectors(self, piece: list[str]) -> Any:
        try:
            vectors, info = self._encode(piece, **self._options)
        except LoneSurrogate as error:
            raise ValueError(
                f"text {self.done + error.index + 1:,} holds a lone surrogate at character "
                f"{error.character}: it is not valid Unicode"
            ) from error
        if self._refuses_long and info.truncated.any():
            number = self.done + int(np.flatnonzero(info.truncated)[0]) + 1
            raise ValueError(f"text {number:,} has more than {self._limit} tokens and would be cut")
        self.done += len(piece)
        self.cut += int(info.truncated.sum())
        self._tokens += int(info.num_tokens.sum())
        rate = self._tokens / (time.perf_counter() - self._start)
        self._bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
        self._bar.update(len(piece))
        return vectors

    def tell(self, result: str) -> None:
        """Print the result: ``10,000 texts -> FILE (10,000 x 384), 7 cut at 256 tokens, 32 s``."""
        with contextlib.suppress(OSError):  # the work is done, whether or not somebody reads this
            self._bar.close()
            if self._is_quiet:
                return
            texts = "1 text" if self.done == 1 else f"{self.done:,} texts"
            cut = f", {self.cut:,} cut at {self._limit} tokens" if self.cut else ""
            seconds = time.perf_counter() - self._start
            digits = 1 if seconds < 10 else 0
            print(f"{texts} -> {result}{cut}, {seconds:,.{digits}f} s", file=sys.stderr, flush=True)
