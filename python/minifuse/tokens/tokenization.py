"""Text to token ids, exactly as the Hugging Face ``tokenizers`` package gives them.

The tokenizer's own truncation and padding are switched off; a text is cut here, at max_seq_length
with the special tokens included, as truncation on the right does it: the tokens of the text are
dropped from the end and the suffix ([SEP]) stays. Two texts become one row (pairs.py).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from minifuse.tokens.pairs import Pair, PairLayout
from minifuse.tokens.shortening import TextShortener

__all__ = ["TextTokenizer", "TokenBatch", "read_state"]

# tokenizers' thread pool does not survive a fork. It would notice, work serially and print a
# warning in every child; told beforehand, it is silent.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        after_in_child=lambda: os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    )

# A text longer than this many characters per token of the limit is cut before tokenising, if the
# cut provably changes no id.
_LONG_CHARACTERS_PER_TOKEN = 32
_MAX_TOKENS = np.iinfo(np.int32).max
# No vocabulary comes near it.
_MOST_TOKENS = 1 << 24
T = TypeVar("T")


class TokenBatch:
    """Token ids of a batch, packed.

    Attributes:
        ids: int32 [total_tokens].
        seqlens: int64 [batch].
        truncated: bool [batch], whether the text was cut.
        token_types: int32 [total_tokens]; None: all are 0.
    """

    __slots__ = ("ids", "seqlens", "token_types", "truncated")

    def __init__(
        self,
        ids: npt.NDArray[np.int32],
        seqlens: npt.NDArray[np.int64],
        truncated: npt.NDArray[np.bool_],
        token_types: npt.NDArray[np.int32] | None = None,
    ) -> None:
        self.ids = ids
        self.seqlens = seqlens
        self.truncated = truncated
        self.token_types = token_types

    def cu_seqlens(self) -> npt.NDArray[np.int32]:
        """int32 [batch + 1]: where each sentence begins."""
        if len(self.seqlens) == 1:
            return np.array((0, len(self.ids)), np.int32)
        offsets = np.zeros(len(self.seqlens) + 1, np.int64)
        np.cumsum(self.seqlens, out=offsets[1:])
        if offsets[-1] > _MAX_TOKENS:
            raise ValueError(f"{offsets[-1]} tokens in one batch, wanted at most {_MAX_TOKENS}")
        return offsets.astype(np.int32)

    def types(self) -> npt.NDArray[np.int32]:
        """The type of each token, int32 [total_tokens]."""
        return np.zeros_like(self.ids) if self.token_types is None else self.token_types

    def sorted_by_length(self) -> tuple[TokenBatch, npt.NDArray[np.intp]]:
        """The same sentences, longest first, and the place each had before."""
        order = np.argsort(-self.seqlens, kind="stable")
        starts = self.cu_seqlens()[:-1].astype(np.int64)
        lengths = self.seqlens[order]
        # The index of each token: its sentence's start, plus its place in the sentence.
        first = np.repeat(starts[order] - (np.cumsum(lengths) - lengths), lengths)
        place = first + np.arange(len(self.ids))
        types = None if self.token_types is None else self.token_types[place]
        return TokenBatch(self.ids[place], lengths, self.truncated[order], types), order


class TextTokenizer:
    """A tokenizer.json (or vocab.txt) with its limits.

    Args:
        tokenizer: any ``tokenizers.Tokenizer``; a copy is kept.
        do_lower_case: lower the text first, as sentence_bert_config.json may ask.
        has_token_types: whether the second text of a pair has tokens of another type.
        adds_special: whether texts get the tokenizer's special tokens.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        do_lower_case: bool = False,
        has_token_types: bool = False,
        adds_special: bool = True,
    ) -> None:
        text = tokenizer.to_str()
        state = json.loads(text)
        self.vocab_size = _largest_id("tokenizer", state) + 1
        """One more than the largest id."""
        self.backend = Tokenizer.from_str(text)
        self.backend.no_truncation()
        self.backend.no_padding()
        self._do_lower_case = do_lower_case
        self.has_token_types = has_token_types
        self._adds_special = adds_special
        mask = self._guarded(["a"], lambda: self._encoding("a").special_tokens_mask)
        self.suffix_length = int(next(iter(np.flatnonzero(np.array(mask[::-1]) == 0)), len(mask)))
        """Special tokens behind the text's own."""
        self._num_special = sum(mask)
        self._shortener = TextShortener(self.backend, state)
        self._signature = self._shortener.signature()

    def _encoding(self, text: str) -> Any:
        return self.backend.encode(text, add_special_tokens=self._adds_special)

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        do_lower_case: bool = False,
        has_token_types: bool = False,
        adds_special: bool = True,
    ) -> TextTokenizer:
        """Read tokenizer.json, or build a WordPiece tokenizer from vocab.txt.

        Raises:
            FileNotFoundError: neither file is there.
            ValueError: the file is damaged.
        """
        path = folder / "tokenizer.json"
        if path.is_file():
            # Ids first: the package makes room for every number up to the largest.
            _largest_id(str(path), read_state(path))
            tokenizer = _guarded(path, lambda: Tokenizer.from_file(str(path)))
        elif (path := folder / "vocab.txt").is_file():
            tokenizer = _guarded(path, lambda: _from_vocab(path, folder / "tokenizer_config.json"))
        else:
            raise FileNotFoundError(f"{folder}: neither tokenizer.json nor vocab.txt is there")
        return _guarded(path, lambda: cls(tokenizer, do_lower_case, has_token_types, adds_special))

    def shorten(self, text: str, max_seq_length: int) -> str:
        """Return a text with the same first max_seq_length ids, whose length is bounded if it can
        be.

        See shortening.py; texts of other tokenizers than BERT's stay as they are.
        """
        if self._shortener.signature() != self._signature:  # changed in place by the caller
            self._watch()
        # One more, so that what was cut can be told from what just fits.
        return self._shortener.shorten(text, max_seq_length + 1)

    def _watch(self) -> None:
        self._shortener = TextShortener(self.backend, json.loads(self.backend.to_str()))
        self._signature = self._shortener.signature()

    def encode(
        self, texts: Sequence[str | Pair], max_seq_length: int, num_threads: int | None = None
    ) -> TokenBatch:
        """Token ids of every text or pair, cut at max_seq_length, on at most num_threads threads.

        None leaves the number to tokenizers, which takes all CPUs.

        Raises:
            ValueError: an element cannot be encoded as UTF-8 (a lone surrogate).
        """
        if len(texts) == 1 and isinstance(texts[0], str):
            return self._encode_one(self._prepared(texts[0], max_seq_length), max_seq_length)
        if all(isinstance(text, str) for text in texts):
            prepared = [self._prepared(str(text), max_seq_length) for text in texts]
            lists = self._guarded(prepared, lambda: self._encode_batch(prepared, num_threads))
            return self._pack(lists, max_seq_length)
        return self._encode_pairs(texts, max_seq_length, num_threads)

    def _encode_pairs(
        self, texts: Sequence[str | Pair], max_seq_length: int, num_threads: int | None
    ) -> TokenBatch:
        """Texts and pairs; a text that is in many pairs, as a query is, becomes tokens once."""
        # Asked for each call: the caller may change the tokenizer.
        layout = self._guarded([], lambda: PairLayout.of(self.backend))
        pairs = [text for text in texts if not isinstance(text, str)]
        whole = list(dict.fromkeys(text for pair in pairs for text in pair))
        prepared = {text: self._prepared(text, max_seq_length) for text in whole}
        ids_of = self._guarded(texts, lambda: self._without_special(prepared, num_threads))
        # The longer one of two texts that are both too long may keep a token more, so these are
        # counted to their end.
        uncounted = {
            text: self._lowered(text)
            for pair in pairs
            if min(len(ids_of[text]) for text in pair) > max_seq_length
            for text in pair
        }
        ids_of |= self._without_special(uncounted, num_threads)
        alone = iter(self._alone(texts, max_seq_length, num_threads))
        rows: list[tuple[list[int], list[int], bool]] = []
        for text in texts:
            if isinstance(text, str):
                rows.append(next(alone))
            else:
                rows.append(layout.cut(ids_of[text[0]], ids_of[text[1]], max_seq_length))
        seqlens = np.fromiter((len(ids) for ids, _, _ in rows), np.int64, len(rows))
        total = int(seqlens.sum())
        return TokenBatch(
            np.fromiter(chain.from_iterable(ids for ids, _, _ in rows), np.int32, total),
            seqlens,
            np.array([was_cut for _, _, was_cut in rows], np.bool_),
            np.fromiter(chain.from_iterable(types for _, types, _ in rows), np.int32, total)
            if self.has_token_types
            else None,
        )

    def _without_special(
        self, prepared: dict[str, str], num_threads: int | None
    ) -> dict[str, list[int]]:
        """Text -> the ids of what it was made into, without special tokens."""
        texts = list(prepared.values())
        return dict(zip(prepared, self._encode_batch(texts, num_threads, False), strict=True))

    def _alone(
        self, texts: Sequence[str | Pair], max_seq_length: int, num_threads: int | None
    ) -> Iterator[tuple[list[int], list[int], bool]]:
        """Ids, types and whether it was cut, of each element that is one text."""
        prepared = [self._prepared(t, max_seq_length) for t in texts if isinstance(t, str)]
        lists = self._guarded(prepared, lambda: self._encode_batch(prepared, num_threads))
        for whole in lists:
            ids = self._cut(whole, max_seq_length)
            yield ids, [0] * len(ids), len(whole) > max_seq_length

    def _lowered(self, text: str) -> str:
        return text.lower() if self._do_lower_case else text

    def _prepared(self, text: str, max_seq_length: int) -> str:
        text = self._lowered(text)  # before a cut: a letter's may depend on the next one
        if len(text) > _LONG_CHARACTERS_PER_TOKEN * max_seq_length:
            text = self.shorten(text, max_seq_length)
        return text

    def _encode_one(self, text: str, max_seq_length: int) -> TokenBatch:
        # A query pays for every call of NumPy.
        whole = self._guarded([text], lambda: self._encoding(text).ids)
        ids = np.array(self._cut(whole, max_seq_length), np.int32)
        was_cut = np.array((len(whole) > max_seq_length,))
        return TokenBatch(ids, np.array((len(ids),), np.int64), was_cut)

    def _encode_batch(
        self, texts: list[str], num_threads: int | None, with_special: bool | None = None
    ) -> list[list[int]]:
        if with_special is None:
            with_special = self._adds_special
        # tokenizers has one pool of a thread for each CPU and no setting for it; but a call cannot
        # use more of them than it has texts.
        size = len(texts)
        if num_threads is not None and num_threads < _num_cpus():
            size = num_threads
        return [
            encoding.ids
            for begin in range(0, len(texts), max(1, size))
            for encoding in self.backend.encode_batch_fast(
                texts[begin : begin + size], add_special_tokens=with_special
            )
        ]

    def _pack(self, lists: list[list[int]], max_seq_length: int) -> TokenBatch:
        seqlens = np.fromiter(map(len, lists), np.int64, len(lists))
        truncated = seqlens > max_seq_length
        for index in np.flatnonzero(truncated):
            lists[index] = self._cut(lists[index], max_seq_length)
            seqlens[index] = len(lists[index])
        ids = np.fromiter(chain.from_iterable(lists), np.int32, int(seqlens.sum()))
        return TokenBatch(ids, seqlens, truncated)

    def _cut(self, ids: list[int], max_seq_length: int) -> list[int]:
        if len(ids) <= max_seq_length:
            return ids
        if max_seq_length < self._num_special:
            return ids[:max_seq_length]
        suffix = self.suffix_length
        return ids[: max_seq_length - suffix] + ids[len(ids) - suffix :]

    def _guarded(self, texts: Sequence[str | Pair], call: Callable[[], T]) -> T:
        """call(), its errors as ValueErrors that say which text or what is wrong."""
        try:
            return call()
        except (TypeError, UnicodeEncodeError):
            self._refuse_surrogates(texts)
            raise
        except BaseException as error:
            if not _is_of_tokenizers(error):
                raise
            raise ValueError(f"the tokenizer cannot encode these texts: {error}") from error

    @staticmethod
    def _refuse_surrogates(texts: Sequence[str | Pair]) -> None:
        pairs = ((text,) if isinstance(text, str) else text for text in texts)
        for index, part in ((index, part) for index, pair in enumerate(pairs) for part in pair):
            try:
                part.encode("utf-8")
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"sentences[{index}] holds a lone surrogate at character {error.start}: it is "
                    "not valid Unicode; decode it with errors='replace'"
                ) from error


