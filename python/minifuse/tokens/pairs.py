"""Pairs of texts as one row of tokens: [CLS] a [SEP] b [SEP], or as a tokenizer has it, with the
type of each token, shortened longest text first as transformers does it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["Pair", "PairLayout", "shared_lengths"]

Pair = tuple[str, str]


def shared_lengths(first: int, second: int, room: int) -> tuple[int, int]:
    """Tokens that two texts keep where both have to fit (the strategy "longest_first").

    The longer text gives tokens away until both are equal; then both do, and of an odd number the
    one that was longer keeps the last.
    """
    if first + second <= room:
        return first, second
    short, long = min(first, second), max(first, second)
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short, long = room // 2, room - room // 2
    return (short, long) if first <= second else (long, short)


class PairLayout(NamedTuple):
    """The place that a tokenizer gives to each of two texts.

    Attributes:
        before, between, after: ids of the special tokens.
        types: of the tokens before, of the first text, between, of the second text, and after.
    """

    before: list[int]
    between: list[int]
    after: list[int]
    types: tuple[list[int], int, list[int], int, list[int]]

    @classmethod
    def of(cls, backend: Any) -> PairLayout:
        """Return the layout of a ``tokenizers.Tokenizer``.

        Raises:
            ValueError: it does not put one text behind the other.
        """
        encoding = backend.encode("a", "a")
        ids, types, texts = encoding.ids, encoding.type_ids, encoding.sequence_ids
        if 0 not in texts or 1 not in texts:
            raise ValueError("the tokenizer joins no two texts: its template lacks a pair")
        first, second = texts.index(0), texts.index(1)
        first_end, second_end = first + texts.count(0), second + texts.count(1)
        layout = cls(
            before=ids[:first],
            between=ids[first_end:second],
            after=ids[second_end:],
            types=(
                types[:first],
                types[first],
                types[first_end:second],
                types[second],
                types[second_end:],
            ),
        )
        if layout.join(ids[first:first_end], ids[second:second_end]) != (ids, types):
            raise ValueError("the tokenizer's template does not put two texts one after the other")
        return layout

    @property
    def num_special(self) -> int:
        """Tokens that belong to neither text."""
        return len(self.before) + len(self.between) + len(self.after)

    def join(self, first: list[int], second: list[int]) -> tuple[list[int], list[int]]:
        """Ids and types of a pair from the ids of its texts."""
        before, of_first, between, of_second, after = self.types
        ids = self.before + first + self.between + second + self.after
        types = before + [of_first] * len(first) + between + [of_second] * len(second) + after
        return ids, types

    def cut(
        self, first: list[int], second: list[int], max_seq_length: int
    ) -> tuple[list[int], list[int], bool]:
        """Ids and types of a pair of at most max_seq_length tokens, and whether it was cut.

        Raises:
            ValueError: not even the special tokens fit.
        """
        room = max_seq_length - self.num_special
        if room < 0:
            raise ValueError(
                f"max_seq_length={max_seq_length} has no room for the {self.num_special} special "
                "tokens of a pair"
            )
        kept = shared_lengths(len(first), len(second), room)
        ids, types = self.join(first[: kept[0]], second[: kept[1]])
        return ids, types, kept != (len(first), len(second))
