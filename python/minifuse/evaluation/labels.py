"""Measure how well vectors separate labels: classification, clustering and paraphrase pairs.

All by scikit-learn, as sentence-transformers and MTEB count: logistic regression's accuracy and
macro F1, the V-measure of k-means, average precision and the best F1 of the cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minifuse.files.texts import read_header, read_rows
from minifuse.search import similarity

__all__ = [
    "ClassificationScores",
    "ClusteringScores",
    "LabelledPairs",
    "LabelledTexts",
    "PairClassificationScores",
    "evaluate_classification",
    "evaluate_clustering",
    "evaluate_pair_classification",
    "read_labelled_pairs",
    "read_labelled_texts",
]


@dataclass(frozen=True)
class LabelledTexts:
    """Texts with a label each."""

    texts: list[str]
    labels: list[str]


@dataclass(frozen=True)
class LabelledPairs:
    """Pairs, each 1 where both sides mean the same and 0 where they do not."""

    sentences1: list[str]
    sentences2: list[str]
    labels: list[int]


@dataclass(frozen=True)
class ClassificationScores:
    """Scores of a logistic regression on the embeddings, each in [0, 1]."""

    accuracy: float
    macro_f1: float
    num_train: int
    num_test: int
    num_labels: int


@dataclass(frozen=True)
class ClusteringScores:
    """Scores of k-means with as many clusters as labels, each in [0, 1]."""

    v_measure: float
    homogeneity: float
    completeness: float
    num_texts: int
    num_labels: int


@dataclass(frozen=True)
class PairClassificationScores:
    """Scores of the cosine as a classifier of paraphrases, each in [0, 1] except the thresholds.

    A pair counts as the same where its cosine is at least the threshold; each threshold is the one
    that is best for its measure.
    """

    average_precision: float
    f1: float
    f1_threshold: float
    accuracy: float
    accuracy_threshold: float
    num_pairs: int


def read_labelled_texts(path: str | Path) -> LabelledTexts:
    """A .tsv or .csv with a header and the columns label and text.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a column is missing.
    """
    rows = [row for _, row in read_rows(path, ["label", "text"])]
    return LabelledTexts([text for _, text in rows], [label for label, _ in rows])


def read_labelled_pairs(path: str | Path) -> LabelledPairs:
    """A .tsv or .csv with a header and the columns label (0 or 1), question1 or sentence1, and 2.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a column is missing, or a label is neither 0 nor 1 (the line is named).
    """
    pairs = LabelledPairs([], [], [])
    columns = read_header(path)
    names = [
        f"question{side}" if f"question{side}" in columns else f"sentence{side}" for side in (1, 2)
    ]
    for line, (label, first, second) in read_rows(path, ["label", *names]):
        if label not in ("0", "1"):
            raise ValueError(f"{path}, line {line}: label is {label!r}, wanted 0 or 1")
        pairs.labels.append(int(label))
        pairs.sentences1.append(first)
        pairs.sentences2.append(second)
    return pairs


def _sklearn() -> Any:
    try:
        import sklearn.cluster
        import sklearn.linear_model
        import sklearn.metrics
    except ImportError as error:
        raise ImportError(
            "this evaluation needs scikit-learn, which is not installed: "
            "pip install 'minifuse[eval]'"
        ) from error
    return sklearn


def _check_labels(labels: Sequence[Any], what: str) -> None:
    if len(set(labels)) < 2:
        given = f"only {labels[0]!r}" if labels else "none"
        raise ValueError(f"{what} has {given} as labels, wanted at least two different ones")


def evaluate_classification(
    model: Any, train: LabelledTexts, test: LabelledTexts, **encode_arguments: Any
) -> ClassificationScores:
    """Fit logistic regression on the embeddings of train and judge it on test.

    Args:
        model: anything with sentence-transformers' encode.
        train, test: texts with labels.
        encode_arguments: passed to encode.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: fewer than two labels in train, no test, or a label that train lacks (named).
    """
    sklearn = _sklearn()
    _check_labels(train.labels, "the training set")
    if not test.texts:
        raise ValueError("the test set is empty")
    unknown = sorted({*test.labels} - {*train.labels})
    if unknown:
        raise ValueError(f"the training set lacks the label {unknown[0]!r} of the test set")
    classifier = sklearn.linear_model.LogisticRegression(max_iter=1000)
    classifier.fit(model.encode(train.texts, **encode_arguments), train.labels)
    predicted = classifier.predict(model.encode(test.texts, **encode_arguments))
    return ClassificationScores(
        accuracy=float(sklearn.metrics.accuracy_score(test.labels, predicted)),
        macro_f1=float(sklearn.metrics.f1_score(test.labels, predicted, average="macro")),
        num_train=len(train.texts),
        num_test=len(test.texts),
        num_labels=len({*train.labels}),
    )


def evaluate_clustering(
    model: Any, labelled: LabelledTexts, seed: int = 0, **encode_arguments: Any
) -> ClusteringScores:
    """Cluster the embeddings of length 1 by k-means, and compare the clusters with the labels.

    Args:
        model: anything with sentence-transformers' encode.
        labelled: texts with labels.
        seed: of k-means.
        encode_arguments: passed to encode.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: fewer than two labels.
    """
    sklearn = _sklearn()
    _check_labels(labelled.labels, "the file")
    vectors = similarity.normalize_embeddings(model.encode(labelled.texts, **encode_arguments))
    num_labels = len({*labelled.labels})
    means = sklearn.cluster.KMeans(num_labels, n_init=3, random_state=seed)
    found = means.fit_predict(vectors)
    homogeneity, completeness, v_measure = sklearn.metrics.homogeneity_completeness_v_measure(
        labelled.labels, found
    )
    return ClusteringScores(
        float(v_measure), float(homogeneity), float(completeness), len(labelled.texts), num_labels
    )


def evaluate_pair_classification(
    model: Any,
    sentences1: Sequence[str],
    sentences2: Sequence[str],
    labels: Sequence[int],
    **encode_arguments: Any,
) -> PairClassificationScores:
    """Measure how well the cosine of a pair predicts whether both sides mean the same.

    Args:
        model: anything with sentence-transformers' encode.
        sentences1, sentences2: texts of equal number.
        labels: 1 for pairs that mean the same, 0 for others.
        encode_arguments: passed to encode.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: numbers differ, a label is neither 0 nor 1, or all labels are equal.
    """
    sklearn = _sklearn()
    if not len(sentences1) == len(sentences2) == len(labels):
        raise ValueError(
            f"{len(sentences1)} first sentences, {len(sentences2)} second sentences and "
            f"{len(labels)} labels: wanted as many of each"
        )
    if not {*labels} <= {0, 1}:
        raise ValueError(f"labels are {sorted({*labels})}, wanted 0 and 1")
    _check_labels(labels, "the file")
    truth = np.asarray(labels)
    embeddings = model.encode([*sentences1, *sentences2], **encode_arguments)
    cosines = similarity.pairwise_cos_sim(embeddings[: len(truth)], embeddings[len(truth) :])

    order = np.argsort(-cosines, kind="stable")
    sorted_cosines, hits = cosines[order], np.cumsum(truth[order])
    called = np.arange(1, len(truth) + 1)
    # A threshold cannot part equal cosines; it lies halfway to the next one.
    can_end = np.append(sorted_cosines[1:] < sorted_cosines[:-1], True)
    following = np.append(sorted_cosines[1:], sorted_cosines[-1])
    thresholds = (sorted_cosines + following) / 2
    f1 = np.where(can_end, 2 * hits / (called + truth.sum()), -1)
    wrong = (called - hits) + (truth.sum() - hits)
    accuracy = np.where(can_end, 1 - wrong / len(truth), -1)
    best_f1, best_accuracy = int(np.argmax(f1)), int(np.argmax(accuracy))
    return PairClassificationScores(
        average_precision=float(sklearn.metrics.average_precision_score(truth, cosines)),
        f1=float(f1[best_f1]),
        f1_threshold=float(thresholds[best_f1]),
        accuracy=float(accuracy[best_accuracy]),
        accuracy_threshold=float(thresholds[best_accuracy]),
        num_pairs=len(truth),
    )
