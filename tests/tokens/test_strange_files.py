"""Files that a tokenizer.json may be, though hardly anybody writes them: the ids are the package's
all the same, and none of them crashes, hangs or takes long.
"""

from __future__ import annotations

import copy
import json
import os
import time

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from minifuse.native import core
from minifuse.tokens.native import native_tokenizer
from minifuse.tokens.tokenization import TextTokenizer
from tokenizer_kinds import TOKENIZERS, cut

SLOWNESS = 20 if "MINIFUSE_SANITIZED" in os.environ else 1


def bert(vocab, *added, **options):
    """A small WordPiece tokenizer without special tokens around a text."""
    ids = vocab if isinstance(vocab, dict) else {piece: i for i, piece in enumerate(vocab)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(**options)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_tokens([AddedToken(one) if isinstance(one, str) else one for one in added])
    return json.loads(tokenizer.to_str())


def unigram(vocab, unk_id=0):
    tokenizer = Tokenizer(models.Unigram([tuple(one) for one in vocab], unk_id=unk_id))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    return json.loads(tokenizer.to_str())


def byte_level(extra, merges):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {piece: i for i, piece in enumerate(alphabet)} | extra
    tokenizer = Tokenizer(models.BPE(ids, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return json.loads(tokenizer.to_str())


def assert_package_agrees(state, *texts, is_native=None):
    whole = json.dumps(state)
    tokenizer = TextTokenizer(whole)
    if is_native is not None:
        assert (tokenizer.native is not None) == is_native
    package = Tokenizer.from_str(whole)
    for text in texts:
        ids = package.encode(text).ids
        for limit in (1, 2, 3, 10**9):
            wanted = ids[:limit], len(ids) > limit
            assert tokenizer.encode([text], limit).rows() == [wanted], (text, limit)


VOCAB = ["[UNK]", "[MASK]", "a", "foo", "##o", "x", "[X]", "]", "y", "##x"]


@pytest.mark.parametrize(
    ("content", "number"), [("[NEW]", 50), ("[MASK]", 4), ("[NEW]", 10), ("[MASK]", 1)]
)
def test_the_id_that_an_added_token_says(content, number):
    """The package takes that of a piece of its name, or the next number."""
    state = bert(VOCAB, content)
    state["added_tokens"][0]["id"] = number
    is_right = number == (1 if content == "[MASK]" else 10)
    assert_package_agrees(state, f"a {content} x", is_native=is_right)


def test_added_tokens_behind_each_other():
    state = bert(VOCAB, "[NEW]", "[MASK]", "[NEWER]", "[X]")
    assert [one["id"] for one in state["added_tokens"]] == [1, 6, 10, 11]
    assert_package_agrees(state, "a [NEWER] [NEW] [X] x", is_native=True)


def test_an_added_token_behind_pieces_that_are_alike():
    """The package counts each of them."""
    state = unigram([("<unk>", 0.0), ("a", -1.0), ("a", -2.0)])
    token = {"content": "[X]", "single_word": False, "lstrip": False, "rstrip": False}
    for number in (2, 3):
        state["added_tokens"] = [{**token, "id": number, "normalized": False, "special": False}]
        assert_package_agrees(state, "a[X]a", is_native=number == 3)


def test_a_piece_that_begins_with_the_unknown_ones_name():
    """CamemBERT's files have one."""
    pieces = [("<unk>NOTUSED", -100.0), ("<s>", 0.0), *((c, -3.0) for c in "NOTUSEDab")]
    state = unigram([("<unk>", 0.0), *pieces])
    texts = ("<unk>NOTUSED", "é<unk>NOTUSED", "<unk>éNOTUSED", "é<unk>", "<unk>NO b")
    assert_package_agrees(state, *texts, is_native=True)


def test_added_tokens_that_are_alike():
    two = [AddedToken("[X]", normalized=True), AddedToken("[X]", normalized=False)]
    state = bert(VOCAB, *two)
    state["added_tokens"] = [
        {**state["added_tokens"][0], "normalized": value} for value in (True, False)
    ]
    assert_package_agrees(state, "[x] [X]", is_native=False)
    # Two of one id.
    state = bert({"[UNK]": 0, "a": 1, "p": 2, "[P]": 9, "[Q]": 9, "##p": 3}, "[P]")
    first = state["added_tokens"][0]
    state["added_tokens"] = [first, {**first, "content": "[Q]"}]
    assert_package_agrees(state, "[P] [Q]", is_native=False)


@pytest.mark.parametrize("space", ["\t", "\n", "\r", " ", "\u3000"])
def test_an_added_token_that_begins_with_a_space(space):
    state = bert(VOCAB, AddedToken(" foo", normalized=True))
    assert_package_agrees(state, f"a{space}foo", f"a{space}f", f"{space}{space}foo{space}")


@pytest.mark.parametrize("content", ["foo ", " foo", "foo"])
@pytest.mark.parametrize("side", ["lstrip", "rstrip"])
def test_space_that_two_added_tokens_want(content, side):
    mask = AddedToken("[MASK]", normalized=False, **{side: True})
    state = bert(VOCAB, mask, AddedToken(content, normalized=True))
    assert_package_agrees(state, "foo [MASK] foo", "a foo  [MASK]  foo a", "foo[MASK]foo")


def test_an_added_token_of_marks():
    mark = "\U0001d165"
    state = bert([*VOCAB, mark], AddedToken(mark, normalized=True))
    assert_package_agrees(state, "a" + mark * 300, "a" + mark)


@pytest.mark.parametrize(
    ("vocab", "text"),
    [
        ([("a", -1.0), ("aa", -100.0)], "aa"),
        ([("<unk>", 0.0), ("a", -2.0), ("<unk><unk>", -5.0)], "<unk><unk> a"),
        ([("<unk>", 0.0), ("a", -2.0), ("éé", -50.0), ("é<unk>", -9.0)], "é<unk>ü"),
        ([("<unk>", 0.0), ("N", -2.0), ("<unk>NO", -5.0), ("O", -1.0)], "é<unk>NO <unk>N <unk>é"),
        ([("<unk>", 0.0), ("a", -2.0), ("aa", -2.0)], "aaa é aa"),
    ],
)
def test_a_row_of_unknown_characters(vocab, text):
    assert_package_agrees(unigram(vocab), text)


def test_merges_to_one_id():
    state = byte_level(
        {"ab": 256, "abc": 257, "bc": 258, "bcd": 259},
        [("b", "c"), ("a", "b"), ("bc", "d"), ("a", "bc")],
    )
    assert_package_agrees(state, "abcd", "abc bcd", is_native=True)
    state["model"]["vocab"]["abc"] = 256
    assert_package_agrees(state, "abcd", "abc bcd", is_native=False)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["model"]["vocab"].__setitem__(1, ["a", float("nan")]),
        lambda state: state["model"]["vocab"].__setitem__(1, ["a", float("-inf")]),
        lambda state: state.update(version="2.0"),
        lambda state: state["pre_tokenizer"].update(
            add_prefix_space=False, prepend_scheme="always"
        ),
        lambda state: state.update(
            post_processor={"type": "BertProcessing", "sep": ["x", 3.7], "cls": ["y", 1]}
        ),
        lambda state: state.update(
            post_processor={"type": "BertProcessing", "sep": ["x", 1 << 40], "cls": ["y", 1]}
        ),
        lambda state: state.update(
            normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA~~~~"}
        ),
    ],
)
def test_what_the_package_refuses(change):
    state = unigram([("<unk>", 0.0), ("a", -2.0), ("b", -3.0)])
    assert native_tokenizer(state) is not None
    change(state)
    with pytest.raises(ValueError):  # noqa: PT011
        TextTokenizer(json.dumps(state))


def test_special_tokens_of_absurd_ids():
    """Around one text, and in the template of pairs."""
    state = bert(VOCAB)
    state["post_processor"] = {"type": "BertProcessing", "sep": ["x", 1 << 31], "cls": ["y", 1]}
    with pytest.raises(ValueError, match="a token has the id 2147483648"):
        TextTokenizer(json.dumps(state))
    b, absurd = {"Sequence": {"id": "B", "type_id": 0}}, {"SpecialToken": {"id": "z", "type_id": 0}}
    a = {"Sequence": {"id": "A", "type_id": 0}}
    special = {"z": {"id": "z", "ids": [1 << 31], "tokens": ["z"]}}
    template = {"type": "TemplateProcessing", "single": [a], "pair": [a, absurd, b]}
    state["post_processor"] = {**template, "special_tokens": special}
    tokenizer = TextTokenizer(json.dumps(state))
    assert len(tokenizer.encode(["a"], 8).ids) == 1
    with pytest.raises(ValueError, match="a token has the id 2147483648"):
        tokenizer.encode([("a", "a")], 8)


def test_what_only_the_package_refuses():
    """It is no matter for the ids; whoever asks for the package is told."""
    state = bert(VOCAB)
    state["decoder"] = {"type": "Foo"}
    tokenizer = TextTokenizer(json.dumps(state))
    assert tokenizer.encode(["a foo"], 8).ids.tolist() == [2, 3]
    with pytest.raises(ValueError, match="the tokenizers package refuses: "):
        tokenizer.hand_out()


def colliding(levels: int) -> list[str]:
    """Strings that had one hash when it was made of whole prefixes: one of each pair, in order."""
    pairs = [
        ("fB865rvXYEZOVB", "gMJ7V2nb5LID0I"),
        ("p6G5JiE2POGN6e", "qi54E5yd4FXIlj"),
        ("qVA2eoC9Nv01U2", "pQ3147CsJOON1K"),
        ("W561F7kuGO01IY", "Vn80Eok7CFgfMP"),
    ]
    words = [""]
    for pair in pairs[:levels]:
        words = [word + one for word in words for one in pair]
    return words


def test_pieces_whose_hashes_collide():
    state = unigram([("<unk>", 0.0), *((one, -1.0) for one in colliding(4))])
    assert_package_agrees(state, colliding(4)[5], "fB865rvXYEZOVBa", is_native=True)
    assert_package_agrees(bert(["[UNK]", *colliding(4)], lowercase=False), *colliding(4))


def crowded(count: int, num_bits: int) -> list[str]:
    """Words whose hashes begin with the same bits, so that a table has them at one place."""
    words = np.arange(count << num_bits, dtype=np.uint64)
    letters = [(words // np.uint64(26**power)) % np.uint64(26) for power in range(6)]
    hashes = np.full(len(words), 0xCBF29CE484222325, np.uint64)
    for letter in letters:
        hashes = (hashes ^ (letter + np.uint64(ord("a")))) * np.uint64(0x9E3779B97F4A7C15)
    [chosen] = np.nonzero(hashes >> np.uint64(64 - num_bits) == 0)
    return ["".join(chr(int(letter[i]) + ord("a")) for letter in letters) for i in chosen]


def test_a_table_that_would_be_slow_is_refused():
    words = crowded(1500, 12)
    assert len(words) > 1300
    vocab = ["[UNK]", *words]
    assert_package_agrees(bert(vocab), words[0], " ".join(words[-9:]), is_native=False)
    assert_package_agrees(bert(vocab[:900]), " ".join(words[:1300]), is_native=True)


@pytest.mark.parametrize("length", [300, 3000])
def test_long_pieces(length):
    """Each place of a text is looked at for as long as a piece goes on, and no longer."""
    state = unigram([("<unk>", 0.0), ("a", -2.0), ("a" * length, -3.0)])
    begin = time.perf_counter()
    assert_package_agrees(state, "a" * (length + 7), is_native=True)
    assert time.perf_counter() - begin < 10 * SLOWNESS


def test_many_added_tokens_that_begin_alike():
    """The cost of a character grows with the length of the tokens, not with their number."""
    names = ["<" * 200 + str(number) for number in range(5000)]
    state = bert(VOCAB, *names)
    tokenizer = TextTokenizer(json.dumps(state))
    assert tokenizer.native is not None
    begin = time.perf_counter()
    tokenizer.encode(["<" * 100_000], 10**9)
    assert time.perf_counter() - begin < 5 * SLOWNESS


def test_pieces_that_are_no_strings():
    options = {
        "composes": False,
        "adds_prefix_space": False,
        "pattern": "gpt2",
        "takes_words_whole": False,
        "added_tokens": [],
        "added_normalized": [],
    }
    with pytest.raises(ValueError, match="a piece of the vocabulary is no string"):
        core.ByteLevelTokenizer({b"x" * 20 + b"\xf0": 0}, [], **options)
    with pytest.raises(ValueError, match="a piece of the vocabulary is no string"):
        core.ByteLevelTokenizer({}, [(b"x", "y")], **options)


def test_the_text_that_is_named_is_the_wrong_one():
    tokenizer = TextTokenizer(TOKENIZERS["gpt2"])
    assert tokenizer.native is not None
    with pytest.raises(ValueError, match=r"sentences\[1\] holds a lone surrogate"):
        tokenizer.encode(["ok", "<mask> \ud800"], 16)


def test_a_copy_of_a_model_tokenizer(tiny):
    tokenizer = tiny.tokenizer
    assert copy.copy(tokenizer).name_or_path == tokenizer.name_or_path
    assert not hasattr(tokenizer, "__array__")


def test_threads_that_ask_for_the_backend_at_once():
    import threading

    for _ in range(20):
        tokenizer = TextTokenizer(TOKENIZERS["bert"])
        got: list[int] = []
        barrier = threading.Barrier(4)

        def ask(tokenizer=tokenizer, got=got, barrier=barrier):
            barrier.wait()
            got.append(id(tokenizer.hand_out()))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(got)) == 1
        wanted = cut(tokenizer.backend.encode("hello").ids, 16)
        assert tokenizer.encode(["hello"], 16).rows() == [wanted]
