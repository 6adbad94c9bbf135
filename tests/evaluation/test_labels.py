"""Classification, clustering and pair classification: against scikit-learn and sentence-transformers."""

from __future__ import annotations

import json

import numpy as np
import pytest

from minifuse.cli import main
from minifuse.evaluation import (
    LabelledTexts,
    evaluate_classification,
    evaluate_clustering,
    evaluate_pair_classification,
    read_labelled_pairs,
    read_labelled_texts,
    task_of,
)

pytest.importorskip("sklearn", reason="these evaluations are scikit-learn's")


class Points:
    """Texts "x y" as points of a plane."""

    def encode(self, texts):
        return np.array([[float(part) for part in text.split()] for text in texts], np.float32)


def blobs(rng, count, centers):
    texts, labels = [], []
    for label, center in centers.items():
        for point in rng.normal(center, 0.3, (count, 2)):
            texts.append(f"{point[0]} {point[1]}")
            labels.append(label)
    return LabelledTexts(texts, labels)


def test_separate_blobs_are_told_apart(rng):
    centers = {"a": (4, 0), "b": (0, 4), "c": (-4, -4)}
    scores = evaluate_classification(Points(), blobs(rng, 30, centers), blobs(rng, 20, centers))
    assert (scores.accuracy, scores.macro_f1, scores.num_labels) == (1, 1, 3)
    found = evaluate_clustering(Points(), blobs(rng, 30, centers))
    assert (found.v_measure, found.num_labels, found.num_texts) == (1, 3, 90)


def test_mixed_blobs_are_not(rng):
    centers = {"a": (1, 0), "b": (1, 0)}
    scores = evaluate_classification(Points(), blobs(rng, 100, centers), blobs(rng, 100, centers))
    assert 0.3 < scores.accuracy < 0.7
    assert evaluate_clustering(Points(), blobs(rng, 100, centers)).v_measure < 0.1


def test_pairs_against_sentence_transformers(rng):
    evaluators = pytest.importorskip(
        "sentence_transformers.sentence_transformer.evaluation",
        reason="sentence-transformers is the referee",
    )
    cosines = np.round(rng.uniform(-1, 1, 300), 2)  # many ties
    labels = (cosines + rng.normal(0, 0.5, 300) > 0).astype(int)
    first = ["1 0"] * 300
    second = [f"{c} {np.sqrt(1 - c * c)}" for c in cosines]
    ours = evaluate_pair_classification(Points(), first, second, labels.tolist())
    judge = evaluators.BinaryClassificationEvaluator
    best_accuracy, _ = judge.find_best_acc_and_threshold(cosines, labels, True)
    best_f1, *_ = judge.find_best_f1_and_threshold(cosines, labels, True)
    # Theirs may part equal cosines, which no threshold does: never worse than ours.
    assert best_accuracy - 0.02 <= ours.accuracy <= best_accuracy + 1e-9
    assert best_f1 - 0.02 <= ours.f1 <= best_f1 + 1e-9
    called = cosines >= ours.accuracy_threshold
    assert (called == labels).mean() == pytest.approx(ours.accuracy)
    called = cosines >= ours.f1_threshold
    precision, recall = labels[called].mean(), labels[called].sum() / labels.sum()
    assert 2 * precision * recall / (precision + recall) == pytest.approx(ours.f1)


def test_a_file_says_what_it_is_for(tiny_folder, tmp_path, capsys):
    texts = tmp_path / "texts.tsv"
    texts.write_text("label\ttext\n" + "".join(f"{i % 2}\ta red car {i}\n" for i in range(10)))
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("label,sentence1,sentence2\n1,a car,the car\n0,a car,blue\n")
    for arguments, keys in (
        ([texts], {"v_measure", "homogeneity", "completeness"}),
        ([texts, "--train", texts], {"accuracy", "macro_f1"}),
        ([pairs], {"average_precision", "f1", "accuracy_threshold"}),
    ):
        assert main(["evaluate", "-m", str(tiny_folder), "--json", *map(str, arguments)]) == 0
        assert keys <= json.loads(capsys.readouterr().out).keys()
    other = tmp_path / "other.tsv"
    other.write_text("a\tb\n1\t2\n")
    with pytest.raises(ValueError, match="the columns are a, b; wanted score"):
        task_of(other)
    with pytest.raises(ValueError, match="pair classification, which learns nothing"):
        task_of(pairs, texts)


def test_what_cannot_be_judged(rng, tmp_path):
    one = LabelledTexts(["1 0", "0 1"], ["a", "a"])
    two = LabelledTexts(["1 0", "0 1"], ["a", "b"])
    with pytest.raises(ValueError, match="has only 'a' as labels"):
        evaluate_clustering(Points(), one)
    with pytest.raises(ValueError, match="the training set has only 'a'"):
        evaluate_classification(Points(), one, two)
    with pytest.raises(ValueError, match="lacks the label 'c'"):
        evaluate_classification(Points(), two, LabelledTexts(["1 1"], ["c"]))
    with pytest.raises(ValueError, match="the test set is empty"):
        evaluate_classification(Points(), two, LabelledTexts([], []))
    with pytest.raises(ValueError, match="has only 1 as labels"):
        evaluate_pair_classification(Points(), ["1 0"], ["1 0"], [1])
    with pytest.raises(ValueError, match="wanted 0 and 1"):
        evaluate_pair_classification(Points(), ["1 0"], ["1 0"], [2])
    with pytest.raises(ValueError, match="as many of each"):
        evaluate_pair_classification(Points(), ["1 0"], [], [1])
    path = tmp_path / "pairs.tsv"
    path.write_text("label\tquestion1\tquestion2\nyes\ta\tb\n")
    with pytest.raises(ValueError, match="line 2: label is 'yes', wanted 0 or 1"):
        read_labelled_pairs(path)


@pytest.mark.slow
def test_banking77_as_scikit_learn_counts(minilm, data):
    """Logistic regression on sentence-transformers' own embeddings gives the same figures."""
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="the referee")
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, f1_score

    train = read_labelled_texts(data / "pairs" / "banking77_train.tsv")
    test = read_labelled_texts(data / "pairs" / "banking77_test.tsv")
    ours = evaluate_classification(minilm, train, test)
    theirs = sentence_transformers.SentenceTransformer(minilm.name, device="cpu")
    classifier = LogisticRegression(max_iter=1000)
    classifier.fit(theirs.encode(train.texts), train.labels)
    predicted = classifier.predict(theirs.encode(test.texts))
    assert ours.accuracy == pytest.approx(accuracy_score(test.labels, predicted), abs=1e-4)
    assert ours.macro_f1 == pytest.approx(
        f1_score(test.labels, predicted, average="macro"), abs=1e-4
    )
