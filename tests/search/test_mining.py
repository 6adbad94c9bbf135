"""Pairs, communities and search among embeddings: sentence-transformers' results by its names."""

from __future__ import annotations

import numpy as np
import pytest

from minifuse import util


@pytest.fixture
def embeddings(rng):
    """Groups of near directions, so that there are communities and close pairs."""
    centers = rng.standard_normal((12, 24))
    rows = centers[rng.integers(0, 12, 400)] + 0.35 * rng.standard_normal((400, 24))
    return rows.astype(np.float32)


@pytest.fixture(scope="module")
def theirs():
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="the referee")
    return sentence_transformers.util


def test_pairs_are_theirs(embeddings, theirs):
    torch = pytest.importorskip("torch", reason="theirs takes tensors")
    for arguments in ({}, {"max_pairs": 50}, {"top_k": 3}, {"query_chunk_size": 37}):
        ours = util.paraphrase_mining_embeddings(embeddings, **arguments)
        wanted = theirs.paraphrase_mining_embeddings(torch.from_numpy(embeddings), **arguments)
        assert len(ours) == len(wanted)
        np.testing.assert_allclose([p[0] for p in ours], [p[0] for p in wanted], atol=2e-6)
        assert {(i, j) for _, i, j in ours} == {(i, j) for _, i, j in wanted}
        assert all(i < j for _, i, j in ours)


def test_duplicates_are_pairs_once():
    rows = np.repeat(np.eye(3, dtype=np.float32), 5, axis=0)
    pairs = util.paraphrase_mining_embeddings(rows, top_k=2)
    assert len({(i, j) for _, i, j in pairs}) == len(pairs)
    best = [(i, j) for score, i, j in pairs if score > 0.99]
    assert best == sorted(best)
    assert len(best) >= 3 * 4
    assert util.paraphrase_mining_embeddings(rows[:1]) == []


def test_communities_are_theirs(embeddings, theirs):
    for threshold, least in ((0.75, 10), (0.6, 5), (0.9, 3), (-1.0, 10)):
        ours = util.community_detection(embeddings, threshold, least, batch_size=64)
        wanted = theirs.community_detection(embeddings, threshold, least)
        assert [sorted(one) for one in ours] == [sorted(one) for one in wanted]
        assert [one[0] for one in ours] == [one[0] for one in wanted]
    assert util.community_detection(embeddings[:5]) == []
    assert util.community_detection([]) == []


def test_paraphrases_of_texts(tiny):
    texts = ["a red car", "the sky is blue", "a red car", "dog"]
    assert util.paraphrase_mining(tiny, texts)[0][1:] == [0, 2]


def test_search_with_any_score(embeddings, theirs):
    queries = embeddings[:7] + 0.1
    for score_function in (util.cos_sim, util.dot_score, util.euclidean_sim):
        found = util.semantic_search(
            queries, embeddings, top_k=5, score_function=score_function,
            query_chunk_size=3, corpus_chunk_size=90,
        )  # fmt: skip
        scores = score_function(queries, embeddings)
        for row, hits in zip(scores, found, strict=True):
            wanted = np.argsort(-row, kind="stable")[:5]
            assert [hit["corpus_id"] for hit in hits] == wanted.tolist()
            np.testing.assert_allclose([hit["score"] for hit in hits], row[wanted], rtol=1e-5)
    assert util.semantic_search(queries, embeddings[:2], top_k=10)[0][1]["corpus_id"] in (0, 1)
    assert util.semantic_search(queries, embeddings[:0]) == [[] for _ in queries]


def test_equal_scores_of_any_function_come_by_their_ids(rng):
    """Scores that no number is come last."""
    corpus = np.arange(40.0)[:, None]
    table = rng.integers(0, 4, (3, 40)).astype(float)
    table[1, ::7] = np.nan

    def score_function(queries, chunk):
        return table[:, chunk[:, 0].astype(int)]

    found = util.semantic_search(
        np.zeros((3, 1)), corpus, top_k=12, score_function=score_function, corpus_chunk_size=9
    )
    for row, hits in zip(table, found, strict=True):
        wanted = np.argsort(-row, kind="stable")[:12]
        assert [hit["corpus_id"] for hit in hits] == wanted.tolist()


def test_wrong_sizes(embeddings):
    for arguments in ({"top_k": 0}, {"max_pairs": 0}, {"query_chunk_size": -1}):
        with pytest.raises(ValueError, match="wanted > 0"):
            util.paraphrase_mining_embeddings(embeddings, **arguments)
    with pytest.raises(ValueError, match="min_community_size is 0"):
        util.community_detection(embeddings, min_community_size=0)
