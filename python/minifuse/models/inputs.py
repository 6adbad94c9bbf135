"""Check texts: take any iterable, check each element, and cut the whole into windows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

__all__ = ["WINDOW_TEXTS", "as_list", "checked", "one_ahead", "windows"]

T = TypeVar("T")

# Texts that are tokenised, sorted and encoded together: enough for every thread's chunks to even
# out, little enough for a progress bar to move and for memory to stay flat.
WINDOW_TEXTS = 1024
_WINDOW_CHARACTERS = 400_000


def as_list(inputs: Any) -> list[Any]:
    """A batch of any iterable kind as a list."""
    if isinstance(inputs, list):
        return inputs
    if isinstance(inputs, (bytes, bytearray, dict)) or not isinstance(inputs, Iterable):
        raise TypeError(
            f"inputs is a {type(inputs).__name__}, wanted a string or a list of strings"
        )
    if isinstance(inputs, np.ndarray):
        if inputs.dtype.kind not in "UOT" or inputs.ndim > 1:
            raise TypeError(
                f"inputs is an array of dtype {inputs.dtype} and shape {inputs.shape}, wanted one "
                "dimension of strings"
            )
        return [str(inputs)] if inputs.ndim == 0 else list(inputs.tolist())
    return list(inputs)


def checked(texts: list[Any], places: Any = None) -> Iterator[str]:
    """The texts (at these places), each checked to be a string."""
    for place in range(len(texts)) if places is None else places:
        text = texts[place]
        if not isinstance(text, str):
            raise TypeError(
                f"sentences[{place}] is a {type(text).__name__} ({str(text)[:50]!r}), "
                "wanted a string"
            )
        yield text


def windows(
    order: npt.NDArray[np.intp], lengths: Sequence[int], scale: int = 1
) -> Iterator[npt.NDArray[np.intp]]:
    """The order cut into windows of bounded texts and characters, scale times the CPU's."""
    most_texts, most_characters = scale * WINDOW_TEXTS, scale * _WINDOW_CHARACTERS
    begin = characters = 0
    for position, place in enumerate(order.tolist()):  # NumPy's own integers index slowly
        characters += lengths[place]
        if position + 1 - begin >= most_texts or characters >= most_characters:
            yield order[begin : position + 1]
            begin, characters = position + 1, 0
    if begin < len(order):
        yield order[begin:]


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, each made by another thread while the one before it is in use."""
    from concurrent.futures import ThreadPoolExecutor  # not wanted on the CPU

    end = object()
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(next, items, end)
        while (item := pending.result()) is not end:
            pending = pool.submit(next, items, end)
            yield item  # type: ignore[misc]  # end never comes here
