"""Choose the evaluation for a file or folder by its contents."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from minifuse.evaluation.labels import (
    evaluate_classification,
    evaluate_clustering,
    evaluate_pair_classification,
    read_labelled_pairs,
    read_labelled_texts,
)
from minifuse.evaluation.pairs import evaluate_pairs, read_scored_pairs
from minifuse.evaluation.retrieval import evaluate_retrieval, read_retrieval_task
from minifuse.files.texts import read_header

__all__ = ["task_of"]


def task_of(path: str | Path, train: str | Path | None = None) -> Callable[[Any], Any]:
    """Read a data set and return what judges a model by it.

    Args:
        path: a BEIR folder (retrieval), or a .tsv or .csv with the columns score, sentence1 and
            sentence2 (correlation), label and text (clustering, or classification with train), or
            label and two sentences or questions (pair classification).
        train: what a classifier learns from, with the columns label and text.

    Returns:
        model -> a dataclass of scores.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: columns that fit none of these, train where nothing learns from it, or what the
            readers raise.
    """
    path = Path(path)
    if path.is_dir():
        kind = "retrieval"
    else:
        columns = set(read_header(path))
        if {"score", "sentence1", "sentence2"} <= columns:
            kind = "pairs"
        elif {"label", "text"} <= columns:
            kind = "clustering" if train is None else "classification"
        elif {"label", "sentence1", "sentence2"} <= columns or (
            {"label", "question1", "question2"} <= columns
        ):
            kind = "pair classification"
        else:
            raise ValueError(
                f"{path}: the columns are {', '.join(sorted(columns))}; wanted score, sentence1, "
                "sentence2, or label, text, or label, sentence1, sentence2"
            )
    if train is not None and kind != "classification":
        raise ValueError(f"{path} is for {kind}, which learns nothing from {train}")
    if kind == "retrieval":
        return partial(evaluate_retrieval, task=read_retrieval_task(path))
    if kind == "pairs":
        scored = read_scored_pairs(path)
        return partial(
            evaluate_pairs,
            sentences1=scored.sentences1,
            sentences2=scored.sentences2,
            scores=scored.scores,
        )
    if kind == "pair classification":
        pairs = read_labelled_pairs(path)
        return partial(
            evaluate_pair_classification,
            sentences1=pairs.sentences1,
            sentences2=pairs.sentences2,
            labels=pairs.labels,
        )
    texts = read_labelled_texts(path)
    if train is None:
        return partial(evaluate_clustering, labelled=texts)
    return partial(evaluate_classification, train=read_labelled_texts(train), test=texts)
