"""Text to token ids, exactly as the Hugging Face ``tokenizers`` package gives them.

The tokenizer's own truncation and padding are switched off; a text is cut here, at max_seq_length
with the special tokens included, as truncation on the right does it: the tokens of the text are
dropped from the end and the suffix ([SEP]) stays. Two texts become one row (pairs.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from minifuse.native import core
from minifuse.tokens.native import NativeTokenizer, native_tokenizer
from minifuse.tokens.pairs import Pair, PairLayout
from minifuse.tokens.token_batch import MAX_TOKENS, TokenBatch
from minifuse.tokens.tokenizer_files import (
    TOKENIZER_CONFIG,
    as_transformers_reads_it,
    from_vocabulary,
    guarded,
    is_of_tokenizers,
    parsed,
    read_state,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["LoneSurrogate", "TextTokenizer", "surrogate_of"]

# tokenizers' thread pool does not survive a fork. It would notice, work serially and print a
# warning in every child; told beforehand, it is silent.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        after_in_child=lambda: os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    )

# No vocabulary comes near it.
_MOST_TOKENS = 1 << 24
T = TypeVar("T")


class LoneSurrogate(ValueError):
    """A text is not valid Unicode.

    Attributes:
        index: of the text among those that were given.
        character: the place in it.
    """

    def __init__(self, index: int, character: int) -> None:
        super().__init__(
            f"sentences[{index}] holds a lone surrogate at character {character}: it is not valid "
            "Unicode; decode it with errors='replace'"
        )
        self.index = index
        self.character = character


def surrogate_of(text: str | Pair) -> int | None:
    """Return the place of the first lone surrogate of a text, or of one of a pair's; None: none."""
    for part in (text,) if isinstance(text, str) else text:
        try:
            part.encode("utf-8")
        except UnicodeEncodeError as error:
            return error.start
    return None


