"""model.tokenizer answers as the fast tokenizer of transformers does for the same folder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import normalizers
from transformers import AutoTokenizer

from minifuse import SentenceTransformer

TEXTS = ["The sky is blue.", "A lazy dog jumps over the fence, doesn't it?", "", "naïve 漢字 zzyzx"]
CALLS = [
    {},
    {"add_special_tokens": False},
    {"truncation": True, "max_length": 6},
    {"max_length": 6, "truncation": "do_not_truncate"},
    {"padding": True},
    {"padding": "max_length", "max_length": 20, "truncation": True},
    {"padding": True, "pad_to_multiple_of": 8, "return_length": True},
    {"return_special_tokens_mask": True, "return_offsets_mapping": True},
    {"return_token_type_ids": False, "return_attention_mask": False},
]


@pytest.fixture(scope="module")
def theirs(minilm_folder):
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder)
    tokenizer.model_max_length = 256
    return tokenizer


@pytest.fixture(scope="module")
def ours(minilm):
    return minilm.tokenizer


@pytest.mark.parametrize("call", CALLS, ids=str)
@pytest.mark.parametrize("inputs", [
    (TEXTS,), (TEXTS[1],), (TEXTS, TEXTS[::-1]), (TEXTS[1], TEXTS[0]),
    ([(TEXTS[0], TEXTS[1]), (TEXTS[1], TEXTS[2])],),
], ids=["texts", "text", "two lists", "two texts", "pairs"])  # fmt: skip
def test_calls(ours, theirs, inputs, call):
    expected = theirs(*inputs, **call)
    result = ours(*inputs, **call)
    assert set(result) == set(expected)
    for key, value in expected.items():
        assert result[key] == value, key
        assert getattr(result, key) == value


@pytest.mark.parametrize("strategy", ["only_first", "only_second", "longest_first"])
@pytest.mark.parametrize("limit", [9, 12, 15, 30])
def test_truncation_of_pairs(ours, theirs, strategy, limit):
    pairs = [("one two three four five", "six"), ("six", "one two three four five six seven")]
    pairs.append(("one two three four", "five six seven eight nine"))
    for pair in pairs:
        asked = {"truncation": strategy, "max_length": limit}
        has_room = {"only_first": limit - 3 - len(ours.tokenize(pair[1])),
                    "only_second": limit - 3 - len(ours.tokenize(pair[0]))}  # fmt: skip
        if has_room.get(strategy, 0) < 0 and len(ours(*pair)["input_ids"]) > limit:
            with pytest.raises(ValueError, match="no room"):
                ours(*pair, **asked)
        else:
            assert ours.encode(*pair, **asked) == theirs.encode(*pair, **asked), (pair, asked)


def test_tensors_and_arrays(ours, theirs):
    expected = theirs(TEXTS, padding=True, return_tensors="pt")
    for kind, plain in (("pt", lambda x: x.numpy()), ("np", lambda x: x)):
        result = ours(TEXTS, padding=True, return_tensors=kind)
        for key, value in expected.items():
            np.testing.assert_array_equal(plain(result[key]), value.numpy())
    assert isinstance(ours(TEXTS[0], return_tensors="pt").to("cpu").input_ids, torch.Tensor)
    assert ours(TEXTS[0], return_tensors="np").input_ids.shape[0] == 1
    with pytest.raises(ValueError, match="padding=True"):
        ours(TEXTS, return_tensors="np")


def test_words_and_ids(ours, theirs):
    for text in TEXTS:
        assert ours.tokenize(text) == theirs.tokenize(text)
        ids = theirs.encode(text)
        assert ours.encode(text) == ids
        assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)
        for skips in (False, True):
            asked = {"skip_special_tokens": skips}
            assert ours.decode(ids, **asked) == theirs.decode(ids, **asked)
            assert ours.convert_ids_to_tokens(ids, **asked) == theirs.convert_ids_to_tokens(
                ids, **asked
            )
    ids = theirs(TEXTS)["input_ids"]
    assert ours.batch_decode(ids) == theirs.batch_decode(ids)
    assert ours.decode(np.array(ids[0])) == theirs.decode(ids[0])
    tokens = ["sky", "[SEP]", "no such token"]
    assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens)
    assert ours.convert_tokens_to_ids("sky") == theirs.convert_tokens_to_ids("sky")


def test_what_it_knows_of_itself(ours, theirs):
    for name in ("pad_token", "pad_token_id", "cls_token", "cls_token_id", "sep_token",
                 "sep_token_id", "unk_token", "unk_token_id", "mask_token", "mask_token_id",
                 "bos_token", "vocab_size", "model_max_length", "padding_side", "is_fast"):  # fmt: skip
        assert getattr(ours, name) == getattr(theirs, name), name
    assert sorted(ours.all_special_tokens) == sorted(theirs.all_special_tokens)
    assert sorted(ours.all_special_ids) == sorted(theirs.all_special_ids)
    assert ours.get_vocab() == ours.vocab == theirs.get_vocab()
    assert len(ours) == len(theirs)
    for pair in (False, True):
        assert ours.num_special_tokens_to_add(pair) == theirs.num_special_tokens_to_add(pair)


def test_wishes_take_effect_or_are_refused(minilm_folder):
    model = SentenceTransformer(minilm_folder)
    model.tokenizer.model_max_length = 64
    assert model.max_seq_length == model.tokenizer.model_max_length == 64
    with pytest.raises(ValueError, match=r"1\.\.512"):
        model.tokenizer.model_max_length = 10**9
    model.tokenizer.padding_side = "right"
    with pytest.raises(AttributeError, match="padding_side"):
        model.tokenizer.padding_side = "left"
    with pytest.raises(AttributeError, match="no 'chat_template'"):
        model.tokenizer.chat_template = "x"
    with pytest.raises(AttributeError, match="no 'pad'"):
        model.tokenizer.pad({})
    before = model.encode("The Sky")
    model.tokenizer.normalizer = normalizers.NFC()
    assert not np.array_equal(model.encode("The Sky"), before)
    assert model.tokenizer.token_to_id("sky") == model.tokenizer.convert_tokens_to_ids("sky")


@pytest.mark.parametrize(("arguments", "error", "message"), [
    ({"text": None}, TypeError, "iterable"),
    ({"text": [1]}, TypeError, "wanted a string"),
    ({"text": "a", "text_pair": ["b"]}, TypeError, "two strings"),
    ({"text": ["a", "b"], "text_pair": ["b"]}, ValueError, "as many"),
    ({"text": "a", "padding": "left"}, ValueError, "padding"),
    ({"text": "a", "truncation": "all"}, ValueError, "truncation"),
    ({"text": "a", "return_tensors": "tf"}, ValueError, "return_tensors"),
    ({"text": "a b c d", "max_length": 1}, ValueError, "no room"),
])  # fmt: skip
def test_wrong_arguments(ours, arguments, error, message):
    with pytest.raises(error, match=message):
        ours(**arguments)
