"""minifuse compare: says there is a difference where there is one, and none where there is none."""

from __future__ import annotations

import json

import numpy as np
import pytest

from minifuse import SentenceTransformer
from minifuse.cli import main
from minifuse.evaluation import (
    LabelledPairs,
    RetrievalTask,
    ScoredPairs,
    rank_documents,
    ranking_rows,
    read_labelled_pairs,
    read_retrieval_task,
    read_scored_pairs,
    rerank_documents,
)
from minifuse.evaluation.comparison import (
    Comparison,
    Difference,
    compare_groups,
    compare_on_pairs,
    compare_on_retrieval,
    compare_reranked,
)
from minifuse.evaluation.stats import Interval
from minifuse.files.safetensors_file import SafetensorsFile, write_safetensors
from minifuse.models.folder import read_model_folder


class Angles:
    """Texts are numbers: angles, each off by noise of its own."""

    def __init__(self, noise, seed):
        self.noise, self.rng = noise, np.random.default_rng(seed)

    def encode(self, texts):
        angle = np.array([float(text) for text in texts])
        angle = angle + self.rng.normal(0, self.noise, len(texts))
        return np.stack([np.cos(angle), np.sin(angle)], axis=1)

    encode_query = encode_document = encode


@pytest.fixture
def pairs(rng):
    angles = rng.uniform(0, 3, 200)
    return ScoredPairs(["0"] * 200, [str(a) for a in angles], np.cos(angles).tolist())


def test_a_better_model_is_told(pairs):
    result = compare_on_pairs(Angles(0.1, 0), Angles(0.8, 1), pairs, ("good", "bad"))
    assert [one.measure for one in result.differences] == ["Spearman", "Pearson", "Kendall"]
    assert all(one.is_real for one in result.differences)
    assert result.verdict().startswith("There is a real difference: good is above bad (Spearman")
    back = compare_on_pairs(Angles(0.8, 1), Angles(0.1, 0), pairs, ("bad", "good"))
    assert "good is above bad" in back.verdict()


def test_two_alike_are_not(pairs):
    result = compare_on_pairs(Angles(0.3, 0), Angles(0.3, 1), pairs)
    assert not any(one.is_real for one in result.differences)
    assert result.verdict().startswith("There is no real difference between a and b (Spearman")
    same = compare_on_pairs(Angles(0.0, 0), Angles(0.0, 1), pairs)
    assert same.differences[0].p_value == 1
    assert same.differences[0].interval.low == same.differences[0].interval.high == 0


@pytest.mark.parametrize(
    ("p_values", "verdict"),
    [
        ((0.07, 0.3, 0.02), "There is no real difference between a and b (one "),
        ((0.07, 0.3, 0.01), "There is a real difference: a is above b (three "),
        ((0.01, 0.3, 0.001), "There is a real difference: a is above b (one "),
    ],
)
def test_three_measures_are_three_chances(p_values, verdict):
    """The verdict multiplies p by their number; it tells the first measure that decides."""
    differences = [
        Difference(name, 0.9, 0.8, Interval(0.1, 0.05, 0.15, 0.95), p_value)
        for name, p_value in zip(("one", "two", "three"), p_values, strict=True)
    ]
    values = np.zeros(3)
    result = Comparison("a", "b", 3, differences, values, values, "cosine")
    assert result.verdict().startswith(verdict)


def test_retrieval(rng):
    corpus = {str(i): str(i / 20) for i in range(60)}
    queries = {f"q{i}": str(i / 20) for i in range(60)}
    task = RetrievalTask(corpus, queries, {f"q{i}": {str(i): 1} for i in range(60)})
    result = compare_on_retrieval(Angles(0.001, 0), Angles(0.5, 1), task, ("good", "bad"))
    assert "good is above bad" in result.verdict()
    alike = compare_on_retrieval(Angles(0.3, 0), Angles(0.3, 1), task)
    assert "no real difference" in alike.verdict()


class Distances:
    """A reranker that scores a pair by how near its two numbers are."""

    def predict(self, pairs):
        return np.array([-abs(float(query) - float(text)) for query, text in pairs], np.float32)


