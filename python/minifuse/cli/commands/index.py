"""minifuse index build | search | info | repair: an index of texts on the disk."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minifuse.cli.common import DEFAULT_MODEL, WINDOW_TEXTS, add_command, windows
from minifuse.cli.terminal import printable, printable_json
from minifuse.search.index import Index

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add ``minifuse index`` and the commands below it."""
    text = "An index of texts on the disk: build, search, info, repair."
    parser = add_command(commands, "index", None, text, with_model=False)
    below = parser.add_subparsers(dest="index_command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[Any], int], text: str) -> argparse.ArgumentParser:
        return add_command(below, name, run, text, with_model=False)

    sub = command(
        "build", _build, "Embed texts into an index; an interrupted build goes on where it was."
    )
    sub.add_argument(
        "inputs",
        nargs="+",
        help="files of lines, .jsonl, .csv, .tsv; a text in quotes; - for stdin",
    )
    sub.add_argument("-o", "--output", required=True, help="the index")
    sub.add_argument(
        "--column", help="the column or key of the text (default: the only one, or text)"
    )
    sub.add_argument("-m", "--model", default=DEFAULT_MODEL, help="folder or name (%(default)s)")
    sub.add_argument("--model-dtype", choices=("float32", "bfloat16", "int8", "auto"))
    sub.add_argument("--dtype", choices=("float32", "bfloat16", "int8"), default="float32",
                     help="of the vectors (%(default)s)")  # fmt: skip
    sub.add_argument("--metric", choices=("cosine", "dot"), default="cosine")
    sub.add_argument(
        "--codes-only", action="store_true", help="int8: do not keep float32 vectors to rescore by"
    )
    sub.add_argument("--threads", type=int, help="at most this many threads")
    sub.add_argument(
        "-q", "--quiet", "--no-progress", dest="quiet", action="store_true",
        help="no bar and no summary",
    )  # fmt: skip

    sub = command("search", _search, "The texts of an index that are nearest to a query.")
    sub.add_argument("index")
    sub.add_argument("queries", nargs="*", help="texts; none: lines of the standard input")
    sub.add_argument("-k", type=int, default=10, help="how many (%(default)s)")
    sub.add_argument("-m", "--model", help="folder or name; the one that the index was built with")
    sub.add_argument("--threads", type=int, help="at most this many threads")
    sub.add_argument("--json", action="store_true", help="a line of JSON a query")

    sub = command("info", _info, "What an index holds.")
    sub.add_argument("index")
    sub.add_argument("--verify", action="store_true", help="compare every byte with the checksums")

    sub = command("repair", _repair, "Write what is whole of a damaged index to another file.")
    sub.add_argument("index")
    sub.add_argument("-o", "--output", required=True, help="a new file; the index stays as it is")


def _build(arguments: argparse.Namespace) -> int:
    from minifuse import SentenceTransformer
    from minifuse.cli.inputs import Encoding, files_of, open_inputs
    from minifuse.files.whole import check_distinct

    path = Path(arguments.output)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: the folder does not exist")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{path.parent}: the folder cannot be written to")
    check_distinct(path, files_of(arguments.inputs))
    if arguments.codes_only and arguments.dtype != "int8":
        raise ValueError(f"--codes-only is for --dtype int8, and it is {arguments.dtype}")
    texts, total = open_inputs(arguments.inputs, arguments.column)
    model = SentenceTransformer(
        arguments.model, dtype=arguments.model_dtype, num_threads=arguments.threads
    )
    if path.exists():
        index = Index.load(path)
        _check_same(index, model, arguments)
        count = 0
        for i, text in enumerate(itertools.islice(texts, len(index))):
            if index.text(i) != text:
                raise ValueError(
                    f"{path} holds another text as number {i}: it was built from other inputs; "
                    "give another --output"
                )
            count += 1
        if count < len(index):
            raise ValueError(
                f"{path} holds {len(index)} texts and the inputs have {count}: it was built from "
                "other inputs; give another --output"
            )
        if not arguments.quiet:
            print(f"{path}: {len(index)} texts are there already", file=sys.stderr)
    else:
        rescore = arguments.dtype == "int8" and not arguments.codes_only
        index = Index(
            model.get_embedding_dimension(), arguments.dtype, arguments.metric, rescore=rescore
        )
        index.bind(model)
    left = None if total is None else total - len(index)
    with Encoding(model, left, arguments.quiet) as encoding:
        # The file appears with the first window: a failed build leaves no empty index.
        for window in windows(texts, WINDOW_TEXTS):
            index.add(encoding.vectors(window), texts=window)
            index.save(path)
            index = Index.load(path)  # what is on the disk need not stay in memory
    if not path.exists():
        index.save(path)
    encoding.tell(f"{path} ({len(index):,} x {index.dim})")
    print(index)
    return 0


