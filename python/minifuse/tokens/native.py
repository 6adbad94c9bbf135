"""The tokenizers that the native core runs: those of a tokenizer.json whose every part it knows.

BERT's WordPiece, SentencePiece's Unigram and byte-level BPE give the ids of the ``tokenizers``
package for every text. A file with anything else in it, however small, is left to that package.
"""

from __future__ import annotations

import base64
import json
import math
import unicodedata
from collections.abc import Callable
from typing import Any, NamedTuple

from minifuse.native import core

__all__ = ["NativeTokenizer", "native_tokenizer"]

State = dict[str, Any]

# Split's regular expressions, by the native names.
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PATTERNS = {_QWEN2: "qwen2", _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|"): "llama3"}
_FOREIGN = -1  # the id of an added token that is left to the tokenizers package
_WORD_START = "\u2581"
_LONGEST_ADDED = 256  # characters: each place of a text is compared with added tokens


class _Unknown(Exception):
    """A part of the file is not known here."""


class NativeTokenizer(NamedTuple):
    """A native tokenizer with the special tokens that stand around a text.

    Attributes:
        encoder: texts to ids.
        prefix, suffix: ids of the special tokens before and behind a text.
        leaves_texts: texts with some added tokens are left to the package.
    """

    encoder: core.Tokenizer
    prefix: list[int]
    suffix: list[int]
    leaves_texts: bool


def native_tokenizer(state: State) -> NativeTokenizer | None:
    """Return the native form of a tokenizer.json; None where it has none, or is damaged."""
    kinds = {"WordPiece": _bert, "Unigram": _unigram, "BPE": _byte_level}
    # A value of another type than is wanted, or one that the core refuses, ends in one of these.
    # The package says what is wrong with the file, if anything is.
    errors = (
        *(_Unknown, ArithmeticError, AttributeError, LookupError),
        *(RuntimeError, TypeError, ValueError),
    )
    try:
        model = state["model"]
        # Files of old versions lack the type of a WordPiece model or a BPE.
        kind = model.get("type") or ("BPE" if "merges" in model else "WordPiece")
        _known(state.get("version", "1.0") == "1.0")
        prefix, suffix = _special_ids(state.get("post_processor"))
        encoder, leaves_texts = kinds[kind](state)
        return NativeTokenizer(encoder, prefix, suffix, leaves_texts)
    except errors:
        return None


def _known(condition: bool) -> None:
    if not condition:
        raise _Unknown


def _parts(part: State | None, key: str) -> list[State]:
    """The steps of a normalizer, a pre-tokenizer or a post-processor, one after the other."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    return [step for inner in part[key] for step in _parts(inner, key)]


def _id(value: Any) -> int:
    """An id as the files write it."""
    _known(type(value) is int and 0 <= value < 1 << 31)
    return int(value)


def _special_ids(processor: State | None) -> tuple[list[int], list[int]]:
    """Ids before and behind a text."""
    steps = [one for one in _parts(processor, "processors") if one["type"] != "ByteLevel"]
    if not steps:
        return [], []
    _known(len(steps) == 1)
    step = steps[0]
    if step["type"] in ("BertProcessing", "RobertaProcessing"):
        return [_id(step["cls"][1])], [_id(step["sep"][1])]
    _known(step["type"] == "TemplateProcessing")
    sides: list[list[int]] = [[]]
    for piece in step["single"]:
        if "Sequence" in piece:
            _known(piece["Sequence"]["id"] == "A")
            sides.append([])
        else:
            special = step["special_tokens"][piece["SpecialToken"]["id"]]
            sides[-1] += [_id(value) for value in special["ids"]]
    _known(len(sides) == 2)
    return sides[0], sides[1]


def _added(
    state: State, pieces: dict[str, int], absorbs_spaces: bool = False, size: int | None = None
) -> dict[str, list[tuple[str, int]]]:
    """Added tokens as the native tokenizers take them.

    pieces: ids of the vocabulary. size: their number, where some are alike. absorbs_spaces: white
    space beside a word makes no difference.
    """
    tokens = state.get("added_tokens") or []
    _check_ids(tokens, pieces, len(pieces) if size is None else size)
    normalized = _normalize(state) if any(token["normalized"] for token in tokens) else str
    contents = [
        normalized(one["content"]) if one["normalized"] else one["content"] for one in tokens
    ]
    # A token that takes white space along may take it from one that begins or ends with it.
    absorbs_spaces = absorbs_spaces and not any(
        token["normalized"] and content != content.strip()
        for token, content in zip(tokens, contents, strict=True)
    )
    added: dict[str, list[tuple[str, int]]] = {"added_tokens": [], "added_normalized": []}
    for token, content in zip(tokens, contents, strict=True):
        takes_space = (token["lstrip"] or token["rstrip"]) and not absorbs_spaces
        number = _FOREIGN if token["single_word"] or takes_space else token["id"]
        _known(0 < len(content) <= _LONGEST_ADDED)
        added["added_normalized" if token["normalized"] else "added_tokens"].append(
            (content, number)
        )
    for pairs in added.values():  # of two that are alike, the package decides
        _known(len(dict(pairs)) == len(pairs))
    return added


def _leaves_texts(added: dict[str, list[tuple[str, int]]]) -> bool:
    return any(number == _FOREIGN for pairs in added.values() for _, number in pairs)


def _check_ids(tokens: list[State], pieces: dict[str, int], size: int) -> None:
    """Let tokens pass whose ids are those that the package gives them, whatever the file says.

    It takes the id of a piece of that name, or else the next number that is free.
    """
    ids: set[int] = set()
    highest = size - 1
    for token in tokens:
        number = pieces.get(token["content"], highest + 1)
        _known(_id(token["id"]) == number and number not in ids)
        ids.add(number)
        highest = max(highest, number)
    _known(len({token["content"] for token in tokens}) == len(tokens))


def _normalize(state: State) -> Callable[[str], str]:
    """Return the file's normalizer."""
    if state.get("normalizer") is None:
        return str
    from tokenizers import Tokenizer

    model = {"type": "BPE", "vocab": {}, "merges": []}
    bare = {"version": "1.0", "model": model, "normalizer": state["normalizer"]}
    try:
        normalizer: Any = Tokenizer.from_str(json.dumps(bare)).normalizer
    except Exception as error:  # the package has no other class for its errors
        raise _Unknown from error
    return lambda text: str(normalizer.normalize_str(text))


def _bert(state: State) -> tuple[core.Tokenizer, bool]:
    model, normalizer = state["model"], state["normalizer"]
    _known(normalizer["type"] == "BertNormalizer")
    _known(state["pre_tokenizer"] == {"type": "BertPreTokenizer"})
    strips = normalizer["strip_accents"]
    added = _added(state, model["vocab"], absorbs_spaces=True)
    # The core keeps no more marks in a row than a word may have.
    _known(not any(unicodedata.combining(c) for one, _ in added["added_normalized"] for c in one))
    encoder = core.BertTokenizer(
        model["vocab"],
        continuation_prefix=model["continuing_subword_prefix"],
        unknown_id=model["vocab"][model["unk_token"]],
        max_word_characters=model["max_input_chars_per_word"],
        cleans_text=normalizer["clean_text"],
        separates_chinese=normalizer["handle_chinese_chars"],
        strips_accents=normalizer["lowercase"] if strips is None else strips,
        lowers=normalizer["lowercase"],
        **added,
    )
    return encoder, _leaves_texts(added)


def _unigram(state: State) -> tuple[core.Tokenizer, bool]:
    model = state["model"]
    _known(not model.get("byte_fallback") and model["unk_id"] is not None)
    pieces = {piece: number for number, (piece, _) in enumerate(model["vocab"])}
    scores = [score for _, score in model["vocab"]]
    _known(all(type(score) in (int, float) and math.isfinite(score) for score in scores))
    # The package looks up a row of unknown pieces as a whole, which might be a piece after all: one
    # of several characters if no score is below its own, or one of the unknown piece's name and
    # characters that are no pieces alone.
    unknown = model["vocab"][_id(model["unk_id"])][0]
    _known(min(scores) <= 0)
    _known(
        all(
            piece == unknown or any(c in pieces and c not in unknown for c in piece)
            for piece in pieces
            if unknown in piece
        )
    )
    steps = _parts(state.get("normalizer"), "normalizers")
    charsmap = None
    if steps and steps[0]["type"] == "Precompiled":
        charsmap = base64.b64decode(steps.pop(0)["precompiled_charsmap"] or "", validate=True)
        _known(charsmap != b"")
    strips_end, spaces_become = False, None
    if steps and steps[0]["type"] == "Strip":
        strips_end = True
        _known(steps.pop(0) == {"type": "Strip", "strip_left": False, "strip_right": True})
    if steps and steps[0]["type"] == "Replace":
        step = steps.pop(0)
        spaces_become = step["content"]
        _known(step["pattern"] == {"Regex": " {2,}"} and spaces_become in (" ", _WORD_START))
    dividers = _parts(state.get("pre_tokenizer"), "pretokenizers")
    splits = dividers[0] == {"type": "WhitespaceSplit"}
    if splits:
        dividers.pop(0)
    _known(not steps and len(dividers) == 1 and dividers[0]["type"] == "Metaspace")
    metaspace = dividers[0]
    scheme = metaspace.get("prepend_scheme", "always")
    _known(metaspace["replacement"] == _WORD_START and metaspace.get("split", True))
    # Files of old versions say add_prefix_space, which must not contradict the scheme.
    _known(scheme == "never" or (scheme == "always" and metaspace.get("add_prefix_space", True)))
    added = _added(state, pieces, size=len(scores))
    encoder = core.UnigramTokenizer(
        model["vocab"],
        unknown_id=model["unk_id"],
        map=charsmap,
        strips_end=strips_end,
        spaces_become=spaces_become,
        splits_at_white_space=splits,
        prepends=scheme == "always",
        **added,
    )
    return encoder, _leaves_texts(added)


def _pair(merge: str | list[str]) -> tuple[str, str]:
    """The two pieces of a merge, which old versions write as one string."""
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _byte_level(state: State) -> tuple[core.Tokenizer, bool]:
    model = state["model"]
    # Two merges that give the same id are the same to the package.
    _known(len(set(model["vocab"].values())) == len(model["vocab"]))
    for switch in ("dropout", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix"):
        _known(not model.get(switch))
    steps = _parts(state.get("normalizer"), "normalizers")
    _known(steps in ([], [{"type": "NFC"}]))
    dividers = _parts(state.get("pre_tokenizer"), "pretokenizers")
    byte_level = dividers.pop()
    _known(byte_level["type"] == "ByteLevel")
    pattern = "gpt2"
    if not byte_level.get("use_regex", True):
        split = dividers.pop()
        _known(split["type"] == "Split" and split["behavior"] == "Isolated")
        _known(not split["invert"])
        pattern = _PATTERNS[split["pattern"]["Regex"]]
    _known(not dividers)
    # Behind another expression, the package puts a space before each word.
    _known(pattern == "gpt2" or not byte_level["add_prefix_space"])
    added = _added(state, model["vocab"])
    encoder = core.ByteLevelTokenizer(
        model["vocab"],
        [_pair(merge) for merge in model["merges"]],
        composes=bool(steps),
        adds_prefix_space=byte_level["add_prefix_space"],
        pattern=pattern,
        takes_words_whole=bool(model.get("ignore_merges")),
        **added,
    )
    return encoder, _leaves_texts(added)
