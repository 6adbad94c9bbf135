"""Arrays or tensors: what functions give where sentence-transformers gives tensors.

Without PyTorch there are arrays only, so a function gives a tensor where it is given one. A program
that changes nothing but the import may want tensors throughout: prefer_tensors().
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from minifuse import native

__all__ = ["import_torch", "prefer_tensors", "preferred", "prefers_tensors", "result_like"]

_are_preferred = False


def import_torch() -> Any:
    """Return the module torch.

    Raises:
        ImportError: PyTorch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "tensors need PyTorch, which is not installed: pip install 'minifuse[torch]', or leave "
            "convert_to_tensor=False and convert_to_numpy=True for arrays"
        ) from error
    return torch


def prefer_tensors(are_preferred: bool = True) -> None:
    """Give tensors wherever sentence-transformers does, in this whole process.

    These are the results of ``similarity``, ``similarity_pairwise``, the similarities of ``util``,
    ``preprocess`` and ``tokenize``, and of ``encode`` with token embeddings. What ``encode`` gives
    beside them goes by convert_to_numpy and convert_to_tensor, as it does there.

    Args:
        are_preferred: False gives arrays again.

    Raises:
        ImportError: PyTorch is not installed.
    """
    global _are_preferred
    if are_preferred:
        import_torch()
    _are_preferred = are_preferred


def prefers_tensors() -> bool:
    """Return whether this process asked for tensors."""
    return _are_preferred


def preferred(result: npt.NDArray[Any]) -> Any:
    """The result, as a tensor where a program prefers tensors."""
    return import_torch().from_numpy(result) if _are_preferred else result


def result_like(result: npt.NDArray[Any], example: object) -> Any:
    """The result, as a tensor where example is one or a program prefers tensors."""
    return native.like(result, example) if native.is_tensor(example) else preferred(result)
