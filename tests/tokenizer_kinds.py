"""Tokenizers of each form that the native core runs, small and random, and texts that are hard for
them.
"""

from __future__ import annotations

import random
import struct
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from family import TEXTS

__all__ = ["TOKENIZERS", "charsmap", "cut", "random_text"]

SPECIAL = ["<s>", "</s>", "<unk>", "<pad>"]
_WORDS = [
    *("hello", "THE", "naïve", "unbelievable", "don't", "I'LL", "we'Ve", "'ſ", "123", "12345", "½"),
    *("<s>", "</s>", "<unk>", "<UNK>", "<mask>", "[SEP]", "[MASK]", "<u\u200bnk>", "<<unk>>", "|IP|"),
    *("日本語の", "한국어", "ÅNGSTRÖM", "Привет", "नमस्ते", "สวัสดี", "ﬁ", "▁", "...", "?!", "##ing", "x" * 99),
    *(" ", "  ", "\t\n", "\r\n", "\n", "\u3000", "\x85", "\u200b", "\0", "y" * 101),
    # A consonant behind a linker and a sign behind a joiner, whose accents go with what is before them;
    # marks whose order is not that in which they stand.
    *("\u0915\u094d\u0958\u0301", "\xa9\u200d\u2122\u0301", "a\u08d4\u1baa", "b\U0001d16d\U0001d165"),
]  # fmt: skip
# Characters that change with those beside them: accents, joiners, parts of syllables, signs.
_JOINING = [
    *(0x300, 0x301, 0x345, 0x344, 0x340, 0x327, 0x338, 0x323, 0x307, 0x3099, 0x302E, 0x302F),
    *(0x200D, 0x200C, 0xA9, 0xAE, 0x600, 0x605, 0x110BD, 0x70F, 0xAD, 0xFE0F, 0x1F3FB, 0x1F468),
    *(0x915, 0x937, 0x94D, 0x903, 0x958, 0x9C7, 0x9BE, 0x9CB, 0xCBF, 0x1BAA, 0xE33, 0x8D4, 0x1D165),
    *(0x1100, 0x1161, 0x11A8, 0xAC00, 0xAC01, 0x16D63, 0x1D15E, 0x1D16D, 0x1E944, 0x1F1E6),
    *(0x41, 0x61, 0x65, 0x73, 0xC5, 0x212B, 0x2126, 0xF900, 0x304B, 0x30A, 0x3D, 0x1E9B, 0x2581),
    *(0x20, 0xA0, 0x3000, 0x0D, 0x0A, 0x27, 0x31),
]


def _categories() -> list[list[int]]:
    by_category: dict[str, list[int]] = {}
    for point in (*range(0xD800), *range(0xE000, 0x110000)):
        by_category.setdefault(unicodedata.category(chr(point)), []).append(point)
    return list(by_category.values())


_CATEGORIES = _categories()


def random_text(rng: random.Random) -> str:
    """Return a text of every category of characters, of neighbours that change each other, of
    words, or of one that is repeated.
    """
    size = rng.choice((0, 1, 2, 3, 5, 8, 20, 60))
    makers: list[tuple[float, Callable[[], str]]] = [
        (0.2, lambda: chr(rng.choice(rng.choice(_CATEGORIES)))),
        (0.2, lambda: chr(rng.choice(_JOINING))),
        (0.1, lambda: chr(rng.randrange(128))),
        (0.1, lambda: chr(rng.randrange(0x250))),
        (0.15, lambda: rng.choice(" '\n\ta1!sS\r")),
        (0.22, lambda: rng.choice(_WORDS) + rng.choice(("", " "))),
    ]
    kind = rng.random()
    for share, make in makers:
        if kind < share:
            return "".join(make() for _ in range(size))
        kind -= share
    unit = rng.choice([*_WORDS, chr(rng.choice(rng.choice(_CATEGORIES))), "a", "日", "ab", "!"])
    return unit * rng.choice((1, 49, 99, 100, 101, 300, 3000))


def cut(ids: list[int], limit: int) -> tuple[list[int], bool]:
    """Return the ids of a text between two special tokens that stay, and whether there were more."""
    if len(ids) <= limit:
        return ids, False
    return (ids[: limit - 1] + ids[-1:] if limit >= 2 else ids[:limit]), True


# ---- the kinds ------------------------------------------------------------------------------


def _word_piece(**options: bool | None) -> Tokenizer:
    normalizer = normalizers.BertNormalizer(**options)
    pieces = {character for text in TEXTS for character in normalizer.normalize_str(text)}
    pieces |= set("abcdefghijklmnopqrstuvwxyz<>[]日本한국ᄒ\u08d4\u1baa\U0001d165\U0001d16d")
    pieces -= {" "}
    rng = random.Random(0)
    longer = ["".join(rng.choices("abelhot", k=rng.randrange(2, 6))) for _ in range(200)]
    vocab = [*SPECIAL, "[SEP]", "hello", "the", "##ing", "un", "##believ", "##able", "naive"]
    vocab += [*sorted(pieces), *longer, *(f"##{one}" for one in (*sorted(pieces), *longer))]
    ids = {piece: place for place, piece in enumerate(dict.fromkeys(vocab))}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="<unk>", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["<s>", "</s>", "[SEP]", AddedToken("<mask>", lstrip=True)])
    tokenizer.add_tokens([AddedToken("<unk>", normalized=True)])
    return tokenizer


