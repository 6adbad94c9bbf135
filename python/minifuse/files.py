"""Texts in and vectors out, a window at a time, so that any size passes in constant memory.

An output appears when it is whole (whole_files.py): a killed run leaves no file that looks
finished.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, TextIO

import numpy as np
import numpy.typing as npt

from minifuse.whole_files import replacing

__all__ = [
    "open_writer",
    "read_header",
    "read_objects",
    "read_rows",
    "read_texts",
]

FloatArray = npt.NDArray[np.float32]


def read_texts(path: str, column: str | None = None) -> Iterator[str]:
    """Texts of a file: lines, .jsonl, .csv or .tsv by its ending; "-" is the standard input.

    Lines end with a line feed, or a carriage return and a line feed; other characters that some
    programs take for a line's end stay in the text.

    Args:
        path: the file.
        column: the key or column that holds the text; needed for .jsonl, .csv and .tsv.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is not what the ending says (it is named), or a missing column.
    """
    if path == "-":
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(newline="\n")
        yield from map(_without_end, sys.stdin)
        return
    suffix = Path(path).suffix.lower()
    if suffix in (".jsonl", ".csv", ".tsv") and column is None:
        raise ValueError(f"{path}: which column holds the text? pass --column NAME")
    if suffix == ".jsonl":
        yield from _jsonl(path, str(column))
    elif suffix in (".csv", ".tsv"):
        for _, (text,) in read_rows(path, [str(column)]):
            yield text
    else:
        with _utf8(path) as file:
            yield from map(_without_end, file)


def _without_end(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")


@contextlib.contextmanager
def _utf8(path: str | Path, newline: str = "\n") -> Iterator[TextIO]:
    # The byte order mark that spreadsheets put first is no part of a text or of a column's name.
    with open(path, encoding="utf-8-sig", newline=newline) as file:
        try:
            yield file
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 ({error})") from error


def read_objects(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers (from 1) and objects of a .jsonl; empty lines are passed over.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not UTF-8, or a line is not a JSON object (it is named).
    """
    with _utf8(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, _object(path, number, line)


def _object(path: str | Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}, line {number}: wanted a JSON object ({error})") from error
    if not isinstance(row, dict):
        raise ValueError(f"{path}, line {number}: wanted a JSON object, got {line.strip()[:80]}")
    return row


def _jsonl(path: str, column: str) -> Iterator[str]:
    for number, row in read_objects(path):
        text = row.get(column)
        if not isinstance(text, str):
            given = type(text).__name__ if column in row else "missing"
            raise ValueError(f"{path}, line {number}: {column!r} is {given}, wanted a string")
        yield text


def _table(file: TextIO, path: str | Path) -> csv.DictReader[str]:
    csv.field_size_limit(1 << 30)
    if Path(path).suffix.lower() == ".tsv":
        return csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    return csv.DictReader(file, strict=True)  # a quotation that never ends is an error, not a text


def read_header(path: str | Path) -> list[str]:
    """The names of the columns of a .csv or .tsv.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not UTF-8.
    """
    with _utf8(path, newline="") as file:
        try:
            return list(_table(file, path).fieldnames or [])
        except csv.Error as error:
            raise ValueError(f"{path}, line 1: not a table ({error})") from error


def read_rows(path: str | Path, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and the columns asked for of a .csv or .tsv with a header.

    In a .tsv a quotation mark is a character like any other.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not UTF-8, a column is missing, or a row has fewer or more columns than the
            header or a quotation without an end (its line is named).
    """
    with _utf8(path, newline="") as file:
        rows = _table(file, path)
        number = 1  # of the line on which the row that is read begins
        try:
            header = list(rows.fieldnames or [])
            for column in columns:
                if header.count(column) != 1:
                    given = "stands there twice" if column in header else "is missing"
                    raise ValueError(f"{path}: column {column!r} {given}; the header has {header}")
            number = rows.line_num + 1
            for row in rows:
                extra = row.get(None)  # where DictReader puts them
                if extra is not None:
                    raise ValueError(
                        f"{path}, line {number}: {len(header) + len(extra)} columns, the header "
                        f"has {len(header)}: a text that holds the separator must be quoted"
                    )
                values = [row[column] for column in columns]
                if None in row.values():
                    raise ValueError(f"{path}, line {number}: fewer columns than the header")
                yield rows.line_num, values
                number = rows.line_num + 1
        except csv.Error as error:
            raise ValueError(
                f"{path}, line {number}: not a row of a table ({error}); is a quotation mark left "
                "open?"
            ) from error


class Writer(Protocol):
    """Takes windows of texts and vectors."""

    def write(self, texts: list[str], vectors: FloatArray) -> None:
        """Append a window."""

    def finish(self) -> None:
        """Make the file whole."""


class _NpyWriter:
    """A float32 .npy whose header, of fixed size, is written last when the rows are counted."""

    _HEADER_BYTES = 128

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._file.write(b"\0" * self._HEADER_BYTES)
        self._shape = (0, 0)

    def write(self, texts: list[str], vectors: FloatArray) -> None:
        self._file.write(np.ascontiguousarray(vectors, "<f4").data)
        self._shape = (self._shape[0] + len(vectors), vectors.shape[1])

    def finish(self) -> None:
        description = {"descr": "<f4", "fortran_order": False, "shape": self._shape}
        text = repr(description).encode("latin1")
        text += b" " * (self._HEADER_BYTES - 11 - len(text)) + b"\n"
        magic = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little")
        self._file.seek(0)
        self._file.write(magic + text)

    def close(self) -> None:
        pass


class _JsonlWriter:
    """One {"text", "embedding"} a line."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, texts: list[str], vectors: FloatArray) -> None:
        for text, vector in zip(texts, vectors, strict=True):
            row = {"text": text, "embedding": vector.tolist()}
            self._file.write((json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8"))

    def finish(self) -> None:
        pass

    close = finish


class _ParquetWriter:
    """Columns text and embedding (a fixed-size list of float32)."""

    def __init__(self, file: BinaryIO) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise ImportError(
                "writing .parquet needs pyarrow, which is not installed: "
                "pip install 'minifuse[parquet]'"
            ) from error
        self._arrow = pyarrow
        self._file = file
        self._writer: Any = None

    def write(self, texts: list[str], vectors: FloatArray) -> None:
        arrow = self._arrow
        flat = arrow.array(np.ascontiguousarray(vectors).reshape(-1))
        lists = arrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        table = arrow.table({"text": arrow.array(texts, arrow.string()), "embedding": lists})
        if self._writer is None:
            self._writer = arrow.parquet.ParquetWriter(self._file, table.schema)
        self._writer.write_table(table)

    def finish(self) -> None:
        if self._writer is None:
            self.write([], np.zeros((0, 1), np.float32))
        self._writer.close()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


_WRITERS: dict[str, Any] = {
    ".npy": _NpyWriter,
    ".jsonl": _JsonlWriter,
    ".parquet": _ParquetWriter,
}


class open_writer:
    """A writer for path by its ending (.npy, .jsonl, .parquet), as a context manager.

    The file appears under its name when the block ends without an error; otherwise what was there
    before stays.

    Raises:
        ValueError: another ending.
        FileNotFoundError: the folder does not exist.
        ImportError: .parquet without pyarrow.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        if self._path.suffix not in _WRITERS:
            raise ValueError(f"{path}: wanted an ending of {', '.join(_WRITERS)}")
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Writer:
        # The file is closed, renamed or removed by the stack, whatever the writer did.
        with self._stack:
            file = self._stack.enter_context(replacing(self._path))
            self._writer = _WRITERS[self._path.suffix](file)
            self._stack = self._stack.pop_all()
        return self._writer  # type: ignore[no-any-return]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._stack:
            try:
                if kind is None:
                    self._writer.finish()
                else:
                    raise value  # type: ignore[misc]  # the stack must know that it failed
            finally:
                with contextlib.suppress(Exception):  # on a full disk closing fails once more
                    self._writer.close()
