"""minifuse compare: two models, or two groups of pairs, and whether the difference is real."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minifuse.cli.common import add_command, show_bars

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add ``minifuse compare`` to the commands."""
    sub = add_command(
        commands,
        "compare",
        _run,
        "Two models, or two groups of pairs: is the difference real?",
        False,
    )
    sub.add_argument("a", help="folder or name; NAME@DTYPE for another dtype")
    sub.add_argument("b", nargs="?", help="the same; none: the groups of labelled pairs")
    sub.add_argument("--pairs", "--data", dest="path", required=True, metavar="PATH",
                     help="scored or labelled pairs, or a retrieval folder")  # fmt: skip
    sub.add_argument("--reranker", metavar="MODEL",
                     help="a cross-encoder that sorts what A finds: is it better so?")  # fmt: skip
    sub.add_argument("--plot", metavar="FILE", help="intervals and distributions: .png, .svg, .pdf")
    sub.add_argument("--threads", type=int, help="at most this many threads")
    sub.add_argument("--json", action="store_true")
    sub.add_argument("-q", "--quiet", action="store_true", help="no bars")


def _run(arguments: argparse.Namespace) -> int:
    show_bars(arguments)
    from minifuse import CrossEncoder, SentenceTransformer
    from minifuse.evaluation import comparison, read_retrieval_task
    from minifuse.files.plots import check_plot
    from minifuse.files.whole import check_distinct
    from minifuse.hardware import DTYPES

    def load(given: str, kind: Any = SentenceTransformer) -> Any:
        name, at, dtype = given.rpartition("@")
        if not at or Path(given).is_dir():  # an "@" of the name
            name, dtype = given, ""
        elif dtype not in (known := (*DTYPES, "float16", "auto")):
            raise ValueError(f"{given}: dtype is {dtype!r}, wanted one of {', '.join(known)}")
        return kind(name, dtype=dtype or None, num_threads=arguments.threads)

    if arguments.plot:
        check_distinct(arguments.plot, [arguments.path])
        check_plot(arguments.plot)
    a = load(arguments.a)
    if arguments.reranker is not None:
        if arguments.b is not None:
            raise ValueError("--reranker sorts what one model finds, and two are given")
        reranker = load(arguments.reranker, CrossEncoder)
        if reranker.num_labels != 1:
            raise ValueError(
                f"{arguments.reranker} gives a pair {reranker.num_labels} scores, wanted one to "
                "sort by"
            )
        result = comparison.compare_reranked(reranker, a, read_retrieval_task(arguments.path))
    else:
        b = None if arguments.b is None else load(arguments.b)
        result = comparison.compare(a, b, arguments.path, (arguments.a, str(arguments.b)))
    if arguments.plot:
        comparison.plot_comparison(result, arguments.plot)
    if arguments.json:
        rows = [asdict(one) | {"is_real": one.is_real} for one in result.differences]
        print(json.dumps({"verdict": result.verdict(), "differences": rows}))
        return 0
    for one in result.differences:
        print(
            f"{one.measure:12s} {one.a:8.4f} {one.b:8.4f}  {one.interval.estimate:+.4f} "
            f"[{one.interval.low:+.4f}, {one.interval.high:+.4f}]  p = {one.p_value:.3g}"
            f"{'  real' if one.is_real else ''}"
        )
    if (count := len(result.differences)) > 1:
        chance = 1 - result.differences[0].interval.level
        print(
            f"{count} measures give chance {count} tries: a difference is real if its p is below "
            f"{chance:.2g} / {count} = {chance / count:.2g} and its interval leaves out 0."
        )
    print(result.verdict())
    return 0
