"""A table of a page, between two comments: printed, or written there by --write."""

from __future__ import annotations

import argparse
from pathlib import Path

CUDA_PAGE = Path(__file__).parents[2] / "docs" / "cuda.md"


def print_or_write(text: str, page: Path, name: str, is_written: bool) -> None:
    """Put text between ``<!-- name -->`` and ``<!-- end of name -->`` of the page, or print it."""
    if not is_written:
        print(text, end="")
        return
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    before, rest = page.read_text(encoding="utf-8").split(begin)
    page.write_text(before + begin + text + end + rest.split(end)[1], encoding="utf-8")


def page_parser(description: str) -> argparse.ArgumentParser:
    """A parser with --write."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--write", action="store_true", help="into docs/cuda.md")
    return parser
