"""Real weights against sentence-transformers: all-mpnet-base-v2 and SPLADE-tiny-msmarco."""

import numpy as np
import pytest
import sentence_transformers
import torch

from minifuse import SentenceTransformer, SparseEncoder
from minifuse.evaluation.pairs import evaluate_pairs, read_scored_pairs
from minifuse.evaluation.retrieval import evaluate_retrieval, read_retrieval_task
from real_models import fetch_mpnet, fetch_splade

pytestmark = pytest.mark.slow


def fetched(fetch):
    try:
        return fetch()
    except FileNotFoundError as error:
        pytest.skip(f"no cached copy of the model, and no network to fetch it: {error}")


@pytest.fixture(scope="module")
def mpnet():
    return fetched(fetch_mpnet)


@pytest.fixture(scope="module")
def ours(mpnet):
    return SentenceTransformer(mpnet)


@pytest.fixture(scope="module")
def theirs(mpnet):
    return sentence_transformers.SentenceTransformer(str(mpnet), device="cpu")


def test_mpnets_vectors(ours, theirs):
    texts = ["The sky is blue.", "", "a " * 300, "Zwölf Boxkämpfer jagen Viktor. " * 60]
    assert ours.max_seq_length == theirs.max_seq_length == 384
    vectors = ours.encode(texts)
    assert np.abs(vectors - theirs.encode(texts)).max() <= 1e-6
    for place, text in enumerate(texts):
        np.testing.assert_array_equal(ours.encode(text), vectors[place])


@pytest.mark.parametrize("name", ["stsb_test", "sickr_test"])
def test_mpnets_correlations(mpnet, ours, theirs, data, name):
    pairs = read_scored_pairs(data / "sts" / f"{name}.tsv")
    scored = pairs.sentences1, pairs.sentences2, pairs.scores
    expected, result = evaluate_pairs(theirs, *scored), evaluate_pairs(ours, *scored)
    in_8_bits = evaluate_pairs(SentenceTransformer(mpnet, dtype="int8"), *scored)
    print(f"{name}: {expected.spearman:.4f} {result.spearman:.4f}, int8 {in_8_bits.spearman:.4f}")
    assert result.spearman == pytest.approx(expected.spearman, abs=1e-4)
    assert result.pearson == pytest.approx(expected.pearson, abs=1e-4)
    assert in_8_bits.spearman == pytest.approx(expected.spearman, abs=1e-3)


def test_mpnet_on_cranfield(mpnet, ours, theirs, data):
    task = read_retrieval_task(data / "retrieval" / "cranfield")
    models = theirs, ours, SentenceTransformer(mpnet, dtype="int8")
    expected, result, in_8_bits = (evaluate_retrieval(one, task).ndcg_at_10 for one in models)
    print(f"Cranfield, nDCG@10: {expected:.4f} {result:.4f}, int8 {in_8_bits:.4f}")
    assert result == pytest.approx(expected, abs=1e-4)
    assert in_8_bits == pytest.approx(expected, abs=1e-3)


def test_splade(data):
    """The same words, and weights to 1e-5."""
    folder = fetched(fetch_splade)
    pairs = read_scored_pairs(data / "sts" / "stsb_test.tsv")
    texts = list(dict.fromkeys(pairs.sentences1 + pairs.sentences2))[:1000]
    expected = sentence_transformers.SparseEncoder(str(folder), device="cpu").encode(texts)
    model = SparseEncoder(folder)
    found = model.encode(texts)
    difference = torch.abs(found.to_dense() - expected.to_dense())
    print(f"{model.sparsity(found)}, largest difference {difference.max():.2g}")
    assert difference.max() <= 1e-5
    # A score of 1e-7 either side of zero is a word in one and none in the other.
    same = (found.to_dense() > 1e-6) == (expected.to_dense() > 1e-6)
    assert bool(same.all())