def _num_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _is_of_tokenizers(error: BaseException) -> bool:
    """Return whether the tokenizers package raised it: Exception, or a panic of its Rust code."""
    return type(error) is Exception or type(error).__name__ == "PanicException"


def _guarded(path: Path, call: Callable[[], T]) -> T:
    """call(), which reads path; whatever is wrong with the file becomes a ValueError."""
    try:
        return call()
    except (OSError, KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:
        if not (_is_of_tokenizers(error) or isinstance(error, (ValueError, TypeError, KeyError))):
            raise
        raise ValueError(f"{path}: not a tokenizer ({error})") from error


def read_state(path: Path) -> dict[str, Any]:
    """Return the object of one of a tokenizer's files.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{path}: not a tokenizer (nested too deeply)") from error
    except ValueError as error:
        raise ValueError(f"{path}: not a tokenizer ({error})") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path}: not a tokenizer (wanted a JSON object)")
    return state


def _largest_id(source: str, state: dict[str, Any]) -> int:
    """The largest token id of a tokenizer.json; -1 where there is none.

    Raises:
        ValueError: an id that is no integer or beyond what any vocabulary has.
    """
    model = state.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    ids: list[Any] = []
    if isinstance(vocab, dict):
        ids = list(vocab.values())
    elif isinstance(vocab, list):  # pieces with their scores, in the order of their ids
        ids = [len(vocab) - 1] if vocab else []
    added = state.get("added_tokens") or []
    if isinstance(added, list):
        ids += [one.get("id") for one in added if isinstance(one, dict)]
    largest = -1
    for value in ids:
        if type(value) is not int or not 0 <= value < _MOST_TOKENS:
            raise ValueError(
                f"{source}: not a tokenizer (a token has the id {value!r:.40}, wanted 0.."
                f"{_MOST_TOKENS - 1})"
            )
        largest = max(largest, value)
    return largest


def _from_vocab(path: Path, config_path: Path) -> Tokenizer:
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
