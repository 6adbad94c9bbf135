"""minifuse evaluate: judge a model by scored pairs, retrieval or labels."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from minifuse.cli.common import add_command, load_model, show_bars

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add ``minifuse evaluate`` to the commands."""
    sub = add_command(
        commands,
        "evaluate",
        _run,
        "Judge a model by scored pairs, retrieval or labels; float32 beside another dtype.",
        with_dtype=True,
    )
    sub.add_argument(
        "path",
        help=".tsv or .csv with columns score, sentence1, sentence2 (correlation), label, text "
        "(clustering; classification with --train) or label, sentence1, sentence2 (pair "
        "classification); or a retrieval folder in BEIR's layout (corpus.jsonl, queries.jsonl, "
        "qrels.tsv)",
    )
    sub.add_argument("--train", metavar="FILE", help="what a classifier learns from: label, text")
    sub.add_argument("--json", action="store_true")
    sub.add_argument("-q", "--quiet", action="store_true", help="no bars")


def _run(arguments: argparse.Namespace) -> int:
    show_bars(arguments)
    from minifuse import SentenceTransformer, evaluation

    judge = evaluation.task_of(arguments.path, arguments.train)
    model = load_model(arguments)
    results = {model.dtype: asdict(judge(model))}
    if model.dtype != "float32" and not model.is_quantized:
        reference = SentenceTransformer(arguments.model, num_threads=arguments.threads)
        results["float32"] = asdict(judge(reference))
    if arguments.json:
        print(json.dumps(results if len(results) > 1 else results[model.dtype]))
        return 0
    scores = results[model.dtype]
    width = max(map(len, scores))
    if len(results) > 1:
        print(f"{'':{width}s}  {model.dtype:>8s}  {'float32':>8s}  difference")
    for name, value in scores.items():
        line = f"{name:{width}s}  "
        if len(results) == 1:
            line += str(value) if isinstance(value, int) else f"{value:.4f}"
        elif isinstance(value, int):
            line += f"{value:8d}  {results['float32'][name]:8d}"
        else:
            other = results["float32"][name]
            line += f"{value:8.4f}  {other:8.4f}  {value - other:+10.4f}"
        print(line)
    return 0
