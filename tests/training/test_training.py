"""Fine-tuning: the encoder against sentence-transformers, gradients, resuming, what comes out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="fine-tuning is PyTorch's for the matrices")

from minifuse import SentenceTransformer  # noqa: E402
from minifuse.cli import main  # noqa: E402
from minifuse.models.folder import read_model_folder  # noqa: E402
from minifuse.training import (  # noqa: E402
    TrainingConfig,
    TrainingPairs,
    finetune,
    read_training_pairs,
)
from minifuse.training.encoder import Draws, TrainableEncoder  # noqa: E402
from minifuse.training.judging import judge_of, rank_of_answers  # noqa: E402
from minifuse.training.losses import (  # noqa: E402
    cosent_loss,
    ranking_loss,
    same_text_groups,
)
from minifuse.training.packing import Packed, accumulate_gradients, pack  # noqa: E402

COLORS = ("red", "blue", "sky", "car", "dog", "cat", "tree", "sun")


@pytest.fixture
def pairs():
    anchors = [f"the {a} is {b}" for a in COLORS for b in COLORS]
    return TrainingPairs(anchors, [text.replace("the", "a") for text in anchors])


def packed(rng, lengths, vocabulary):
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return rng.integers(1, vocabulary, cu_seqlens[-1]).astype(np.int32), cu_seqlens


@pytest.fixture
def encoder(tiny_folder):
    return TrainableEncoder(read_model_folder(tiny_folder))


def test_forward_is_the_encoders(tiny, encoder, rng):
    texts = ["a red car", "the sky is blue", "", "dog " * 20]
    tokens = tiny.pipeline.tokenize(texts)
    vectors = encoder(pack(tokens), np.arange(4)).detach().numpy()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, tiny.encode(texts, normalize_embeddings=True), atol=2e-6)


def test_gradients_are_those_of_transformers(tiny_folder, encoder, rng):
    """Without dropout, on padded batches of PyTorch's own BERT."""
    transformers = pytest.importorskip("transformers", reason="its BERT is the referee")
    model = transformers.BertModel.from_pretrained(tiny_folder, attn_implementation="eager").eval()
    ids, cu_seqlens = packed(rng, [3, 9, 1, 6], encoder.folder.description.vocab_size)
    target = torch.from_numpy(
        rng.standard_normal((4, encoder.folder.description.hidden_size))
    ).float()
    (encoder(Packed(ids, cu_seqlens), np.arange(4)) * target).sum().backward()

    padded, mask = np.zeros((4, 9), np.int64), np.zeros((4, 9), np.int64)
    for i in range(4):
        row = ids[cu_seqlens[i] : cu_seqlens[i + 1]]
        padded[i, : len(row)], mask[i, : len(row)] = row, 1
    mask = torch.from_numpy(mask)
    states = model(torch.from_numpy(padded), mask).last_hidden_state
    pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    (pooled * target).sum().backward()
    theirs = dict(model.named_parameters())
    wanted = {name: theirs[name.replace("/", ".")].grad for name in encoder._weights}
    # The gradient of the keys' bias is zero but for rounding: softmax does not see it.
    floor = 1e-6 * max(float(gradient.norm()) for gradient in wanted.values())
    assert len(wanted) > 20
    for name, gradient in wanted.items():
        error = float((encoder._weights[name].grad - gradient).norm())
        assert error <= 1e-5 * float(gradient.norm()) + floor, name


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("chunk_tokens", [1, 20, 64])
def test_cached_gradients_are_the_plain_ones(encoder, rng, dropout, chunk_tokens):
    """Masks of dropout are replayed, so this holds with it, too."""
    encoder.hidden_dropout = encoder.attention_dropout = dropout
    ids, cu_seqlens = packed(rng, rng.integers(1, 20, 32), encoder.folder.description.vocab_size)
    gradients = []
    for limit in (10**9, chunk_tokens):
        encoder.zero_grad()
        loss = accumulate_gradients(
            encoder, Packed(ids, cu_seqlens), lambda v: ranking_loss(v[:16], v[16:], 0.05, True),
            Draws(1, 2), limit,
        )  # fmt: skip
        gradients.append((loss, [p.grad.clone() for p in encoder.parameters()]))
    assert gradients[0][0] == pytest.approx(gradients[1][0], rel=1e-6)
    floor = 1e-6 * max(float(gradient.norm()) for gradient in gradients[0][1])
    for plain, cached in zip(gradients[0][1], gradients[1][1], strict=True):
        assert float((plain - cached).norm()) <= 1e-5 * float(plain.norm()) + floor


