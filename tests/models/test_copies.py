"""Copies of a model are the same model, and codes and neighbours mean the same in every call."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import shutil

import numpy as np
import pytest
from tokenizers import Tokenizer

from minifuse import SentenceTransformer, util


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("by", [lambda m: pickle.loads(pickle.dumps(m)), copy.deepcopy])
def test_a_copied_model_is_the_same(tiny_folder, dtype, by):
    model = SentenceTransformer(tiny_folder, dtype=dtype, num_threads=2)
    model.prompts["extra"] = "say: "
    model.default_prompt_name = "extra"
    model.truncate_dim = 8
    model.max_seq_length = 12
    model.similarity_fn_name = "dot"
    model.set_pooling_include_prompt(False)
    other = by(model)
    assert other.dtype == dtype
    for name in ("prompts", "default_prompt_name", "truncate_dim", "max_seq_length",
                 "similarity_fn_name", "num_threads", "name", "device"):  # fmt: skip
        assert getattr(other, name) == getattr(model, name), name
    texts = ["the sky is blue", "a lazy dog jump over"]
    np.testing.assert_array_equal(other.encode(texts), model.encode(texts))


def test_a_replaced_tokenizer_travels(tiny_folder):
    model = SentenceTransformer(tiny_folder)
    state = model.tokenizer.to_str()
    lowered = state.replace('"lowercase":true', '"lowercase":false')
    assert lowered != state
    model.tokenizer = Tokenizer.from_str(lowered)
    other = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(other.encode("The SKY"), model.encode("The SKY"))
    assert not np.array_equal(
        SentenceTransformer(tiny_folder).encode("The SKY"), model.encode("The SKY")
    )


def test_a_model_of_a_relative_path_travels(tiny_folder, tmp_path, monkeypatch):
    import shutil

    shutil.copytree(tiny_folder, tmp_path / "all-MiniLM-L6-v2")
    monkeypatch.chdir(tmp_path)
    model = SentenceTransformer("all-MiniLM-L6-v2")
    data = pickle.dumps(model)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    np.testing.assert_array_equal(pickle.loads(data).encode("a dog"), model.encode("a dog"))
    shutil.rmtree(tmp_path / "all-MiniLM-L6-v2")
    with pytest.raises(FileNotFoundError, match="is gone"):
        pickle.loads(data)


def test_a_tokenizer_changed_in_place_travels(tiny_folder):
    model = SentenceTransformer(tiny_folder)
    model.tokenizer.add_tokens(["sky"])
    size = model.tokenizer.get_vocab_size()
    assert pickle.loads(pickle.dumps(model)).tokenizer.get_vocab_size() == size


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_codes_of_one_corpus_can_be_compared(tiny, precision, caplog):
    texts = [f"a dog {i}" for i in range(30)]
    vectors = tiny.encode(texts)
    ranges = np.stack([vectors.min(0), vectors.max(0)])
    together = tiny.encode(texts, precision=precision, ranges=ranges)
    for i in (0, 13, 29):
        one = tiny.encode(texts[i], precision=precision, ranges=ranges)
        np.testing.assert_array_equal(one, together[i])
    windows = tiny.encode_iter(iter(texts), window=7, precision=precision, ranges=ranges)
    np.testing.assert_array_equal(np.stack(list(windows)), together)
    with pytest.raises(ValueError, match="pass ranges="):
        list(tiny.encode_iter(iter(texts), precision=precision))
    with caplog.at_level(logging.WARNING):
        tiny.encode(texts, precision=precision)
    assert "pass ranges=" in caplog.text
    with pytest.raises(ValueError, match=r"ranges has shape \(2, 3\)"):
        tiny.encode(texts, precision=precision, ranges=np.zeros((2, 3)))
    with pytest.raises(ValueError, match="ranges are given, but precision is"):
        tiny.encode(texts, ranges=ranges)


def test_a_neighbour_that_is_no_number():
    corpus = np.eye(3, dtype=np.float32)
    bad = corpus.copy()
    bad[1, 0] = np.nan
    for call in (
        lambda: util.semantic_search(bad, corpus),
        lambda: util.semantic_search(corpus, bad),
        lambda: util.paraphrase_mining_embeddings(bad),
        lambda: util.community_detection(np.repeat(bad, 10, 0)),
    ):
        with pytest.raises(ValueError, match=r"\[1\d?\] holds a NaN"):
            call()
    huge = np.full((2, 4), 3e38, np.float32) * np.array([[1], [-1]], np.float32)
    hits = util.semantic_search(huge, np.concatenate([huge, -huge]), score_function=util.dot_score)
    assert all(hit["corpus_id"] >= 0 for row in hits for hit in row)


def test_no_copy_is_made_of_other_weights(tiny_folder, tmp_path):
    """A model that was trained again in the same place is another one."""
    folder = tmp_path / "m"
    shutil.copytree(tiny_folder, folder)
    model = SentenceTransformer(folder)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes() + b" ")
    for copied in (copy.deepcopy, pickle.dumps, lambda one: one.save(tmp_path / "copy")):
        with pytest.raises(ValueError, match="the weights have changed since the model was loaded"):
            copied(model)
    assert not (tmp_path / "copy").exists()


def test_other_files_of_weights_are_no_change(tiny_folder, tmp_path):
    """Another program may put those of another engine beside them."""
    folder = tmp_path / "m"
    shutil.copytree(tiny_folder, folder)
    model = SentenceTransformer(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    (folder / "checkpoint-500").mkdir()
    (folder / "checkpoint-500" / "model.safetensors").write_bytes(b"")
    expected = model.encode("a dog")
    np.testing.assert_array_equal(copy.deepcopy(model).encode("a dog"), expected)


def test_a_tokenizer_of_another_case_is_saved(tiny_folder, tmp_path):
    """tokenizer_config.json, which goes before tokenizer.json, is written as well."""
    model = SentenceTransformer(tiny_folder)
    state = json.loads(model.tokenizer.to_str())
    state["normalizer"]["lowercase"] = False
    model.tokenizer = Tokenizer.from_str(json.dumps(state))
    expected = model.encode("The SKY is blue")
    model.save(tmp_path / "saved")
    again = SentenceTransformer(tmp_path / "saved")
    np.testing.assert_array_equal(again.encode("The SKY is blue"), expected)
