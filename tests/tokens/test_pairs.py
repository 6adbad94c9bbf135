"""Pairs of texts become the ids and types that the tokenizers package gives, cut as it cuts them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors

from minifuse.tokens.pairs import PairLayout, shared_lengths
from minifuse.tokens.tokenization import TextTokenizer

WORDS = st.lists(st.sampled_from(["the", "sky", "dogs", "x", "日", "don't"]), max_size=24).map(
    " ".join
)


@pytest.fixture(scope="module")
def both(minilm_folder):
    """Ours with token types, and the referee with its own truncation."""
    ours = TextTokenizer.from_folder(minilm_folder, has_token_types=True)
    theirs = Tokenizer.from_file(str(minilm_folder / "tokenizer.json"))
    theirs.no_padding()
    return ours, theirs


def agree(both, texts, limit):
    ours, theirs = both
    theirs.enable_truncation(limit, strategy="longest_first")
    tokens = ours.encode(texts, limit)
    offsets = tokens.cu_seqlens()[1:-1]
    encodings = [theirs.encode(*([text] if isinstance(text, str) else text)) for text in texts]
    assert [part.tolist() for part in np.split(tokens.ids, offsets)] == [e.ids for e in encodings]
    types = [part.tolist() for part in np.split(tokens.types(), offsets)]
    assert types == [encoding.type_ids for encoding in encodings]
    theirs.no_truncation()
    whole = [theirs.encode(*([text] if isinstance(text, str) else text)) for text in texts]
    assert tokens.truncated.tolist() == [len(encoding.ids) > limit for encoding in whole]


@settings(max_examples=300, deadline=None)
@given(pairs=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4), limit=st.integers(3, 40))
def test_any_pair(both, pairs, limit):
    agree(both, pairs, limit)


def test_texts_and_pairs_together(both):
    agree(both, ["the sky", ("dogs", "the sky is blue " * 9), ("", ""), "x " * 30, ("x", "x")], 16)


@pytest.mark.parametrize("limit", [16, 17])
@pytest.mark.parametrize("lengths", [(300, 301), (301, 300), (300, 40), (40, 300), (300, 300)])
def test_texts_that_are_shortened_before_they_are_counted(both, limit, lengths):
    agree(both, [tuple("sky " * length for length in lengths)], limit)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
def test_shared_lengths_fill_the_room(first, second, room):
    kept = shared_lengths(first, second, room)
    assert kept[0] <= first
    assert kept[1] <= second
    assert sum(kept) == min(first + second, room)
    assert min(kept) >= min(first, second, room // 2)


def test_no_room_for_the_special_tokens(both):
    with pytest.raises(ValueError, match="no room for the 3 special tokens"):
        both[0].encode([("a", "b")], 2)


def test_a_tokenizer_without_a_pair_is_refused():
    class OneText:
        def encode(self, first, second):
            return type("Encoding", (), {"ids": [1], "type_ids": [0], "sequence_ids": [0]})

    with pytest.raises(ValueError, match="joins no two texts"):
        PairLayout.of(OneText())


def test_lone_surrogates_are_named_by_their_pair(both):
    with pytest.raises(ValueError, match=r"sentences\[2\] holds a lone surrogate at character 1"):
        both[0].encode([("a", "b"), ("a", "b"), ("c", "d\ud800")], 20)


def test_a_tokenizer_may_change(both):
    ours = TextTokenizer(both[0].backend)
    before = ours.encode([("a", "b")], 20).ids.tolist()
    ours.backend.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B")
    assert ours.encode([("a", "b")], 20).ids.tolist() == before[1:2] + before[3:4]


def test_wrong_elements_are_named(tiny):
    for wrong in (("a",), ("a", 3), ["a", "b", "c"], 5):
        with pytest.raises(TypeError, match=r"sentences\[1\] is a .* wanted a string or a pair"):
            tiny.encode(["a", wrong])