def test_dropout_does_something(encoder, rng):
    encoder.hidden_dropout = encoder.attention_dropout = 0.1
    ids, cu_seqlens = packed(rng, [8, 8], encoder.folder.description.vocab_size)
    numbers = np.arange(2)
    with torch.no_grad():
        plain = encoder(Packed(ids, cu_seqlens), numbers)
        one, again, other = (
            encoder(Packed(ids, cu_seqlens), numbers, Draws(seed, 0)) for seed in (1, 1, 2)
        )
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)
    assert not torch.allclose(one, plain)


def test_the_ranking_loss_is_sentence_transformers(rng):
    losses = pytest.importorskip(
        "sentence_transformers.sentence_transformer.losses", reason="the referee"
    )
    a, b = (torch.from_numpy(rng.standard_normal((9, 12))).float() for _ in range(2))
    theirs = losses.MultipleNegativesRankingLoss(model=None, scale=20.0)
    wanted = theirs.compute_loss_from_embeddings([a, b], None)
    assert float(ranking_loss(a, b, 0.05)) == pytest.approx(float(wanted), rel=1e-5)
    labels = torch.from_numpy(rng.uniform(0, 1, 9)).float()
    cosent = losses.CoSENTLoss(model=None, scale=20.0)
    wanted = cosent.compute_loss_from_embeddings([a, b], labels)
    assert float(cosent_loss(a, b, labels, 0.05)) == pytest.approx(float(wanted), rel=1e-5)


