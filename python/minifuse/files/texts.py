"""Read texts from lines, tables and .jsonl one at a time: any size passes in constant memory."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

__all__ = [
    "read_header",
    "read_objects",
    "read_rows",
    "read_texts",
]


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


def _line_ends_in(row: dict[Any, Any]) -> int:
    """Return the number of line ends within a row's columns."""
    columns = [*row.get(None, ()), *(value for name, value in row.items() if name is not None)]
    joined = "".join(value for value in columns if value)
    return joined.replace("\r\n", "\n").replace("\r", "\n").count("\n")


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
                number = rows.line_num - _line_ends_in(row)  # empty lines may stand before it
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