def test_reranking(rng):
    """Documents that the vectors put far off come first, and the first hundred stay the same."""
    corpus = {str(i): str(i / 20) for i in range(60)}
    queries = {f"q{i}": str(i / 20) for i in range(60)}
    task = RetrievalTask(corpus, queries, {f"q{i}": {str(i): 1} for i in range(60)})
    model = Angles(0.5, 1)
    ranking = rank_documents(model, task)
    reranked = rerank_documents(Distances(), task, ranking)
    for query, found in reranked.items():
        assert found[0] == query[1:]
        assert sorted(found) == sorted(ranking[query])
    assert set(ranking_rows(task, reranked)["ndcg_at_10"]) == {1.0}
    result = compare_reranked(Distances(), model, task)
    assert "reranked is above ranked by vectors" in result.verdict()
    assert result.differences[0].interval.low > 0


def test_groups(rng):
    near, far = rng.uniform(0, 0.5, 50), rng.uniform(0.4, 1.5, 50)
    pairs = LabelledPairs(
        ["0"] * 100, [str(a) for a in np.concatenate([near, far])], [1] * 50 + [0] * 50
    )
    assert "label 1 is above label 0" in compare_groups(Angles(0.1, 0), pairs).verdict()
    with pytest.raises(ValueError, match="wanted both 0 and 1"):
        compare_groups(Angles(0.1, 0), LabelledPairs(["0"], ["1"], [1]))
    with pytest.raises(ValueError, match="scored differently"):
        compare_on_pairs(Angles(0, 0), Angles(0, 0), ScoredPairs(["0"] * 2, ["1"] * 2, [1.0, 1.0]))


@pytest.fixture(scope="module")
def random_folder(minilm_folder, tmp_path_factory):
    """MiniLM with random weights."""
    import shutil

    folder = tmp_path_factory.mktemp("random") / "model"
    shutil.copytree(
        minilm_folder, folder, ignore=shutil.ignore_patterns("*.bin", "onnx", "openvino")
    )
    rng = np.random.default_rng(3)
    with SafetensorsFile(read_model_folder(minilm_folder).weights_path) as file:
        tensors = {
            name: file.read(name)
            if "LayerNorm" in name
            else rng.normal(0, 0.05, file.read(name).shape).astype(np.float32)
            for name in file.names()
            if "position_ids" not in name
        }
    write_safetensors(folder / "model.safetensors", tensors, {})
    return folder


def test_real_models(minilm_folder, random_folder, data, tmp_path, capsys):
    stsb = str(data / "sts" / "stsb_test.tsv")
    plot = tmp_path / "plot.png"
    int8 = f"{minilm_folder}@int8"
    assert main(["compare", str(minilm_folder), int8, "--pairs", stsb, "--plot", str(plot)]) == 0
    out = capsys.readouterr().out
    assert "There is no real difference" in out
    assert "its p is below 0.05 / 3 = 0.017 and its interval leaves out 0" in out
    assert plot.read_bytes()[:4] == b"\x89PNG"
    arguments = ["compare", str(minilm_folder), str(random_folder), "--pairs", stsb, "--json"]
    assert main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["verdict"].startswith("There is a real difference: ")
    assert all(row["is_real"] and row["p_value"] < 0.01 for row in result["differences"])


def test_real_groups(minilm, data):
    groups = compare_groups(minilm, read_labelled_pairs(data / "pairs" / "mqp_test.tsv"))
    assert "label 1 is above label 0" in groups.verdict()


@pytest.mark.slow
def test_real_retrieval(minilm, minilm_folder, data):
    int8 = SentenceTransformer(minilm_folder, dtype="int8")
    task = read_retrieval_task(data / "retrieval" / "cranfield")
    result = compare_on_retrieval(minilm, int8, task, ("float32", "int8"))
    assert "no real difference" in result.verdict()


def test_wrong_use(tiny_folder, tmp_path, capsys):
    labelled = tmp_path / "pairs.tsv"
    labelled.write_text("label\tsentence1\tsentence2\n1\ta\tb\n0\ta\tc\n")
    scored = tmp_path / "scored.tsv"
    scored.write_text("score\tsentence1\tsentence2\n1\ta\tb\n0\ta\tc\n")
    tiny = str(tiny_folder)
    for arguments, message in (
        ([tiny, tiny, "--pairs", str(labelled)], "compared by one model"),
        ([tiny, "--pairs", str(scored)], "wanted a second model"),
        ([tiny, tiny, "--pairs", str(scored), "--plot", "x.gif"], "wanted an ending of .png"),
    ):
        assert main(["compare", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_scored_pairs_are_read(data):
    assert len(read_scored_pairs(data / "sts" / "stsb_test.tsv").scores) == 1379
