"""The real models: golden values, agreement with others' engines, quality on STS-B."""

from __future__ import annotations

import numpy as np
import pytest
import sentence_transformers
from onnx.reference import ReferenceEvaluator

from minifuse import SentenceTransformer
from minifuse.bench import sample_text
from minifuse.evaluation import evaluate_pairs, read_scored_pairs

FOX = "The quick brown fox jumps over the lazy dog."
PARAPHRASE = "A fast brown fox leaps over a sleepy dog."
SKY = "The sky is blue."
TOLERANCE = 1e-6  # max abs difference of normalised embeddings, the project's promise


@pytest.fixture(scope="module")
def theirs(minilm_folder):
    return sentence_transformers.SentenceTransformer(str(minilm_folder), device="cpu")


def test_golden_values(minilm):
    embeddings = minilm.encode([FOX, PARAPHRASE, SKY])
    np.testing.assert_allclose(
        embeddings[0, :5], [0.0439, 0.0589, 0.0482, 0.0775, 0.0267], atol=1e-4
    )
    similarities = minilm.similarity(embeddings, embeddings)
    pairs = [similarities[0, 1], similarities[0, 2], similarities[1, 2]]
    np.testing.assert_allclose(pairs, [0.8524, 0.0950, 0.1419], atol=1e-4)


def test_our_own_sentences(minilm, theirs):
    texts = [*sample_text.SENTENCES, *sample_text.paragraphs(5), "", "a", "naïve 日本"]
    assert np.abs(minilm.encode(texts) - theirs.encode(texts)).max() <= TOLERANCE


def test_token_embeddings(minilm, theirs):
    texts = [FOX, SKY, ""]
    for ours, other in zip(
        minilm.encode(texts, output_value="token_embeddings"),
        theirs.encode(texts, output_value="token_embeddings"),
        strict=True,
    ):
        assert ours.shape == other.shape
        np.testing.assert_allclose(ours, other.numpy(), atol=1e-5)


def test_sts_sentences(minilm, theirs, data):
    pairs = read_scored_pairs(data / "sts" / "stsb_test.tsv")
    texts = list(dict.fromkeys(pairs.sentences1 + pairs.sentences2))[:600]
    assert np.abs(minilm.encode(texts) - theirs.encode(texts)).max() <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "spearman", "pearson", "kendall"),
    [
        ("stsb_test", 0.8203, 0.8274, 0.6423),
        ("stsb_dev", 0.8672, 0.8696, 0.6941),
        ("sickr_test", 0.7715, 0.8363, 0.5997),
    ],
)
def test_correlations(minilm, data, name, spearman, pearson, kendall):
    pairs = read_scored_pairs(data / "sts" / f"{name}.tsv")
    result = evaluate_pairs(minilm, pairs.sentences1, pairs.sentences2, pairs.scores)
    assert result.spearman == pytest.approx(spearman, abs=1e-4)
    assert result.pearson == pytest.approx(pearson, abs=1e-4)
    assert result.kendall == pytest.approx(kendall, abs=1e-4)


def test_long_and_cut_texts(minilm, theirs, data):
    texts = (data / "workloads" / "long_500.txt").read_text(encoding="utf-8").splitlines()[:12]
    ours, info = minilm.encode(texts, return_info=True)
    assert info.truncated.all()
    assert (info.num_tokens == 256).all()
    assert np.abs(ours - theirs.encode(texts)).max() <= TOLERANCE


def test_512_tokens(minilm_folder):
    ours = SentenceTransformer(minilm_folder)
    other = sentence_transformers.SentenceTransformer(str(minilm_folder), device="cpu")
    ours.max_seq_length = other.max_seq_length = 512
    text = " ".join(sample_text.SENTENCES * 3)
    assert len(ours.preprocess([text])["input_ids"][0]) == 512
    assert np.abs(ours.encode(text) - other.encode(text)).max() <= TOLERANCE


def test_second_model(second_folder, second_graph):
    """Against the published graph itself, run in NumPy by ONNX's own interpreter."""
    evaluator = ReferenceEvaluator(str(second_graph))
    model = SentenceTransformer(second_folder)
    for text in (FOX, PARAPHRASE, SKY, ""):
        input_ids = model.tokenize([text])["input_ids"]
        feeds = {"input_ids": input_ids, "attention_mask": np.ones_like(input_ids)}
        (pooled,) = (one for one in evaluator.run(None, feeds) if one.shape == (1, 384))
        difference = np.linalg.norm(model.encode([text]) - pooled)
        assert difference <= TOLERANCE * np.linalg.norm(pooled)


def test_peers_parity_table(minilm_folder):
    from minifuse.bench.parity import run_parity

    checks = run_parity(str(minilm_folder), list(sample_text.SENTENCES)[:12])
    assert [c.name for c in checks if not c.holds] == []
    # Six ops and the vectors of one set; more where MINIFUSE_ISA leaves more sets to compare.
    assert sum(c.bound is not None for c in checks) >= 7
