"""The native tokenizers give the ids of the ``tokenizers`` package for every text, or leave a
tokenizer to it.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from minifuse.native import core
from minifuse.tokens.native import native_tokenizer
from minifuse.tokens.tokenization import TextTokenizer
from tokenizer_kinds import TOKENIZERS, cut, random_text

# Sanitizers take ten times as long.
SLOWNESS = 20 if "MINIFUSE_SANITIZED" in os.environ else 1
LIMITS = (0, 1, 2, 3, 5, 8, 64, 10**9)
_made: dict[str, TextTokenizer] = {}


@pytest.fixture(params=TOKENIZERS)
def name(request):
    return request.param


def made(name):
    """One of each kind, which runs natively."""
    if name not in _made:
        _made[name] = TextTokenizer(TOKENIZERS[name])
    assert _made[name].native is not None
    return _made[name]


@pytest.fixture
def tokenizer(name):
    return made(name)


def run_threads(work, count=4):
    """Run a function on several threads at once."""
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def assert_same(tokenizer, texts, limit, num_threads=1):
    tokens = tokenizer.encode(texts, limit, num_threads)
    whole = [encoding.ids for encoding in tokenizer.backend.encode_batch_fast(texts)]
    for text, ours, theirs in zip(texts, tokens.rows(), whole, strict=True):
        assert ours == cut(theirs, limit), ascii(text[:200])


@pytest.mark.parametrize(
    ("seed", "count"), [(0, 1500), pytest.param(1, 100_000, marks=pytest.mark.slow)]
)
def test_random_texts(tokenizer, seed, count):
    rng = random.Random(seed)
    for _ in range(count // 500):
        texts = [random_text(rng) for _ in range(500)]
        assert_same(tokenizer, texts, rng.choice(LIMITS), rng.choice((1, 2, 4)))


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(max_size=40), limit=st.sampled_from(LIMITS), name=st.sampled_from([*TOKENIZERS])
)
def test_any_text(text, limit, name):
    assert_same(made(name), [text, text + " a", "a" + text], limit)


@pytest.mark.parametrize("kind", ["bert", "bert-cased", "unigram-split", "gpt2-composed", "qwen2"])
def test_every_code_point_of_the_basic_plane(kind):
    tokenizer = made(kind)
    points = [chr(c) for c in range(0x10000) if not 0xD800 <= c < 0xE000]
    texts = ["".join(f"a{c}" for c in points[i : i + 32]) for i in range(0, len(points), 32)]
    assert_same(tokenizer, texts, 10**9)


@pytest.mark.parametrize(
    "unit", ["a", "日", "ab", "日本b", "é", "\u0301", " ", "  a", "\u200b", "!", "1"]
)
def test_long_words(tokenizer, unit):
    """They are divided bit by bit, and every bit agrees."""
    for size in (4000, 4100, 9000):
        text = (unit * size)[:size]
        assert_same(tokenizer, [text, "x" + text + " b"], 10**9)
        assert_same(tokenizer, [text, "x" + text + " b"], 50)


@pytest.mark.parametrize("kind", ["bert", "gpt2-composed", "qwen2"])
@pytest.mark.parametrize("size", [2, 63, 64, 65, 400])
def test_marks_of_many_classes_in_a_row(kind, size):
    """They are sorted by their classes, and those of one class keep their order."""
    rng = random.Random(size)
    # U+030D is composed with no letter, and what follows it in its class is not, either.
    marks = [*map(chr, (0x301, 0x300, 0x30D, 0x302, 0x323, 0x327, 0x345, 0x338, 0x302E, 0x3099))]
    marks += ["\U0001d165", "\u05b0"]
    for _ in range(20):
        text = "e" + "".join(rng.choices(marks, k=size)) + "a" + "".join(rng.choices(marks, k=3))
        assert_same(made(kind), [text, "\u1e69" + text], 10**9)


# Byte-level BPE reads a word to its end, so its texts have short words.
SHORT_WORDS, ALL_WORDS = ("ab ", "a1 "), ("ab ", "a1 ", "日本", "\t", "e\u0301")


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        (name, unit)
        for name in TOKENIZERS
        for unit in (ALL_WORDS if name.startswith(("bert", "unigram")) else SHORT_WORDS)
    ],
)
def test_the_cost_of_a_long_text(tokenizer, unit):
    text = unit * 400_000

    def seconds() -> float:
        begin = time.perf_counter()
        tokenizer.encode([text], 64)
        return time.perf_counter() - begin

    assert min(seconds() for _ in range(3)) < 0.1 * SLOWNESS


@pytest.mark.parametrize(
    "text", ["   <mask> a", " a  \t <mask>", "a \u3000\n<mask>", "a  |IP|", " \u200b<mask>"]
)
def test_space_that_a_token_takes_along(tokenizer, text):
    """It gives no ids, even where there are enough before the token is read."""
    for limit in range(9):
        assert_same(tokenizer, [text, text * 20], limit)


def test_threads_and_order_change_nothing(tokenizer):
    rng = random.Random(2)
    texts = [random_text(rng) for _ in range(300)]
    wanted = [tokenizer.encode([text], 32).ids.tolist() for text in texts]
    for num_threads in (1, 2, 4, None):
        assert [ids for ids, _ in tokenizer.encode(texts, 32, num_threads).rows()] == wanted


def test_many_threads_share_one(tokenizer):
    rng = random.Random(3)
    texts = [random_text(rng) for _ in range(200)]
    wanted = tokenizer.encode(texts, 32, 1)
    wrong = []

    def work():
        for _ in range(5):
            tokens = tokenizer.encode(texts, 32, 2)
            if not np.array_equal(tokens.ids, wanted.ids):
                wrong.append(tokens)

    run_threads(work)
    assert not wrong


@pytest.mark.parametrize("text", ["\ud800", "ab\udfff", "日\ud800", "\U0001f468\udc00"])
def test_lone_surrogates(tokenizer, text):
    with pytest.raises(ValueError, match=r"sentences\[1\] holds a lone surrogate at character"):
        tokenizer.encode(["a", text, "b"], 16)


def test_what_is_no_string(tokenizer):
    arguments = {"prefix": [], "suffix": [], "max_length": 8, "num_threads": 1}
    with pytest.raises(TypeError, match="wanted strings, got bytes"):
        tokenizer.native.encoder.encode([b"a"], **arguments)
    for name, value in (("max_length", -1), ("num_threads", 0)):
        with pytest.raises(ValueError, match=name):
            tokenizer.native.encoder.encode(["a"], **(arguments | {name: value}))


def test_one_that_is_changed_in_place():
    tokenizer = TextTokenizer(TOKENIZERS["bert"])
    before = tokenizer.encode(["hello"], 16).ids.tolist()
    assert tokenizer.is_original
    tokenizer.hand_out().add_tokens([AddedToken("ell")])
    assert not tokenizer.is_original
    after = tokenizer.encode(["hello"], 16).ids.tolist()
    assert after != before
    assert after == tokenizer.backend.encode("hello").ids


@pytest.mark.parametrize("is_normalized", [False, True])
def test_many_added_tokens(is_normalized):
    """They cost no more than a few, and the longest one counts."""
    backend = TOKENIZERS["gpt2"]
    names = [f"<extra {i}>" for i in range(3000)] + [
        "<e",
        "<ext",
        "<extra",
        "extra 1",
        "日本",
        "日",
    ]
    backend.add_tokens([AddedToken(one, normalized=is_normalized) for one in names])
    tokenizer = TextTokenizer(backend)
    assert tokenizer.native is not None
    rng = random.Random(6)
    units = ["<", "<e", "<ex", "<extra ", "1", "12", "2999", ">", "日", "本", " ", "extra 1", "a"]
    texts = ["".join(rng.choices(units, k=40)) for _ in range(500)]
    assert_same(tokenizer, texts, 10**9)
    begin = time.perf_counter()
    tokenizer.encode(["<extra " * 50_000], 10**9)
    assert time.perf_counter() - begin < 2 * SLOWNESS


def test_one_that_is_handed_out_while_others_use_it():
    wanted = TextTokenizer(TOKENIZERS["bert"]).encode(["hello", "un <mask>"] * 50, 16).ids
    for _ in range(20):
        tokenizer = TextTokenizer(TOKENIZERS["bert"])
        handed, failed = [], []

        def work(tokenizer=tokenizer, handed=handed, failed=failed):
            try:
                for i in range(6):
                    if i == 3:
                        handed.append(tokenizer.hand_out())
                    ids = tokenizer.encode(["hello", "un <mask>"] * 50, 16).ids
                    assert np.array_equal(ids, wanted)
            except BaseException as error:
                failed.append(error)

        run_threads(work)
        assert not failed
        assert all(one is handed[0] for one in handed)


# Changes of a tokenizer.json after which only the package knows it, by its kind.
UNKNOWN = {
    "bert": [
        ({"pre_tokenizer": {"type": "Whitespace"}}, "hello, world"),
        ({"normalizer": None}, "Hello"),
        ({"normalizer": {"type": "Lowercase"}}, "Hello"),
    ],
    "unigram-split": [
        ({"normalizer": {"type": "NFKC"}}, "ﬁ"),
        ({"pre_tokenizer": {"type": "WhitespaceSplit"}}, "a b"),
    ],
    "gpt2": [
        ({"normalizer": {"type": "NFKC"}}, "ﬁ"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "a, b"),
    ],
}


@pytest.mark.parametrize(
    ("kind", "change", "text"),
    [(kind, change, text) for kind, changes in UNKNOWN.items() for change, text in changes],
)
def test_others_are_left_to_the_package(kind, change, text):
    state = json.loads(TOKENIZERS[kind].to_str()) | change
    assert native_tokenizer(state) is None
    tokenizer = TextTokenizer(Tokenizer.from_str(json.dumps(state)))
    assert tokenizer.native is None
    assert tokenizer.encode([text], 64).ids.tolist() == tokenizer.backend.encode(text).ids


def _paths(value, path=()):
    """The place of everything in a tokenizer.json but the vocabulary."""
    yield path
    inner = ()
    if isinstance(value, (dict, list)):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, one in inner:
        if key not in ("vocab", "merges", "special_tokens"):
            yield from _paths(one, (*path, key))


@pytest.mark.parametrize("kind", ["bert", "unigram-strip", "qwen2"])
def test_damaged_files(kind):
    """Every value of the file by another one: none at all, or a tokenizer that does not crash."""
    whole = json.loads(TOKENIZERS[kind].to_str())
    rng = random.Random(5)
    for path in list(_paths(whole))[1:]:
        for damage in rng.sample([None, 0, -1, 1 << 40, "x", [], {}, True, 1.5, "\ud800"], 2):
            state = json.loads(json.dumps(whole))
            inner = state
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = damage
            native = native_tokenizer(state)
            if native is not None:
                native.encoder.encode(
                    ["hello <mask> |IP| é  日本"], prefix=[], suffix=[], max_length=9, num_threads=1
                )


def test_damaged_maps_of_normalisation():
    """Random bytes and cut maps: an error or an answer, but no crash."""
    rng = random.Random(4)
    whole = json.loads(TOKENIZERS["unigram-split"].to_str())
    map_bytes = core_map(whole)
    for _ in range(300):
        damaged = bytearray(map_bytes[: rng.choice((3, 5, 1000, len(map_bytes)))])
        for _ in range(rng.randrange(40)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            encoder = unigram(whole, bytes(damaged))
            encoder.encode([random_text(rng)], prefix=[], suffix=[], max_length=64, num_threads=1)
        except ValueError as error:
            assert "precompiled_charsmap" in str(error)  # noqa: PT017


def core_map(state):
    import base64

    return base64.b64decode(state["normalizer"]["precompiled_charsmap"])


def unigram(state, map_bytes):
    return core.UnigramTokenizer(
        state["model"]["vocab"],
        unknown_id=2,
        map=map_bytes,
        strips_end=False,
        spaces_become=None,
        splits_at_white_space=True,
        prepends=True,
        added_tokens=[],
        added_normalized=[],
    )
