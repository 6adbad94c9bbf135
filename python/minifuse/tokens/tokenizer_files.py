"""The files of a tokenizer: tokenizer.json with what tokenizer_config.json says beside it, and the
vocab.txt of older models. Whatever is wrong in one becomes a ValueError that names it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "TOKENIZER_CONFIG",
    "as_transformers_reads_it",
    "from_vocabulary",
    "guarded",
    "is_of_tokenizers",
    "normalizer_settings",
    "parsed",
    "read_state",
    "with_truncation",
]

TOKENIZER_CONFIG = "tokenizer_config.json"
# Classes of transformers with BERT's normalizer, its settings in tokenizer_config.json and in
# tokenizer.json, and where it stands there. Large files take long to parse as a whole.
_WITH_BERTS_NORMALIZER = (
    *("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MPNetTokenizer"),
)
_OF_BERTS_NORMALIZER = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
_BERTS_NORMALIZER = re.compile(
    r'"normalizer"\s*:\s*(\{[^{}]*"type"\s*:\s*"BertNormalizer"[^{}]*\})'
)
_CUTS_LEFT = re.compile(r'"truncation"\s*:\s*\{[^{}]*"direction"\s*:\s*"Left"')
T = TypeVar("T")


def is_of_tokenizers(error: BaseException) -> bool:
    """Return whether the tokenizers package raised it: Exception, or a panic of its Rust code."""
    return type(error) is Exception or type(error).__name__ == "PanicException"


def guarded(path: Path, call: Callable[[], T]) -> T:
    """call(), which reads path; whatever is wrong with the file becomes a ValueError."""
    try:
        return call()
    except (OSError, KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:
        if not (is_of_tokenizers(error) or isinstance(error, (ValueError, TypeError, KeyError))):
            raise
        raise ValueError(f"{path}: not a tokenizer ({error})") from error


def read_state(path: Path) -> dict[str, Any]:
    """Return the object of one of a tokenizer's files.

    Raises:
        ValueError: the file is damaged.
    """
    return guarded(path, lambda: parsed(path.read_text(encoding="utf-8")))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")  # Python's reader takes it


def parsed(text: str) -> dict[str, Any]:
    """Return the object of a tokenizer.json's text.

    Raises:
        ValueError: it is none.
    """
    try:
        state = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(state, dict):
        raise ValueError("wanted a JSON object")
    return state


def with_truncation(tokenizer: str, length: int) -> str:
    """Return a tokenizer.json that says at how many tokens texts are cut; from 2^30 on nowhere."""
    state = json.loads(tokenizer)
    state["truncation"] = None
    if length < 1 << 30:
        state["truncation"] = {
            "direction": "Right", "max_length": length, "strategy": "LongestFirst", "stride": 0
        }  # fmt: skip
    return json.dumps(state, indent=2, ensure_ascii=False)


def as_transformers_reads_it(path: Path, config: dict[str, Any]) -> str:
    """Return the text of a tokenizer.json, with what tokenizer_config.json says beside it.

    transformers makes BERT's normalizer anew from those settings where the two files differ.

    Raises:
        ValueError: texts are cut on the left.
    """
    text = path.read_text(encoding="utf-8")
    if "truncation_side" not in config and _CUTS_LEFT.search(text):
        raise ValueError("truncation.direction is 'Left', wanted 'Right'")
    if str(config.get("tokenizer_class")).removesuffix("Fast") not in _WITH_BERTS_NORMALIZER:
        return text
    found = _BERTS_NORMALIZER.search(text)
    if found is None:
        return text
    given = {new: config[old] for old, new in _OF_BERTS_NORMALIZER.items() if old in config}
    normalizer = json.loads(found[1])
    if all(normalizer.get(key) == value for key, value in given.items()):
        return text
    return text[: found.start(1)] + json.dumps(normalizer | given) + text[found.end(1) :]


def normalizer_settings(tokenizer: str) -> dict[str, Any]:
    """Return the settings of BERT's normalizer by tokenizer_config.json's names.

    Empty where it has another normalizer.
    """
    found = _BERTS_NORMALIZER.search(tokenizer)
    normalizer = json.loads(found[1]) if found else {}
    return {old: normalizer[new] for old, new in _OF_BERTS_NORMALIZER.items() if new in normalizer}


def from_vocabulary(path: Path, config_path: Path) -> Tokenizer:
    """Build BERT's tokenizer from a vocab.txt and what tokenizer_config.json says, if it is there.

    Raises:
        ValueError: the vocabulary lacks a special token.
    """
    config: dict[str, Any] = {}
    if config_path.is_file():
        config = read_state(config_path)
    words = path.read_text(encoding="utf-8").split("\n")
    while words and not words[-1]:
        words.pop()
    vocab = {word.rstrip("\r"): index for index, word in enumerate(words)}
    unknown, cls, sep = (
        str(config.get(key) or default)
        for key, default in (("unk_token", "[UNK]"), ("cls_token", "[CLS]"), ("sep_token", "[SEP]"))
    )
    for token in (unknown, cls, sep):
        if token not in vocab:
            raise ValueError(f"the vocabulary lacks {token}")
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer(WordPiece(vocab, unk_token=unknown, max_input_chars_per_word=100))
    tokenizer.normalizer = BertNormalizer(
        lowercase=bool(config.get("do_lower_case", True)),
        strip_accents=config.get("strip_accents"),
        handle_chinese_chars=bool(config.get("tokenize_chinese_chars", True)),
    )
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(cls, vocab[cls]), (sep, vocab[sep])],
    )
    special = [unknown, cls, sep, str(config.get("pad_token") or "[PAD]")]
    special.append(str(config.get("mask_token") or "[MASK]"))
    tokenizer.add_special_tokens([token for token in special if token in vocab])
    return tokenizer
