"""Read texts from lines, tables and .jsonl one at a time: any size passes in constant memory."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

__all__ = [
    "number_of",
    "read_all_texts",
    "read_header",
    "read_objects",
    "read_rows",
    "read_texts",
]


_OBJECTS = (".jsonl", ".ndjson")
_TABLES = (".csv", ".tsv")


def read_all_texts(paths: Sequence[str], column: str | None = None) -> Iterator[str]:
    """Texts of several files, one after the other; the column is that of those that have columns.

    Raises:
        FileNotFoundError, IsADirectoryError, ValueError: as read_texts, for each before the first
            text of any; no file has columns, and one is given.
    """
    has_columns = [Path(path).suffix.lower() in _OBJECTS + _TABLES for path in paths]
    return itertools.chain.from_iterable(
        [
            read_texts(path, column if of_columns or not any(has_columns) else None)
            for path, of_columns in zip(paths, has_columns, strict=True)
        ]
    )


def read_texts(path: str, column: str | None = None) -> Iterator[str]:
    """Texts of a file: lines, .jsonl, .csv or .tsv by its ending; "-" is the standard input.

    Whether the file and its column are there is found out before the first text is asked for.

    Lines end with a line feed, or a carriage return and a line feed; other characters that some
    programs take for a line's end stay in the text.

    Args:
        path: the file.
        column: the key or column that holds the text; needed for .jsonl, .ndjson, .csv and .tsv,
            and of no use for others.

    Raises:
        FileNotFoundError: no such file.
        IsADirectoryError: it is a folder.
        ValueError: a line that is not what the ending says (it is named), a missing column, or one
            that is asked of plain lines.
    """
    suffix = "" if path == "-" else Path(path).suffix.lower()
    has_columns = suffix in _OBJECTS + _TABLES
    if has_columns and column is None:
        raise ValueError(f"{path}: which column holds the text? pass --column NAME")
    if column is not None and not has_columns:
        name = "the standard input" if path == "-" else path
        raise ValueError(
            f"{name} is read as lines, which have no column {column!r}; wanted a file whose name "
            f"ends with one of {', '.join(_OBJECTS + _TABLES)}"
        )
    if path == "-":
        if sys.stdin is None:
            raise ValueError("there is no standard input to read")
    elif Path(path).is_file():  # a pipe can be opened only once
        if suffix in _TABLES:
            _check_columns(path, read_header(path), [str(column)])
    elif Path(path).is_dir():
        raise IsADirectoryError(f"{path} is a folder, wanted a file of texts")
    elif not Path(path).exists():
        raise FileNotFoundError(f"{path}: no such file")
    return _texts(path, suffix, str(column))


def _texts(path: str, suffix: str, column: str) -> Iterator[str]:
    if suffix in _OBJECTS:
        yield from _jsonl(path, column)
    elif suffix in _TABLES:
        for _, (text,) in read_rows(path, [column]):
            yield text
    else:
        with _standard_input() if path == "-" else _utf8(path) as file:
            yield from map(_without_end, file)


@contextlib.contextmanager
def _standard_input() -> Iterator[Iterable[str]]:
    """The lines of the standard input, read as those of a file are."""
    if not hasattr(sys.stdin, "buffer"):  # what a program has put there
        yield sys.stdin
        return
    file = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8-sig", newline="\n")
    try:
        yield file
    except UnicodeDecodeError as error:
        raise ValueError(f"the standard input is not UTF-8 ({error})") from error
    finally:
        with contextlib.suppress(ValueError):  # somebody has closed it
            file.detach()


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


def _line_ends_in(row: dict[Any, Any]) -> int:
    """Return the number of line ends within a row's columns."""
    columns = [*row.get(None, ()), *(value for name, value in row.items() if name is not None)]
    joined = "".join(value for value in columns if value)
    return joined.replace("\r\n", "\n").replace("\r", "\n").count("\n")


def _check_columns(path: str | Path, header: list[str], columns: Sequence[str]) -> None:
    for column in columns:
        if header.count(column) != 1:
            given = "stands there twice" if column in header else "is missing"
            raise ValueError(f"{path}: column {column!r} {given}; the header has {header!s:.1000}")


def number_of(text: str, name: str, path: str | Path, line: int) -> float:
    """A finite number in a column of a file.

    Raises:
        ValueError: it is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{path}, line {line}: {name} is {text!r:.60}, wanted a number")
    return value


def read_rows(path: str | Path, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and the columns asked for of a .csv or .tsv with a header.

    In a .tsv a quotation mark is a character like any other. Empty lines are passed over; in a
    table of one column, whose rows they may be, they are an error.

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
            _check_columns(path, header, columns)
            number = rows.line_num + 1
            for row in rows:
                begin = rows.line_num - _line_ends_in(row)  # empty lines may stand before it
                if len(header) == 1 and begin > number:
                    raise ValueError(
                        f"{path}, line {number}: an empty line in a table of one column, an empty "
                        "text or none: take it out, or give the texts as lines in a .txt file"
                    )
                number = begin
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