def _check_same(index: Index, model: Any, arguments: argparse.Namespace) -> None:
    index.check_model(model)
    for name, there, wanted in (
        ("dtype", index.dtype, arguments.dtype),
        ("metric", index.metric, arguments.metric),
        ("codes-only", index.dtype == "int8" and not index.rescores, arguments.codes_only),
    ):
        if there != wanted:
            raise ValueError(f"{arguments.output}: its {name} is {there}, wanted {wanted}")
    if len(index) and not index.has_texts:
        raise ValueError(f"{arguments.output}: it holds no texts, so it cannot be continued")


def _search(arguments: argparse.Namespace) -> int:
    from minifuse import SentenceTransformer
    from minifuse.files.texts import read_texts

    index = Index.load(arguments.index, num_threads=arguments.threads)
    name = arguments.model or index.model_name
    if name is None:
        raise ValueError(f"{arguments.index} does not say of which model it is: pass --model")
    model = SentenceTransformer(name, num_threads=arguments.threads)
    index.check_model(model)
    queries = arguments.queries or list(read_texts("-"))
    if not queries:
        raise ValueError("no query: give texts as arguments, or lines on the standard input")
    scores, ids = index.search(model.encode_query(queries), min(arguments.k, len(index)))
    for query, row_scores, row_ids in zip(queries, scores, ids, strict=True):
        hits = [
            {"id": int(i), "score": round(float(score), 6)}
            | ({"text": index.text(int(i))} if index.has_texts else {})
            for score, i in zip(row_scores, row_ids, strict=True)
            if i >= 0  # -1: no vector that can be compared is left
        ]
        if arguments.json:
            print(printable_json({"query": query, "hits": hits}))
            continue
        if len(queries) > 1:
            print(f"\n{printable(query)}")
        for hit in hits:
            text = printable(str(hit.get("text", "")))
            print(f"{hit['score']:7.4f}  {hit['id']:8d}  {text}")
    return 0


def _info(arguments: argparse.Namespace) -> int:
    index = Index.load(arguments.index, verify=arguments.verify)
    rows = {
        "vectors": f"{len(index):,}",
        "dim": index.dim,
        "dtype": index.dtype + (", float32 beside" if index.rescores else ""),
        "metric": index.metric,
        "model": printable(index.model_name or "-"),
        "texts": "yes" if index.has_texts else "no",
        "searched": f"{index.nbytes / 1e6:,.1f} MB",
        "file": f"{Path(arguments.index).stat().st_size / 1e6:,.1f} MB",
    }
    if arguments.verify:
        rows["checksums"] = "all match"
    for key, value in rows.items():
        print(f"{key:10s} {value}")
    return 0


def _repair(arguments: argparse.Namespace) -> int:
    losses = Index.repair(arguments.index, arguments.output)
    for loss in losses:
        print(loss)
    index = Index.load(arguments.output)
    print(
        f"{arguments.output}: {index}"
        if losses
        else f"{arguments.output}: {index}; nothing is lost"
    )
    return 1 if losses else 0
