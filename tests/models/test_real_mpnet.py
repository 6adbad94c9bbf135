"""all-mpnet-base-v2 with its real weights against sentence-transformers."""

import numpy as np
import pytest
import sentence_transformers

from minifuse import SentenceTransformer
from minifuse.evaluation.pairs import evaluate_pairs, read_scored_pairs
from minifuse.evaluation.retrieval import evaluate_retrieval, read_retrieval_task
from mpnet_model import fetch_mpnet

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder():
    try:
        return fetch_mpnet()
    except FileNotFoundError as error:
        pytest.skip(f"no cached copy of the 440 MB model, and no network to fetch it: {error}")


@pytest.fixture(scope="module")
def ours(folder):
    return SentenceTransformer(folder)


@pytest.fixture(scope="module")
def theirs(folder):
    return sentence_transformers.SentenceTransformer(str(folder), device="cpu")


def test_vectors(ours, theirs):
    texts = ["The sky is blue.", "", "a " * 300, "Zwölf Boxkämpfer jagen Viktor. " * 30]
    assert ours.max_seq_length == theirs.max_seq_length == 384
    vectors = ours.encode(texts)
    assert np.abs(vectors - theirs.encode(texts)).max() <= 1e-6
    for place, text in enumerate(texts):
        np.testing.assert_array_equal(ours.encode(text), vectors[place])


@pytest.mark.parametrize("name", ["stsb_test", "sickr_test"])
def test_correlations(folder, ours, theirs, data, name):
    pairs = read_scored_pairs(data / "sts" / f"{name}.tsv")
    scored = pairs.sentences1, pairs.sentences2, pairs.scores
    expected = evaluate_pairs(theirs, *scored)
    result = evaluate_pairs(ours, *scored)
    assert result.spearman == pytest.approx(expected.spearman, abs=1e-4)
    assert result.pearson == pytest.approx(expected.pearson, abs=1e-4)
    in_8_bits = evaluate_pairs(SentenceTransformer(folder, dtype="int8"), *scored)
    print(f"{name}: {expected.spearman:.4f} {result.spearman:.4f}, int8 {in_8_bits.spearman:.4f}")
    assert in_8_bits.spearman == pytest.approx(expected.spearman, abs=1e-3)


def test_cranfield(folder, ours, theirs, data):
    task = read_retrieval_task(data / "retrieval" / "cranfield")
    expected = evaluate_retrieval(theirs, task).ndcg_at_10
    result = evaluate_retrieval(ours, task).ndcg_at_10
    in_8_bits = evaluate_retrieval(SentenceTransformer(folder, dtype="int8"), task).ndcg_at_10
    print(f"Cranfield, nDCG@10: {expected:.4f} {result:.4f}, int8 {in_8_bits:.4f}")
    assert result == pytest.approx(expected, abs=1e-4)
    assert in_8_bits == pytest.approx(expected, abs=1e-3)
