"""The token ids of a call's texts, packed one behind the other."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["MAX_TOKENS", "TokenBatch"]

MAX_TOKENS = np.iinfo(np.int32).max


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
        if offsets[-1] > MAX_TOKENS:
            raise ValueError(f"{offsets[-1]} tokens in one batch, wanted at most {MAX_TOKENS}")
        return offsets.astype(np.int32)

    def rows(self) -> list[tuple[list[int], bool]]:
        """The ids of each sentence, and whether it was cut."""
        ends = np.cumsum(self.seqlens)
        parts = np.split(self.ids, ends[:-1]) if len(ends) else []
        return [(part.tolist(), bool(cut)) for part, cut in zip(parts, self.truncated, strict=True)]

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
