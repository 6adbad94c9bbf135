"""Check what a call is given: any iterable of texts or pairs, which is cut into windows, and the
length of processing_kwargs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from minifuse.tokens.pairs import Pair

__all__ = [
    "WINDOW_TEXTS",
    "as_list",
    "checked",
    "checked_batch_size",
    "length_of",
    "length_of_call",
    "max_length_of",
    "one_ahead",
    "windows",
    "with_prompt",
]

T = TypeVar("T")

# Texts that are tokenised, sorted and encoded together: enough for every thread's chunks to even
# out, little enough for a progress bar to move and for memory to stay flat.
WINDOW_TEXTS = 1024
_WINDOW_CHARACTERS = 400_000
# More tokens than a text has, and more texts than a batch.
_NO_LIMIT = 1 << 30


def as_list(inputs: Any) -> list[Any]:
    """A batch of any iterable kind as a list."""
    if isinstance(inputs, list):
        return inputs
    if isinstance(inputs, (bytes, bytearray, dict)) or not isinstance(inputs, Iterable):
        raise TypeError(
            f"inputs is a {type(inputs).__name__}, wanted a string or a list of strings"
        )
    if isinstance(inputs, np.ndarray):
        is_pairs = inputs.ndim == 2 and inputs.shape[1] == 2
        if inputs.dtype.kind not in "UOT" or not (inputs.ndim < 2 or is_pairs):
            raise TypeError(
                f"inputs is an array of dtype {inputs.dtype} and shape {inputs.shape}, wanted one "
                "dimension of strings, or pairs of them [n, 2]"
            )
        return [str(inputs)] if inputs.ndim == 0 else list(inputs.tolist())
    return list(inputs)


def checked(texts: list[Any]) -> list[str | Pair]:
    """The texts, each checked to be a string or a pair of strings, which becomes a tuple."""
    for text in texts:  # a query pays for a generator
        if type(text) is not str:
            return [_checked(text, place) for place, text in enumerate(texts)]
    return texts


def _checked(text: Any, place: int) -> str | Pair:
    if isinstance(text, str):
        return text
    if isinstance(text, (list, tuple)) and len(text) == 2:
        first, second = text
        if isinstance(first, str) and isinstance(second, str):
            return first, second
    raise TypeError(
        f"sentences[{place}] is a {type(text).__name__} ({str(text)[:50]!r}), wanted a string or "
        "a pair of strings"
    )


def length_of(text: str | Pair) -> int:
    """Characters of a text or of both of a pair."""
    return len(text) if isinstance(text, str) else len(text[0]) + len(text[1])


def with_prompt(prompt: str, text: str | Pair) -> str | Pair:
    """The text behind a prompt; of a pair, the first one."""
    return prompt + text if isinstance(text, str) else (prompt + text[0], text[1])


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


def length_of_call(kind: str, others: dict[str, Any]) -> int | None:
    """Return at how many tokens a call's processing_kwargs cut texts; None: at the model's own.

    Args:
        kind: of the model, for the message.
        others: arguments of a call that the model has no names for.

    Raises:
        ValueError: there are others (they are named), or no such length.
    """
    options = others.pop("processing_kwargs", None)
    if others:
        raise ValueError(
            f"{kind} has been called with additional keyword arguments that this model does not "
            f"use: {list(others)}. As per {kind.split('.')[0]}.get_model_kwargs(), this model does "
            "not accept any additional keyword arguments."
        )
    return max_length_of(options)


def max_length_of(processing_kwargs: dict[str, Any] | None) -> int | None:
    """Return the max_length of processing_kwargs; None: there is none.

    Raises:
        ValueError: there is no such length, or something else that could change a result.
    """
    if not processing_kwargs:
        return None
    groups = dict(processing_kwargs)
    options = dict(groups.pop("common", None) or {}) | dict(groups.pop("text", None) or {})
    options.pop("padding", None)  # nothing is padded
    options.pop("return_tensors", None)
    length = options.pop("max_length", None)
    if options.pop("truncation", True) not in (True, "longest_first") or groups or options:
        raise ValueError(
            f"processing_kwargs is {processing_kwargs!r:.200}, wanted a length: "
            "{'text': {'max_length': n}}"
        )
    if length is None:
        return None
    if type(length) is not int or length < 1:
        raise ValueError(f"processing_kwargs: max_length is {length!r:.60}, wanted >= 1")
    return min(length, _NO_LIMIT)


def checked_batch_size(batch_size: Any) -> int:
    """Return a call's batch_size as an int.

    Raises:
        ValueError: no whole number above 0.
    """
    try:
        number = int(batch_size)
    except (ArithmeticError, TypeError, ValueError):
        number = 0
    if number <= 0 or number != batch_size:
        raise ValueError(f"batch_size must be a positive integer, got {batch_size!r:.60}.")
    return min(number, _NO_LIMIT)