def test_groups_of_many_equal_anchors_take_no_time():
    n = 200_000
    start = time.perf_counter()
    group, others = same_text_groups(["a", "b"] * (n // 2), [str(i) for i in range(n)], n)
    assert time.perf_counter() - start < 20
    assert len(set(others)) == 2
    np.testing.assert_array_equal(group, others)


def test_equal_texts_are_no_negatives():
    anchors = ["p", "q", "r", "p"]
    assert same_text_groups(["p", "q"], ["1", "2"], 2) is None
    group, others = same_text_groups(anchors, ["1", "2", "1", "4", "2"], 4)
    # Answer 1 serves p and r, and 4 serves p too; the negative 2 equals the answer of q.
    assert group[0] == group[2] == group[3] == others[0] == others[3]
    assert group[1] == others[1] == others[4] != group[0]
    # y joins b's group and with it x, which z of a joins later.
    assert len(set(same_text_groups(["a", "b", "b", "a"], ["x", "y", "x", "z"], 4)[1])) == 1
    a = torch.nn.functional.normalize(torch.eye(4, 5) + 0.1)
    masked = ranking_loss(a, torch.cat([a, a[:1]]), 0.05, groups=(group, others))
    plain = ranking_loss(a, torch.cat([a, a[:1]]), 0.05)
    assert float(masked) < float(plain)


def same_weights(first, second):
    a, b = (TrainableEncoder(read_model_folder(path)).state_dict() for path in (first, second))
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_it_learns_and_loads_everywhere(tiny_folder, pairs, tmp_path):
    seen = []
    result = finetune(
        tiny_folder, pairs, tmp_path / "out",
        TrainingConfig(epochs=4, batch_size=16, learning_rate=1e-3, evaluate_every=4),
        judge_of(pairs), lambda *step: seen.append(step),
    )  # fmt: skip
    assert len(result.losses) == len(seen) == 16
    assert np.mean(result.losses[-4:]) < np.mean(result.losses[:4])
    scores = dict(result.evaluations)
    assert scores[result.best_step] == max(scores.values()) > scores[0]
    ours = SentenceTransformer(tmp_path / "out")
    assert (
        rank_of_answers(ours.encode, pairs).mean()
        < rank_of_answers(SentenceTransformer(tiny_folder).encode, pairs).mean()
    )
    theirs = pytest.importorskip("sentence_transformers", reason="loads the same folder")
    other = theirs.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    np.testing.assert_allclose(
        ours.encode(pairs.anchors[:5]), other.encode(pairs.anchors[:5]), atol=1e-5
    )
    assert not (tmp_path / "out.training").exists()


class Killed(Exception):
    pass


@pytest.mark.parametrize("last_step", [3, 8, 11])
def test_a_resumed_training_has_the_same_bits(tiny_folder, pairs, tmp_path, last_step):
    config = TrainingConfig(
        dropout=0.1,
        epochs=2,
        batch_size=10,
        learning_rate=1e-3,
        checkpoint_every=2,
        evaluate_every=3,
    )
    whole = finetune(tiny_folder, pairs, tmp_path / "whole", config, judge_of(pairs))

    def stop(step, total, loss, score):
        if step == last_step:
            raise Killed

    with pytest.raises(Killed):
        finetune(tiny_folder, pairs, tmp_path / "parts", config, judge_of(pairs), stop)
    assert not (tmp_path / "parts").exists()
    result = finetune(tiny_folder, pairs, tmp_path / "parts", config, judge_of(pairs))
    assert result.losses == whole.losses
    assert result.evaluations == whole.evaluations
    same_weights(tmp_path / "whole", tmp_path / "parts")


def test_kill_nine_in_the_middle(tiny_folder, tmp_path):
    lines = tmp_path / "pairs.jsonl"
    rows = [{"question": f"the {a} {b}", "answer": f"a {a} is {b}"} for a in COLORS for b in COLORS]
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "minifuse.cli", "finetune", "-m", str(tiny_folder), "--pairs",
               str(lines), "--batch-size", "4", "--epochs", "10", "--no-progress", "-o"]  # fmt: skip
    run = subprocess.Popen([*command, str(tmp_path / "killed")])
    checkpoint = tmp_path / "killed.training" / "checkpoint.pt"
    deadline = time.time() + 300  # ends at once where nothing is written any more
    while not checkpoint.exists() and time.time() < deadline:
        time.sleep(0.01)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    assert checkpoint.exists()
    assert not (tmp_path / "killed").exists()
    for name in ("killed", "whole"):
        subprocess.run([*command, str(tmp_path / name)], check=True, capture_output=True)
    same_weights(tmp_path / "killed", tmp_path / "whole")


def test_patience_keeps_the_best(tiny_folder, pairs, tmp_path):
    scores = iter([0.5, 0.7, 0.6, 0.65, 0.9])
    result = finetune(
        tiny_folder, pairs, tmp_path / "out",
        TrainingConfig(batch_size=4, evaluate_every=1, patience=2), lambda encode: next(scores),
    )  # fmt: skip
    assert (result.best_step, len(result.losses)) == (1, 3)


def test_hard_negatives_and_scores(tiny_folder, pairs, tmp_path, rng):
    with_negatives = TrainingPairs(pairs.anchors, pairs.positives, pairs.positives[::-1])
    scored = TrainingPairs(pairs.anchors, pairs.positives, scores=rng.uniform(0, 5, 64).tolist())
    for name, one in (("negatives", with_negatives), ("scores", scored)):
        result = finetune(tiny_folder, one, tmp_path / name, TrainingConfig(batch_size=16))
        assert np.isfinite(result.losses).all()


def test_a_diverging_loss_is_said(tiny_folder, pairs, tmp_path):
    with pytest.raises(FloatingPointError, match=r"the training diverges; try a smaller"):
        finetune(_with_nan(tiny_folder, tmp_path), pairs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_diverging_loss_is_one_line_of_the_command(tiny_folder, tmp_path, capsys):
    lines = tmp_path / "pairs.tsv"
    lines.write_text("question\tanswer\n" + "".join(f"the {c}\ta {c}\n" for c in COLORS))
    broken = str(_with_nan(tiny_folder, tmp_path))
    arguments = ["finetune", "-m", broken, "--pairs", str(lines), "-o", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "the training diverges" in capsys.readouterr().err


def _with_nan(folder, tmp_path):
    import shutil

    from minifuse.files.safetensors_file import SafetensorsFile, write_safetensors

    copy = tmp_path / "nan"
    shutil.copytree(folder, copy)
    with SafetensorsFile(copy / "model.safetensors") as file:
        tensors = {name: file.read(name) for name in file.names() if "ids" not in name}
    name = next(name for name in tensors if name.endswith("output.dense.bias"))
    tensors[name] = tensors[name] * np.nan
    write_safetensors(copy / "model.safetensors", tensors, {})
    return copy


def test_files_of_pairs(tmp_path):
    def read(name, text):
        (tmp_path / name).write_text(text)
        return read_training_pairs(tmp_path / name)

    assert len(read("a.tsv", "question\tanswer\nq\ta\n")) == 1
    assert read("b.csv", "anchor,positive,negative\na,p,n\n").negatives == ["n"]
    assert read("c.tsv", "label\tquestion1\tquestion2\n1\ta\tb\n0\tc\td\n").anchors == ["a"]
    text = '{"question1": "a", "question2": "b", "label": true}\n'
    assert read("q.jsonl", text + text.replace("true", "false")).anchors == ["a"]
    assert read("d.jsonl", '{"query": "q", "document": "d"}\n').positives == ["d"]
    assert read("e.tsv", "score\tsentence1\tsentence2\n1\ta\tb\n2\tc\td\n").scores == [1, 2]
    texts = read("f.tsv", "label\ttext\n" + "".join(f"{i % 2}\ttext {i}\n" for i in range(8)))
    for a, b in zip(texts.anchors, texts.positives, strict=True):
        assert a != b
        assert int(a[-1]) % 2 == int(b[-1]) % 2
    for name, text, message in (
        ("g.tsv", "a\tb\n1\t2\n", "the columns are a, b; wanted two of anchor, positive"),
        ("h.tsv", "label\ttext\nx\ta\nx\tb\n", "1 label, wanted at least two"),
        ("i.tsv", "score\tsentence1\tsentence2\n1\ta\tb\n1\tc\td\n", "all scores are 1"),
        ("j.tsv", "score\tsentence1\tsentence2\nx\ta\tb\n", "line 2: score is 'x'"),
        ("k.tsv", "label\tquestion1\tquestion2\n0\ta\tb\n", "no pair has the label 1"),
        ("n.tsv", "label\tquestion1\tquestion2\n1\ta\tb\n2\tc\td\n", "line 3: label is '2'"),
        ("o.tsv", "score\tsentence1\tsentence2\nnan\ta\tb\n", "line 2: score is 'nan'"),
        ("p.tsv", "score\tsentence1\tsentence2\n1e999\ta\tb\n", "line 2: score is '1e999'"),
        ("l.jsonl", "", "no pairs"),
        ("m.jsonl", '{"question": "q", "answer": null}\n', "line 1: 'answer' is no string"),
    ):
        with pytest.raises(ValueError, match=message):
            read(name, text)


def test_what_is_refused(tiny_folder, pairs, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    with pytest.raises(FileExistsError, match="give a new folder"):
        finetune(tiny_folder, pairs, tmp_path / "full")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        finetune(tiny_folder, pairs, tmp_path / "no" / "where")
    for arguments, message in (
        ({"batch_size": 0}, "batch_size is 0, wanted a whole number 1"),
        ({"batch_size": 8.5}, "batch_size is 8.5, wanted a whole number 1"),
        ({"seed": -1}, "seed is -1, wanted a whole number 0"),
        ({"max_seq_length": 0}, "max_seq_length is 0, wanted a whole number 1"),
        ({"temperature": "1"}, "temperature is '1'"),
        ({"temperature": -1}, "temperature is -1"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"num_threads": -1}, "num_threads is -1, wanted a whole number 1..1024"),
    ):
        with pytest.raises(ValueError, match=message):
            TrainingConfig(**arguments)
    config = TrainingConfig(batch_size=8, checkpoint_every=1)

    def stop(*_):
        raise Killed

    with pytest.raises(Killed):
        finetune(tiny_folder, pairs, tmp_path / "out", config, on_step=stop)
    other = TrainingConfig(batch_size=8, checkpoint_every=1, seed=7)
    with pytest.raises(ValueError, match="of a training with another config"):
        finetune(tiny_folder, pairs, tmp_path / "out", other)
    with pytest.raises(ValueError, match="of a training with another evaluation"):
        finetune(tiny_folder, pairs, tmp_path / "out", config, judge_of(pairs))


def test_the_command(tiny_folder, tmp_path, capsys):
    lines = tmp_path / "pairs.tsv"
    lines.write_text("q\ta\n" + "".join(f"the {c} is\ta {c}\n" for c in COLORS * 2))
    arguments = ["finetune", "-m", str(tiny_folder), "--pairs", str(lines), "--columns", "q,a",
                 "--batch-size", "4", "--eval", str(lines), "-o", str(tmp_path / "out"),
                 "--plot", str(tmp_path / "loss.png")]  # fmt: skip
    assert main(arguments) == 0
    assert "16 pairs, 4 steps" in capsys.readouterr().out
    assert (tmp_path / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert main(arguments) == 2
    assert "give a new folder" in capsys.readouterr().err