def charsmap(mapping: dict[str, str]) -> bytes:
    """A map of normalisation as SentencePiece writes it: a trie in a double array, and strings."""
    root: dict[int, dict] = {}
    strings, places = b"", {}
    for key, value in mapping.items():
        if value not in places:
            places[value] = len(strings)
            strings += value.encode() + b"\0"
        node = root
        for byte in key.encode():
            node = node.setdefault(byte, {})
        node[-1] = places[value]  # type: ignore[assignment]
    units: dict[int, int] = {}
    # Nodes with one child lie close together; any other has 256 units of its own.
    taken, small = {0}, 1
    large = 256 * (2 + sum(len(key.encode()) + 1 for key in mapping) // 128)
    waiting = deque([(0, root, 0)])
    while waiting:
        place, node, byte = waiting.popleft()
        labels = [max(label, 0) for label in node]  # the end of a key is label 0
        if len(labels) > 1:
            base, large = large, large + 256
        else:
            while small ^ labels[0] in taken:
                small += 1
            base, small = small, small + 1
        taken |= {base ^ label for label in labels}
        units[place] = byte | (-1 in node) << 8 | (place ^ base) << 10
        for label, child in node.items():
            if label == -1:
                units[base] = 1 << 31 | child  # type: ignore[operator]
            else:
                waiting.append((base ^ label, child, label))
    size = (max(taken) + 256) // 256 * 256
    array = [units.get(place, 0) for place in range(size)]
    return struct.pack(f"<{size + 1}I", 4 * size, *array) + strings


def _mapping() -> dict[str, str]:
    """Compatibility characters, compositions, and white space, as SentencePiece's nmt_nfkc has."""
    mapping = {}
    for point in (*range(0x80, 0x3400), *range(0xF900, 0xFFF0)):
        text = unicodedata.normalize("NFKC", chr(point))
        if text != chr(point) and "\0" not in text:
            mapping[chr(point)] = text
        parts = unicodedata.normalize("NFD", chr(point))
        if len(parts) > 1 and unicodedata.normalize("NFC", parts) == chr(point):
            mapping[parts] = chr(point)
    mapping |= dict.fromkeys("\t\n\r\u3000\u2028", " ") | dict.fromkeys("\x01\x7f\xad\u200b", "")
    return mapping | {"\r\n": " "}


def _unigram(normalizer: normalizers.Normalizer | None, splits: bool) -> Tokenizer:
    rng = random.Random(1)
    alphabet = "abehlot▁日本éж\u0301\u0915\u093c™T"
    words = {"".join(rng.choices(alphabet, k=rng.randrange(1, 5))) for _ in range(400)}
    # Few different scores: ways to divide a word are often equally good.
    pieces = [(one, -float(rng.randrange(1, 5))) for one in sorted(words | set(alphabet))]
    vocab = [*((one, 0.0) for one in SPECIAL), *pieces]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=2))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    metaspace = pre_tokenizers.Metaspace()
    divider = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    tokenizer.pre_tokenizer = divider if splits else metaspace
    tokenizer.add_special_tokens([*SPECIAL, AddedToken("<mask>", lstrip=True)])
    tokenizer.add_tokens([AddedToken("|IP|", normalized=True)])
    return tokenizer


_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level(
    composes: bool = False, prefix: bool = False, pattern: str | None = None, whole: bool = False
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole))
    if composes:
        tokenizer.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=pattern is None)
    tokenizer.pre_tokenizer = byte_level
    if pattern is not None:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TEXTS, *_WORDS] * 3, trainer)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    spaces = [AddedToken(" " * size, normalized=True) for size in range(2, 12)]
    tokenizer.add_tokens([*spaces, AddedToken("|IP|", normalized=True)])
    return tokenizer


def _precompiled() -> normalizers.Normalizer:
    return normalizers.Precompiled(charsmap(_mapping()))


def _sequence(*steps: normalizers.Normalizer) -> normalizers.Normalizer:
    return normalizers.Sequence([_precompiled(), *steps])


def _replace(content: str) -> normalizers.Normalizer:
    return normalizers.Replace(Regex(" {2,}"), content)


_MAKERS: dict[str, Callable[[], Tokenizer]] = {
    "bert": lambda: _word_piece(),
    "bert-cased": lambda: _word_piece(lowercase=False),
    "bert-accents": lambda: _word_piece(strip_accents=False),
    "bert-stripped": lambda: _word_piece(lowercase=False, strip_accents=True),
    "bert-bare": lambda: _word_piece(clean_text=False, handle_chinese_chars=False, lowercase=False),
    "unigram-split": lambda: _unigram(_precompiled(), splits=True),
    "unigram-spaces": lambda: _unigram(_sequence(_replace(" ")), splits=False),
    "unigram-strip": lambda: _unigram(
        _sequence(normalizers.Strip(left=False, right=True), _replace("▁")), splits=False
    ),
    "unigram-bare": lambda: _unigram(None, splits=False),
    "gpt2": lambda: _byte_level(),
    "gpt2-prefix": lambda: _byte_level(prefix=True),
    "gpt2-composed": lambda: _byte_level(composes=True),
    "qwen2": lambda: _byte_level(composes=True, pattern=_QWEN2),
    "llama3": lambda: _byte_level(pattern=_QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|"), whole=True),
}


class _Tokenizers:
    """Name -> a tokenizer between two special tokens, made when it is asked for."""

    def __getitem__(self, name: str) -> Tokenizer:
        tokenizer = _MAKERS[name]()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
        return tokenizer

    def __iter__(self) -> Iterator[str]:
        return iter(_MAKERS)


TOKENIZERS = _Tokenizers()
