"""Rows of tokens without padding, and gradients through any number of them in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from minifuse.tokens.token_batch import TokenBatch

__all__ = ["Packed", "accumulate_gradients", "forward", "pack", "pieces"]


class Packed(NamedTuple):
    """Sentences, one behind the other.

    Attributes:
        ids: int32 [total_tokens].
        cu_seqlens: int32 [batch + 1], where each sentence begins.
        token_types: int32 [total_tokens]; None: all are 0.
    """

    ids: npt.NDArray[np.int32]
    cu_seqlens: npt.NDArray[np.int32]
    token_types: npt.NDArray[np.int32] | None = None

    def part(self, first: int, last: int) -> Packed:
        """Return the sentences first..last - 1."""
        begin, end = self.cu_seqlens[first], self.cu_seqlens[last]
        types = None if self.token_types is None else self.token_types[begin:end]
        return Packed(self.ids[begin:end], self.cu_seqlens[first : last + 1] - begin, types)

    def chosen(self, numbers: Iterable[int]) -> Packed:
        """Return these sentences, in this order."""
        starts = self.cu_seqlens
        places = [np.arange(starts[i], starts[i + 1]) for i in numbers]
        place = np.concatenate(places) if places else np.zeros(0, np.int64)
        lengths = np.cumsum([0, *map(len, places)]).astype(np.int32)
        types = None if self.token_types is None else self.token_types[place]
        return Packed(self.ids[place], lengths, types)


def pack(tokens: TokenBatch) -> Packed:
    """Return what a tokenizer gave as a model takes it."""
    return Packed(tokens.ids, tokens.cu_seqlens(), tokens.token_types)


class Model(Protocol):
    """Packed sentences to a row each, with gradients."""

    def __call__(self, sentences: Packed, numbers: npt.NDArray[np.int64], draws: Any = None) -> Any:
        """Return [batch, width]; ``numbers`` are the places of the sentences, for the draws."""


def pieces(cu_seqlens: npt.NDArray[np.int32], most_tokens: int) -> list[tuple[int, int]]:
    """Ranges of sentences with at most so many tokens, or one sentence."""
    found, first = [], 0
    for i in range(1, len(cu_seqlens)):
        if cu_seqlens[i] - cu_seqlens[first] > most_tokens and i - first > 1:
            found.append((first, i - 1))
            first = i - 1
    found.append((first, len(cu_seqlens) - 1))
    return found


def forward(model: Model, sentences: Packed, piece: tuple[int, int], draws: Any = None) -> Any:
    """The model's rows of a piece, with the draws that they have in the whole."""
    return model(sentences.part(*piece), np.arange(*piece), draws)


def accumulate_gradients(
    model: Model,
    sentences: Packed,
    loss_of: Callable[[Any], Any],
    draws: Any,
    chunk_tokens: int,
) -> float:
    """Backpropagate loss_of(rows of all sentences); returns the loss.

    Where the sentences have more than chunk_tokens tokens: their rows first, in pieces and without
    keeping anything; then the gradient of the loss by the rows; then each piece again, with the
    same draws, and the gradient through it. The sum is that of one pass.
    """
    parts = pieces(sentences.cu_seqlens, chunk_tokens)
    if len(parts) == 1:
        loss = loss_of(forward(model, sentences, parts[0], draws))
        loss.backward()
        return float(loss.detach())
    with torch.no_grad():
        rows = torch.cat([forward(model, sentences, piece, draws) for piece in parts])
    rows.requires_grad_()
    loss = loss_of(rows)
    loss.backward()
    for first, last in parts:
        part = forward(model, sentences, (first, last), draws)
        part.backward(rows.grad[first:last])
    return float(loss.detach())
