"""Token ids equal those of Hugging Face tokenizers for the same file, cut at the same place."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from minifuse.tokens import tokenization
from minifuse.tokens.tokenization import TextTokenizer


@pytest.fixture(scope="module")
def pair(minilm_folder):
    """Ours and the referee: the package itself with its own truncation."""
    return TextTokenizer.from_folder(minilm_folder), Tokenizer.from_file(
        str(minilm_folder / "tokenizer.json")
    )


def agree(pair, texts, limit):
    ours, theirs = pair
    theirs.no_padding()
    theirs.enable_truncation(limit)
    tokens = ours.encode(texts, limit)
    offsets = tokens.cu_seqlens()
    for i, text in enumerate(texts):
        ids = tokens.ids[offsets[i] : offsets[i + 1]].tolist()
        assert ids == theirs.encode(text).ids, repr(text[:80])
    theirs.no_truncation()
    full = [len(theirs.encode(text).ids) for text in texts]
    assert tokens.truncated.tolist() == [n > limit for n in full]


HARD = [
    "", " ", "\0", "a\0b", "\t\n\r", "[CLS] [SEP] [MASK]", "ümlaut ÄÖ", "naïve café", "日本語 text",
    "a" * 101, "a" * 5000, "\u200b\u200d", "e\u0301" * 40, "👩‍👩‍👧 family", "ＦＵＬＬ ｗｉｄｔｈ", "\ufeffbom",
    "x" * 99 + " " + "y" * 300, "...!!!???", "don't can't", "1,234.56", "İstanbul ı", "ß ẞ", "\u0345",
]  # fmt: skip


@pytest.mark.parametrize("limit", [2, 3, 16, 256, 512])
def test_hard_texts(pair, limit):
    agree(pair, HARD, limit)


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(st.text(max_size=60), min_size=1, max_size=4), limit=st.integers(2, 40))
def test_any_text(pair, texts, limit):
    agree(pair, texts, limit)


WORDY = st.lists(
    st.text(alphabet="ab Z9.,\n\t\0é日\u0301\u200b[SEP]", max_size=30), min_size=20, max_size=60
).map(" ".join)


@settings(max_examples=100, deadline=None)
@given(text=WORDY, limit=st.integers(2, 6))
def test_cutting_long_texts_changes_no_id(pair, text, limit):
    agree(pair, [text], limit)


def test_ten_megabytes(pair):
    ours, _ = pair
    text = "The quick brown fox, 7 times. " * 350_000
    tokens = ours.encode([text], 256)
    assert tokens.seqlens.tolist() == [256]
    assert tokens.truncated.all()
    agree(pair, [text[:200_000]], 256)


def test_every_code_point_of_the_basic_plane(pair):
    points = [chr(c) for c in range(0x10000) if not 0xD800 <= c < 0xE000]
    agree(pair, ["".join(points[i : i + 64]) for i in range(0, len(points), 64)], 512)


def test_lone_surrogate_is_named(pair):
    with pytest.raises(ValueError, match=r"sentences\[1\] holds a lone surrogate at character 2"):
        pair[0].encode(["fine", "ab\ud800"], 16)


def test_vocab_txt_alone_gives_the_same_ids(minilm_folder, tmp_path, pair):
    for name in ("vocab.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((minilm_folder / name).read_bytes())
    agree((TextTokenizer.from_folder(tmp_path), pair[1]), HARD, 64)


def test_sorting_keeps_every_sentence_whole(pair):
    ours, _ = pair
    tokens = ours.encode(["a b c", "", "a", "a b c d e"], 16)
    ordered, order = tokens.sorted_by_length()
    assert order.tolist() == [3, 0, 2, 1]
    before, after = tokens.cu_seqlens(), ordered.cu_seqlens()
    for place, index in enumerate(order):
        np.testing.assert_array_equal(
            ordered.ids[after[place] : after[place + 1]],
            tokens.ids[before[index] : before[index + 1]],
        )


def test_naughty_strings(pair, data):
    agree(pair, json.loads((data / "tokenizer" / "blns.json").read_text(encoding="utf-8")), 256)


def test_many_languages(pair, data):
    with open(data / "tokenizer" / "tatoeba_sample.tsv", encoding="utf-8", newline="") as file:
        texts = [row[1] for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    assert len(texts) > 10_000
    agree(pair, texts[::4], 32)


def test_long_texts(pair, data):
    texts = (data / "workloads" / "long_500.txt").read_text(encoding="utf-8").splitlines()
    agree(pair, texts, 256)
    agree(pair, texts, 512)


class Spy:
    """A tokenizer that notes how many texts each call brings."""

    def __init__(self, backend):
        self.backend, self.sizes = backend, []

    def encode_batch_fast(self, texts, **settings):
        self.sizes.append(len(texts))
        return self.backend.encode_batch_fast(texts, **settings)


@pytest.mark.parametrize(
    ("num_threads", "sizes"), [(None, [7]), (8, [7]), (16, [7]), (3, [3, 3, 1]), (1, [1] * 7)]
)
def test_threads_are_bounded_by_the_texts_of_a_call(pair, monkeypatch, num_threads, sizes):
    monkeypatch.setattr(tokenization, "_num_cpus", lambda: 8)
    """The package has a pool of its own, whose threads it takes for as many texts."""
    ours = TextTokenizer(pair[0].backend)
    texts = [f"sentence number {i}" * (i + 1) for i in range(7)]
    wanted = ours.encode(texts, 16)
    spy = Spy(ours.hand_out())
    monkeypatch.setitem(ours.__dict__, "_backend", spy)
    tokens = ours.encode(texts, 16, num_threads)
    assert spy.sizes == sizes
    np.testing.assert_array_equal(tokens.ids, wanted.ids)
    np.testing.assert_array_equal(tokens.truncated, wanted.truncated)


def test_a_model_passes_its_threads_on(tiny, monkeypatch):
    seen = []

    class Spy:
        def encode(self, sentences, **settings):
            seen.append(settings["num_threads"])
            return native.encoder.encode(sentences, **settings)

    native = tiny.pipeline.tokenizer.native
    monkeypatch.setattr(tiny.pipeline.tokenizer, "native", native._replace(encoder=Spy()))
    tiny.encode(["a dog", "a cat", "the mat"], num_threads=2)
    assert seen == [2]
