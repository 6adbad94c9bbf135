"""minifuse explore: clusters of texts, named, on a map that is one page."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

from minifuse.cli.common import add_command, load_model, show_bars
from minifuse.cli.terminal import printable

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add ``minifuse explore`` to the commands."""
    sub = add_command(
        commands, "explore", _run, "Clusters of texts, named, on a map: one page.", with_dtype=True
    )
    sub.add_argument("input", help="a file of lines, .jsonl, .csv or .tsv; - for stdin")
    sub.add_argument("--column", help="the column or key that holds the text")
    sub.add_argument("-o", "--output", help="the page (FILE.html beside the input)")
    sub.add_argument("--png", metavar="FILE", help="the map as a picture too")
    sub.add_argument("-k", "--clusters", type=int, help="how many; the best by silhouette if none")
    sub.add_argument("--limit", type=int, help="only the first texts")
    sub.add_argument("-q", "--quiet", action="store_true", help="no bars")


def _run(arguments: argparse.Namespace) -> int:
    show_bars(arguments)
    from minifuse.explore import explore, write_page, write_png
    from minifuse.files.texts import read_texts
    from minifuse.files.whole import check_distinct

    texts = list(itertools.islice(read_texts(arguments.input, arguments.column), arguments.limit))
    name = "texts" if arguments.input == "-" else Path(arguments.input).stem
    output = Path(arguments.output or Path(arguments.input).with_name(f"{name}.html"))
    if not output.parent.is_dir():
        raise FileNotFoundError(f"{output.parent}: the folder does not exist")
    for written in filter(None, (output, arguments.png)):
        check_distinct(written, [arguments.input])
    arguments.dtype = arguments.dtype or "auto"  # neighbours on a map need no more
    vectors = load_model(arguments).encode(texts, normalize_embeddings=True)
    result = explore(texts, vectors, arguments.clusters)
    write_page(result, output, f"{name}: {len(texts):,} texts")
    if arguments.png:
        write_png(result, arguments.png)
    for cluster, title in enumerate(result.names):
        count = int((result.labels == cluster).sum())
        center = printable(texts[result.centers[cluster]][:70])
        print(f"{count:6d}  {printable(title):40s}  {center}")
    print(output)
    return 0