class TextTokenizer:
    """A tokenizer.json (or vocab.txt) with its limits.

    The native core gives the ids where it can, and the ``tokenizers`` package for other tokenizers.

    Args:
        tokenizer: any ``tokenizers.Tokenizer``, which is copied, or the text of a tokenizer.json.
        do_lower_case: lower the text first, as sentence_bert_config.json may ask.
        has_token_types: whether the second text of a pair has tokens of another type.
        adds_special: whether texts get the tokenizer's special tokens.
        folder: that it was read from; None: of none.

    Attributes:
        vocab_size: one more than the largest id.
        suffix_length: special tokens behind the text's own.
        native: the tokenizer in the core; None: the package does all.
        is_original: False once hand_out has given the tokenizer to somebody who may change it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | str,
        do_lower_case: bool = False,
        has_token_types: bool = False,
        adds_special: bool = True,
        folder: Path | None = None,
    ) -> None:
        self.folder = folder
        self._json = tokenizer if isinstance(tokenizer, str) else tokenizer.to_str()
        state = parsed(self._json)
        # Before the package sees it, which makes room for every number up to the largest.
        self.vocab_size = _largest_id(state) + 1
        self.has_token_types = has_token_types
        self.is_original = True
        self._do_lower_case = do_lower_case
        self._adds_special = adds_special
        self.native = native_tokenizer(state)
        if self.native is not None and self.native.leaves_texts:
            # Now: an import within a signal's handler, or in the child of a fork, may meet one that
            # another thread had begun.
            import tokenizers  # noqa: F401
        if self.native is None:
            before, after = self._special_of_package()
        elif adds_special:
            before, after = self.native.prefix, self.native.suffix
        else:
            before, after = [], []
        for value in (*before, *after):
            _check_id(value)
        self._prefix, self._suffix = before, after
        self.suffix_length = len(after)

    @property
    def suffix(self) -> list[int]:
        """Ids of the special tokens behind a text's own."""
        return list(self._suffix)

    def _special_of_package(self) -> tuple[list[int], list[int]]:
        """Ids that the package puts before and behind a text."""
        encoding = self._guarded(["a"], lambda: self._encoding("a"))
        ids, mask = encoding.ids, encoding.special_tokens_mask
        own = [place for place, is_special in enumerate(mask) if not is_special] or [len(ids)]
        return ids[: own[0]], ids[own[-1] + 1 :]

    @property
    def backend(self) -> Tokenizer:
        """The ``tokenizers.Tokenizer``, its truncation and padding switched off, to read only."""
        kept = self.__dict__.get("_backend")
        if kept is None:
            from tokenizers import Tokenizer  # few models ask for it

            made = self._guarded([], lambda: Tokenizer.from_str(self._json))
            made.no_truncation()
            made.no_padding()
            # Threads may make one each; the first is kept, or what somebody changes in it would be
            # lost. A lock could be held for ever: in the child of a fork, by a signal's handler.
            kept = self.__dict__.setdefault("_backend", made)
        return cast("Tokenizer", kept)

    def hand_out(self) -> Tokenizer:
        """Return the backend for somebody who may change it: from now on it gives all ids."""
        backend = self.backend
        self.is_original = False
        self.native = None
        return backend

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
        tokenizer: Tokenizer | str
        if path.is_file():
            # Static models are read by the tokenizers package alone, which knows no other file.
            beside = folder / TOKENIZER_CONFIG
            config = read_state(beside) if adds_special and beside.is_file() else {}
            tokenizer = guarded(path, lambda: as_transformers_reads_it(path, config))
        elif (path := folder / "vocab.txt").is_file():
            tokenizer = guarded(path, lambda: from_vocabulary(path, folder / TOKENIZER_CONFIG))
        else:
            raise FileNotFoundError(f"{folder}: neither tokenizer.json nor vocab.txt is there")
        settings = (do_lower_case, has_token_types, adds_special, folder)
        return guarded(path, lambda: cls(tokenizer, *settings))

    # ---- texts to ids -----------------------------------------------------------------------

    def encode(
        self, texts: Sequence[str | Pair], max_seq_length: int, num_threads: int | None = None
    ) -> TokenBatch:
        """Token ids of every text or pair, cut at max_seq_length, on at most num_threads threads.

        None takes all CPUs.

        Raises:
            LoneSurrogate: in what was read of an element: as much as the tokens that are kept take.
        """
        if all(isinstance(text, str) for text in texts):
            return self._encode_texts(texts, max_seq_length, num_threads)
        return self._encode_pairs(texts, max_seq_length, num_threads)

    def _encode_texts(
        self, texts: Sequence[Any], max_seq_length: int, num_threads: int | None
    ) -> TokenBatch:
        if self._do_lower_case:
            texts = [text.lower() for text in texts]
        native = self.native  # another thread may take it away
        if native is None:
            whole = self._whole_ids(texts, num_threads, self._adds_special)
            return _packed([self._cut(ids, max_seq_length) for ids in whole])
        special = self._prefix, self._suffix
        batch, foreign = self._ids_by_core(native, texts, special, max_seq_length, num_threads)
        if not foreign:
            return batch
        rows = batch.rows()
        left = [texts[place] for place in foreign]
        whole = self._whole_ids(left, num_threads, self._adds_special, texts)
        for place, ids in zip(foreign, whole, strict=True):
            rows[place] = self._cut(ids, max_seq_length)
        return _packed(rows)

    def _ids_by_core(
        self,
        native: NativeTokenizer,
        texts: Sequence[str],
        special: tuple[list[int], list[int]],
        max_length: int,
        num_threads: int | None,
        given: Sequence[str | Pair] | None = None,
    ) -> tuple[TokenBatch, list[int]]:
        """Ids between two rows of special ones; texts that only the package treats have none."""
        encoded: Any = native.encoder.encode(
            texts,
            prefix=special[0],
            suffix=special[1],
            max_length=max_length,
            num_threads=num_threads or core.default_num_threads(),
        )
        if encoded is None:
            self._refuse_surrogates(texts if given is None else given)
        ids, seqlens, truncated, foreign = encoded
        return TokenBatch(ids, seqlens, truncated), foreign

    def _encode_pairs(
        self, texts: Sequence[str | Pair], max_seq_length: int, num_threads: int | None
    ) -> TokenBatch:
        """Texts and pairs; a text that is in many pairs, as a query is, becomes tokens once."""
        # Asked for each call: the caller may change the tokenizer.
        layout = self._guarded([], lambda: PairLayout.of(self.backend))
        for value in (*layout.before, *layout.between, *layout.after):
            _check_id(value)
        pairs = [text for text in texts if not isinstance(text, str)]
        whole = list(dict.fromkeys(text for pair in pairs for text in pair))
        ids_of = self._ids_of(whole, max_seq_length, num_threads, texts)
        # The longer one of two texts that are both too long may keep a token more, so these are
        # counted to their end.
        uncounted = {
            text: None
            for pair in pairs
            if min(len(ids_of[text]) for text in pair) > max_seq_length
            for text in pair
        }
        ids_of |= self._ids_of(list(uncounted), MAX_TOKENS - 1, num_threads, texts)
        alone = [text for text in texts if isinstance(text, str)]
        own = iter(self._encode_texts(alone, max_seq_length, num_threads).rows())
        rows: list[tuple[list[int], list[int], bool]] = []
        for text in texts:
            if isinstance(text, str):
                ids, was_cut = next(own)
                rows.append((ids, [0] * len(ids), was_cut))
            else:
                rows.append(layout.cut(ids_of[text[0]], ids_of[text[1]], max_seq_length))
        batch = _packed([(ids, was_cut) for ids, _, was_cut in rows])
        if self.has_token_types:
            types = chain.from_iterable(types for _, types, _ in rows)
            batch.token_types = np.fromiter(types, np.int32, len(batch.ids))
        return batch

    def _ids_of(
        self, texts: list[str], limit: int, num_threads: int | None, given: Sequence[str | Pair]
    ) -> dict[str, list[int]]:
        """Text -> its ids without special tokens, or more of them than the limit.

        given: what the caller gave, which an error names.
        """
        lowered = [text.lower() for text in texts] if self._do_lower_case else texts
        native = self.native
        if native is None:
            whole = self._whole_ids(lowered, num_threads, False, given)
            return dict(zip(texts, whole, strict=True))
        batch, foreign = self._ids_by_core(native, lowered, ([], []), limit + 1, num_threads, given)
        parts = [ids for ids, _ in batch.rows()]
        whole = self._whole_ids([lowered[place] for place in foreign], num_threads, False, given)
        for place, ids in zip(foreign, whole, strict=True):
            parts[place] = ids
        return dict(zip(texts, parts, strict=True))

    def _whole_ids(
        self,
        texts: Sequence[str],
        num_threads: int | None,
        with_special: bool,
        given: Sequence[str | Pair] | None = None,
    ) -> list[list[int]]:
        """Ids that the package gives for whole texts."""
        encode = self.backend.encode_batch_fast
        # tokenizers has one pool of a thread for each CPU and no setting for it; but a call cannot
        # use more of them than it has texts.
        size = len(texts)
        if num_threads is not None and num_threads < _num_cpus():
            size = num_threads
        return self._guarded(
            texts if given is None else given,
            lambda: [
                encoding.ids
                for begin in range(0, len(texts), max(1, size))
                for encoding in encode(texts[begin : begin + size], add_special_tokens=with_special)
            ],
        )

    def _cut(self, ids: list[int], max_seq_length: int) -> tuple[list[int], bool]:
        """The ids that stay, and whether there were more."""
        if len(ids) <= max_seq_length:
            return ids, False
        if max_seq_length < len(self._prefix) + len(self._suffix):
            return ids[:max_seq_length], True
        suffix = self.suffix_length
        return ids[: max_seq_length - suffix] + ids[len(ids) - suffix :], True

    def _guarded(self, texts: Sequence[str | Pair], call: Callable[[], T]) -> T:
        """call(), its errors as ValueErrors that say which text or what is wrong."""
        try:
            return call()
        except (TypeError, UnicodeEncodeError):
            self._refuse_surrogates(texts)
            raise
        except BaseException as error:
            if not is_of_tokenizers(error):
                raise
            raise ValueError(f"the tokenizers package refuses: {error}") from error

    @staticmethod
    def _refuse_surrogates(texts: Sequence[str | Pair]) -> None:
        for index, text in enumerate(texts):
            character = surrogate_of(text)
            if character is not None:
                raise LoneSurrogate(index, character)


def _packed(rows: list[tuple[list[int], bool]]) -> TokenBatch:
    """The batch of sentences given by their ids and whether each was cut."""
    seqlens = np.fromiter((len(ids) for ids, _ in rows), np.int64, len(rows))
    return TokenBatch(
        np.fromiter(chain.from_iterable(ids for ids, _ in rows), np.int32, int(seqlens.sum())),
        seqlens,
        np.array([was_cut for _, was_cut in rows], np.bool_),
    )


def _num_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_id(value: Any) -> None:
    if type(value) is not int or not 0 <= value < _MOST_TOKENS:
        raise ValueError(f"a token has the id {value!r:.40}, wanted 0..{_MOST_TOKENS - 1}")


def _largest_id(state: dict[str, Any]) -> int:
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
        _check_id(value)
        largest = max(largest, value)
    return largest
