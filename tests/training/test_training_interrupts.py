"""Training that is interrupted or damaged keeps whole updates; the trainer reads text as the model does."""

from __future__ import annotations

import os
import signal
import threading

import numpy as np
import pytest

from minifuse import SentenceTransformer


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_ctrl_c_waits_for_the_end_of_an_update(name):
    """So do the signals that the command line treats like it."""
    number = getattr(signal, name)
    pytest.importorskip("torch")
    from minifuse.training.loop import _deferred_interrupt

    previous = signal.signal(number, signal.default_int_handler)
    done = []
    try:
        with pytest.raises(KeyboardInterrupt), _deferred_interrupt():  # noqa: PT012
            os.kill(os.getpid(), number)
            for _ in range(1000):
                pass
            done.append("weights")
            done.append("step")
        assert done == ["weights", "step"]
        assert signal.getsignal(number) is signal.default_int_handler
        worker = []
        thread = threading.Thread(target=lambda: worker.append(_deferred_interrupt().__enter__()))
        thread.start()
        thread.join()
        assert worker == [None]
    finally:
        signal.signal(number, previous)


def test_the_trainer_lowers_text_as_the_model_does(tmp_path, tiny_folder):
    pytest.importorskip("torch")
    import json
    import shutil

    from minifuse.training import TrainingConfig, read_training_pairs
    from minifuse.training.trainer import _Contrastive

    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    state = json.loads((folder / "tokenizer.json").read_text())
    state["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(state))
    settings = {"max_seq_length": 32, "do_lower_case": True}
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("question\tanswer\nThe SKY\tis BLUE\nA dog\truns\n")
    trainer = _Contrastive(
        folder, read_training_pairs(pairs), tmp_path / "out", TrainingConfig(), None
    )
    ours = SentenceTransformer(folder).encode(["The SKY"], normalize_embeddings=True)
    np.testing.assert_allclose(trainer.encode(["The SKY"]), ours, atol=1e-5)


def test_an_interrupt_during_an_evaluation_changes_nothing(tmp_path, tiny_folder):
    """The run that goes on evaluates what was interrupted, and ends with the same weights."""
    pytest.importorskip("torch")
    from minifuse.files.safetensors_file import SafetensorsFile
    from minifuse.training import TrainingConfig, finetune, read_training_pairs

    path = tmp_path / "pairs.tsv"
    rows = [f"the sky {i}\tis blue {i}" for i in range(12)]
    path.write_text("question\tanswer\n" + "\n".join(rows) + "\n")
    pairs = read_training_pairs(path)
    config = TrainingConfig(epochs=2, batch_size=4, evaluate_every=2, learning_rate=1e-3)
    scores = [0.1, 0.9, 0.3, 0.2]  # the best is that of step 2

    def judge(interrupted: bool):
        asked = []

        def evaluate(encode):
            asked.append(1)
            if interrupted and len(asked) == 2:
                raise KeyboardInterrupt
            return scores[len(asked) - 1 - (interrupted and len(asked) > 2)]

        return evaluate

    whole = finetune(tiny_folder, pairs, tmp_path / "whole", config, judge(False))
    evaluate = judge(True)
    with pytest.raises(KeyboardInterrupt):
        finetune(tiny_folder, pairs, tmp_path / "resumed", config, evaluate)
    resumed = finetune(tiny_folder, pairs, tmp_path / "resumed", config, evaluate)
    assert resumed.evaluations == whole.evaluations
    assert resumed.best_step == whole.best_step == 2
    with (
        SafetensorsFile(tmp_path / "whole" / "model.safetensors") as a,
        SafetensorsFile(tmp_path / "resumed" / "model.safetensors") as b,
    ):
        for name in a.names():
            if name in b.names() and "position_ids" not in name:
                np.testing.assert_array_equal(a.read(name), b.read(name))


def test_a_damaged_checkpoint_is_named(tmp_path, tiny_folder):
    pytest.importorskip("torch")
    from minifuse.training import finetune, read_training_pairs

    path = tmp_path / "pairs.tsv"
    path.write_text("question\tanswer\na\tb\nc\td\n")
    (tmp_path / "out.training").mkdir()
    for content in (b"", b"x" * 100, b"\x80\x02."):
        (tmp_path / "out.training" / "checkpoint.pt").write_bytes(content)
        with pytest.raises(ValueError, match=r"checkpoint\.pt: the checkpoint is damaged"):
            finetune(tiny_folder, read_training_pairs(path), tmp_path / "out")
