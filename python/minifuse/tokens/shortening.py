"""Cutting a very long text before it is tokenised, so that its length costs nothing.

Only the first max_seq_length tokens of a text count, but a tokenizer works through all of it.
BERT's tokenizer treats characters one by one (Devlin et al. 2019, tokenization.py): white space
separates words; punctuation and Chinese characters are words by themselves; control characters, and
accents where they are stripped, vanish; all others build words, and a word of more than 100
characters is one unknown token. So the class of each character tells where a text may be cut, how
many tokens it has at least before that place, and what of an endless word is enough. The classes
are asked of the tokenizer itself, once for each character, and never guessed.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

__all__ = ["TextShortener"]

# Classes of characters. _UNKNOWN: none of the others for certain, or not asked yet.
_UNASKED, _SPACE, _ALONE, _WORD, _REMOVED, _UNKNOWN = b"\0 iwru"

# A token for certain: a character that is a word by itself, or a word with one letter that stays.
_SURE_TOKEN = re.compile(rb"i|w[wru]*")
# Runs that may be shortened: the rest of an endless word, and removed characters in a row.
# Each begins where its run begins, so that a run is looked at once.
_LONG_WORD = re.compile(rb"(?<![wr])[wr]{512,}")
_LONG_REMOVED = re.compile(rb"(?<!r)r{512,}")
# New characters whose class is asked for one text: the cost of a text that holds every character.
_MOST_ASKED = 4096


class TextShortener:
    """Shortens texts for one tokenizer.

    Args:
        backend: a ``tokenizers.Tokenizer``. Texts are shortened only where it is BERT's.
        state: its tokenizer.json.
    """

    def __init__(self, backend: Tokenizer, state: dict[str, Any]) -> None:
        kinds = [(state.get(part) or {}).get("type") for part in ("normalizer", "pre_tokenizer")]
        added = state.get("added_tokens") or []
        # Added tokens are searched for in the text itself. One with white space could lie across a
        # cut, and one that is searched for in the normalised text could lie anywhere.
        self._is_active = (
            kinds == ["BertNormalizer", "BertPreTokenizer"]
            and state["model"].get("type") == "WordPiece"
            and not any(one["normalized"] or re.search(r"\s", one["content"]) for one in added)
        )
        self._backend = backend
        self._added = [one["content"] for one in added if one["content"]]
        self._reach = max(map(len, self._added), default=0)
        # True where every place at which an added token stands in a text is one token: none lies in
        # another or begins in one, and none needs a word's end around it.
        self._added_are_sure = (
            self._is_active
            and len(self._added) <= 32
            and self._reach <= 64
            and not any(one["single_word"] for one in added)
            and not any(
                one.startswith(other[begin:]) or (one != other and one in other)
                for one in self._added
                for other in self._added
                for begin in range(len(other))
                if begin or one != other
            )
        )
        self._longest_word = int(state["model"].get("max_input_chars_per_word") or 0)
        # One byte for each code point; pages that are never asked about take no memory.
        self._classes: npt.NDArray[np.uint8] = np.zeros(0x110000, np.uint8)

    def shorten(self, text: str, num_tokens: int) -> str:
        """Return a text that has the same first num_tokens tokens as this one.

        It is the text itself, or a prefix of it in which endless words and rows of characters that
        the tokenizer removes are shorter.
        """
        size = 16 * num_tokens
        while self._is_active and size < len(text):
            head = self._cut(text[:size], num_tokens)
            if head is not None:
                return head
            size *= 4
        return self._squeezed(text, self._classes_of(text)) if self._is_active else text

    def _cut(self, head: str, num_tokens: int) -> str | None:
        """The part of head that ends after num_tokens tokens or more; None where it has fewer."""
        classes = self._classes_of(head)
        for count, token in enumerate(_SURE_TOKEN.finditer(classes)):
            # One more than is wanted: the last may be a word that goes on behind the cut.
            if count <= num_tokens:
                continue
            if token.start() + self._reach > len(head):
                return None  # an added token may begin before the end of head and end behind it
            # Behind the last character that no token goes across.
            place = max(
                classes.rfind(b" ", 0, token.start()), classes.rfind(b"i", 0, token.start())
            )
            return self._squeezed(head[: place + 1], classes[: place + 1])
        return None

    def signature(self) -> tuple[Any, ...]:
        """Return what matters here of the tokenizer and may be changed in place by its owner."""
        backend = self._backend
        size = backend.get_vocab_size(with_added_tokens=True)
        return size, str(backend.normalizer), str(backend.pre_tokenizer)

    def _classes_of(self, text: str) -> bytes:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        classes = self._classes[codes]
        if (classes == _UNASKED).any():
            new = np.unique(codes[classes == _UNASKED])
            for code in new[:_MOST_ASKED].tolist():
                self._classes[code] = self._ask(chr(code))
            classes = self._classes[codes]
            classes[classes == _UNASKED] = _UNKNOWN
        for one in self._added:
            place = text.find(one)
            while place >= 0:
                classes[place : place + len(one)] = _UNKNOWN
                if self._added_are_sure:  # one token, which ends here
                    classes[place + len(one) - 1] = _ALONE
                place = text.find(one, place + 1)
        return classes.tobytes()

    def _ask(self, character: str) -> int:
        """The class of a character, by what becomes of it between two letters."""
        if "\ud800" <= character <= "\udfff":
            return _UNKNOWN
        normalizer: Any = self._backend.normalizer
        pre_tokenizer: Any = self._backend.pre_tokenizer
        normalized = normalizer.normalize_str(f"x{character}x")
        words = [word for word, _ in pre_tokenizer.pre_tokenize_str(normalized)]
        if words == ["xx"]:
            return _REMOVED
        if words == ["x", "x"]:
            return _SPACE
        if len(words) == 3 and words[0] == words[2] == "x" and len(words[1]) == 1:
            return _ALONE
        return _WORD if len(words) == 1 and len(words[0]) >= 3 else _UNKNOWN

    def _squeezed(self, text: str, classes: bytes) -> str:
        """The text without what makes no difference to its tokens."""
        whole = text
        if self._longest_word:
            kept = self._longest_word + 1
            text, classes = self._without(text, classes, _LONG_WORD, _WORD, kept)
        text = self._without(text, classes, _LONG_REMOVED, _REMOVED, 1)[0]
        # Shortening may have brought the parts of an added token together.
        return text if all(text.count(one) == whole.count(one) for one in self._added) else whole

    def _without(
        self, text: str, classes: bytes, runs: re.Pattern[bytes], counted: int, num_kept: int
    ) -> tuple[str, bytes]:
        """Text and classes with each run cut behind its num_kept-th character of class ``counted``.

        A run of a word keeps more characters than the longest word that is looked up: it is one
        unknown token, as it was.
        """
        text_parts, class_parts, done = [], [], 0
        for run in runs.finditer(classes):
            places = np.flatnonzero(np.frombuffer(run[0], np.uint8) == counted)
            if len(places) <= num_kept:
                continue
            begin, end = run.start() + int(places[num_kept - 1]) + 1, run.end()
            text_parts.append(text[done:begin])
            class_parts.append(classes[done:begin])
            done = end
        text_parts.append(text[done:])
        class_parts.append(classes[done:])
        return "".join(text_parts), b"".join(class_parts)
