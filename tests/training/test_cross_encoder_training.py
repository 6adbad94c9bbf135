"""Training of cross-encoders: the same scores and gradients as transformers, losses that fall, and
folders that load everywhere.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="fine-tuning is PyTorch's for the matrices")

import sentence_transformers  # noqa: E402
import transformers  # noqa: E402

from minifuse import CrossEncoder, SentenceTransformer  # noqa: E402
from minifuse.cli import main  # noqa: E402
from minifuse.models.folder import read_cross_encoder_folder  # noqa: E402
from minifuse.training import (  # noqa: E402
    TrainingConfig,
    TrainingPairs,
    finetune_cross_encoder,
    hard_negatives,
)
from minifuse.training.cross_encoder import TrainableCrossEncoder  # noqa: E402
from minifuse.training.judging import scoring_judge_of  # noqa: E402
from minifuse.training.packing import accumulate_gradients, pack  # noqa: E402
from tiny_cross_encoder import write_cross_encoder  # noqa: E402

COLORS = ("red", "blue", "green", "dark")
THINGS = ("sky", "car", "dog", "cat", "tree", "sun")
ROWS = [("how are you", "the sky is blue"), ("a dog", "run, jump"), ("", "x " * 30)]


@pytest.fixture(scope="module", params=["bert", "roberta", "electra", "distilbert"])
def folder(request, tmp_path_factory):
    return write_cross_encoder(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture
def right_pairs():
    anchors = [f"which {thing} is {color}" for thing in THINGS for color in COLORS]
    return TrainingPairs(anchors, [text.replace("which", "a") for text in anchors])


@pytest.fixture
def scored_pairs(right_pairs):
    wrong = right_pairs.positives[5:] + right_pairs.positives[:5]
    return TrainingPairs(
        right_pairs.anchors * 2, right_pairs.positives + wrong, scores=[1.0] * 24 + [0.0] * 24
    )


def test_forward_and_gradients_are_those_of_transformers(folder):
    model = CrossEncoder(folder, activation_fn="identity")
    ours = TrainableCrossEncoder(read_cross_encoder_folder(folder), 0)
    sentences = pack(model.pipeline.tokenize(ROWS))
    scores = ours(sentences, np.arange(len(ROWS)))
    expected = model.predict(ROWS)
    np.testing.assert_allclose(scores.detach()[:, 0], expected, atol=2e-5, rtol=2e-5)

    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    for row, (a, b) in enumerate(zip(sentences.cu_seqlens, sentences.cu_seqlens[1:], strict=False)):
        arguments = {"input_ids": torch.from_numpy(sentences.ids[None, a:b].astype(np.int64))}
        if sentences.token_types is not None:
            types = sentences.token_types[None, a:b].astype(np.int64)
            arguments["token_type_ids"] = torch.from_numpy(types)
        (theirs(**arguments).logits.sum() * (row + 1)).backward()
    weights = torch.arange(1, len(ROWS) + 1)
    for limit in (10**9, 1):  # in one piece, and in one for each pair
        ours.zero_grad()
        accumulate_gradients(ours, sentences, lambda x: (x[:, 0] * weights).sum(), None, limit)
        wanted = dict(theirs.named_parameters())
        floor = 1e-6 * max(float(p.grad.norm()) for p in wanted.values() if p.grad is not None)
        names = ours.tensors()
        assert len(names) > 20
        for name, (key, parameter) in zip(names, ours._weights.items(), strict=True):
            gradient = wanted[name].grad
            error = float((parameter.grad - gradient).norm())
            assert error <= 2e-5 * float(gradient.norm()) + floor, (name, key)


@pytest.mark.parametrize("kind", ["scores", "negatives"])
def test_a_trained_cross_encoder_loads_everywhere(
    folder, kind, scored_pairs, right_pairs, tmp_path
):
    pairs = scored_pairs if kind == "scores" else right_pairs
    config = TrainingConfig(epochs=2, batch_size=8, learning_rate=1e-3, num_negatives=3)
    result = finetune_cross_encoder(folder, pairs, tmp_path / "out", config)
    assert np.isfinite(result.losses).all()
    ours = CrossEncoder(tmp_path / "out")
    theirs = sentence_transformers.CrossEncoder(str(tmp_path / "out"))
    np.testing.assert_allclose(ours.predict(ROWS), theirs.predict(ROWS), atol=1e-5)
    assert not np.allclose(ours.predict(ROWS), CrossEncoder(folder).predict(ROWS), atol=1e-3)


@pytest.mark.parametrize("kind", ["scores", "negatives"])
def test_it_learns(kind, tiny_folder, scored_pairs, right_pairs, tmp_path):
    """An embedding model gets a head, and tells right from wrong after a few steps."""
    negatives = None
    if kind == "negatives":
        encode = SentenceTransformer(tiny_folder).encode
        negatives = hard_negatives(encode, right_pairs, 6, most=2.0)
        assert all(len(wrong) == 6 for wrong in negatives)
        pairs, judge = right_pairs, scoring_judge_of(right_pairs, negatives)
    else:
        pairs, judge = scored_pairs, scoring_judge_of(scored_pairs)
    config = TrainingConfig(epochs=25, batch_size=12, learning_rate=3e-3, dropout=0.0)
    result = finetune_cross_encoder(tiny_folder, pairs, tmp_path / "out", config, negatives, judge)
    (_, before), (_, after) = result.evaluations
    assert np.mean(result.losses[-4:]) < 0.7 * np.mean(result.losses[:4])
    assert after > before + 0.2
    model = CrossEncoder(tmp_path / "out", activation_fn="identity")
    assert judge(model.predict) == pytest.approx(after, abs=0.02)
    assert result.best_step == len(result.losses)


def test_an_interrupted_training_ends_with_the_same_bits(tiny_folder, right_pairs, tmp_path):
    config = TrainingConfig(epochs=2, batch_size=8, checkpoint_every=2)
    whole = finetune_cross_encoder(tiny_folder, right_pairs, tmp_path / "whole", config)

    def stop(step, total, loss, score):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune_cross_encoder(tiny_folder, right_pairs, tmp_path / "parts", config, on_step=stop)
    parts = finetune_cross_encoder(tiny_folder, right_pairs, tmp_path / "parts", config)
    assert parts.losses == whole.losses
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]


def test_hard_negatives_are_near_and_not_right():
    vectors = {"q": [1, 0], "a": [0.9, 0.1], "twin": [0.9, 0.11], "b": [0.5, 0.5], "c": [-1, 0],
               "p": [0, 1], "d": [0.1, 0.9]}  # fmt: skip
    pairs = TrainingPairs(["q", "p", "q"], ["a", "d", "b"])
    more = TrainingPairs([*pairs.anchors, "c", "p"], [*pairs.positives, "c", "twin"])

    def encode(texts):
        return np.array([vectors[text] for text in texts], np.float32)

    found = hard_negatives(encode, more, 2)
    assert found[0] == ["d", "c"]  # b is right, too, and twin is as near as a
    assert found[2] == ["d", "c"]
    assert all(len(wrong) <= 2 for wrong in found)
    assert "twin" in hard_negatives(encode, more, 2, most=1.1)[0]


def test_hard_negatives_by_the_definition(rng):
    """Also of an anchor with most of the right answers."""
    anchors = ["many"] * 300 + [f"q{i}" for i in range(40)]
    positives = [f"m{i}" for i in range(300)] + [f"p{i}" for i in range(40)]
    vectors = {text: rng.standard_normal(6) for text in [*dict.fromkeys(anchors), *positives]}
    vectors |= {f"p{i}": vectors[f"q{i}"] + 0.1 * rng.standard_normal(6) for i in range(40)}
    found = hard_negatives(
        lambda texts: np.array([vectors[text] for text in texts], np.float32),
        TrainingPairs(anchors, positives), 3,
    )  # fmt: skip
    unit = {text: vector / np.linalg.norm(vector) for text, vector in vectors.items()}
    for anchor, positive, negatives in zip(anchors, positives, found, strict=True):
        right = {p for a, p in zip(anchors, positives, strict=True) if a == anchor}
        own = unit[anchor] @ unit[positive]
        cosines = {p: unit[anchor] @ unit[p] for p in positives if p not in right}
        near = [p for p in cosines if cosines[p] <= 0.95 * own]
        assert negatives == sorted(near, key=cosines.__getitem__, reverse=True)[:3]


@pytest.mark.parametrize(("pairs", "message"), [
    (TrainingPairs(["a", "b"], ["c", "d"], scores=[0.0, 5.0]), r"wanted 0\.\.1"),
])  # fmt: skip
def test_what_cannot_be_learnt_is_refused(tiny_folder, tmp_path, pairs, message):
    with pytest.raises(ValueError, match=message):
        finetune_cross_encoder(tiny_folder, pairs, tmp_path / "out")
    with pytest.raises(ValueError, match="1 lists of negatives, wanted 2"):
        finetune_cross_encoder(
            tiny_folder, TrainingPairs(["a", "b"], ["c", "d"]), tmp_path / "out", None, [["x"]]
        )


def test_several_labels_are_refused(tmp_path, right_pairs):
    folder = write_cross_encoder(tmp_path / "three", "bert", num_labels=3)
    with pytest.raises(ValueError, match="one label"):
        finetune_cross_encoder(folder, right_pairs, tmp_path / "out")


def test_command(tiny_folder, tmp_path, capsys):
    path = tmp_path / "pairs.jsonl"
    rows = [{"question": f"which {t}", "answer": f"the {c} {t}"} for t in THINGS for c in COLORS]
    path.write_text("\n".join(map(json.dumps, rows)))
    arguments = ["finetune", "--model", str(tiny_folder), "--cross-encoder", "--pairs", str(path)]
    arguments += ["--eval", str(path), "--batch-size", "8", "--no-progress", "--negatives", "2"]
    assert main([*arguments, "-o", str(tmp_path / "out")]) == 0
    assert "24 pairs, 3 steps" in capsys.readouterr().out
    assert CrossEncoder(tmp_path / "out").predict(ROWS).shape == (3,)
    labelled = tmp_path / "labels.tsv"
    labelled.write_text("label\tquestion1\tquestion2\n1\ta dog\tdogs\n0\ta dog\tthe sky\n")
    arguments[5] = str(labelled)
    arguments[7] = str(labelled)
    assert main([*arguments, "-o", str(tmp_path / "scored")]) == 0
    assert "2 pairs, 1 steps" in capsys.readouterr().out
