"""Losses: multiple negatives ranking for pairs, and CoSENT for scored pairs.

    MNRL    l_i = log sum_j exp(cos(a_i, b_j) / temperature) - cos(a_i, b_i) / temperature
    CoSENT  log(1 + sum over score_i < score_j of exp((cos_i - cos_j) / temperature))

MNRL (Henderson et al. 2017; InfoNCE, van den Oord et al. 2018) is a native kernel: see
csrc/training/contrastive.h. CoSENT (Su 2022) is PyTorch's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from minifuse.native import core

__all__ = ["cosent_loss", "ranking_loss", "same_text_groups"]


class _Contrastive(torch.autograd.Function):  # type: ignore[misc]
    """mean_i l_i of unit rows a [n, d] against b [m, d]; groups: pairs that take no part."""

    @staticmethod
    def forward(ctx: Any, a: Any, b: Any, scale: float, groups: Any) -> Any:
        x, y = (rows.detach().contiguous().numpy() for rows in (a, b))
        group_a, group_b = groups or (None, None)
        loss, da, db = core.contrastive_loss(x, y, scale, 1 / len(a), group_a, group_b)
        ctx.save_for_backward(torch.from_numpy(da), torch.from_numpy(db))
        return torch.tensor(loss, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        da, db = ctx.saved_tensors
        return gradient * da, gradient * db, None, None


def same_text_groups(anchors: Sequence[str], others: Sequence[str], n: int) -> Any:
    """Groups for ``ranking_loss``: an anchor's with every text that equals its right answer.

    Args:
        anchors: n texts (two equal ones have each other's answers, too).
        others: n right answers, then hard negatives.
        n: number of pairs.

    Returns:
        int64 [n] and [len(others)], or None where no two are equal.
    """
    numbers: dict[str, int] = {}
    group = [numbers.setdefault(text, len(numbers)) for text in others]
    # Answers of equal anchors belong together: a group that joins another takes its number.
    joined = list(range(len(numbers)))

    def group_of(number: int) -> int:
        while joined[number] != number:
            joined[number] = number = joined[joined[number]]  # half as far next time
        return number

    first: dict[str, int] = {}
    for anchor, number in zip(anchors, group, strict=False):
        joined[group_of(number)] = group_of(first.setdefault(anchor, number))
    group = [group_of(number) for number in group]
    if len(set(group)) == len(group):
        return None
    return np.array(group[:n], np.int64), np.array(group, np.int64)


def ranking_loss(
    anchors: Any, others: Any, temperature: float, symmetric: bool = False, groups: Any = None
) -> Any:
    """The multiple negatives ranking loss of vectors of any length, a scalar with a gradient.

    Args:
        anchors: [n, d].
        others: [m, d], m >= n: others[i] is the right answer to anchors[i], the rest are negatives.
        temperature: cosines are divided by it.
        symmetric: the mean with the loss of finding the anchor of each answer.
        groups: of ``same_text_groups``.
    """
    a, b = F.normalize(anchors), F.normalize(others)
    loss = _Contrastive.apply(a, b, 1 / temperature, groups)
    if not symmetric:
        return loss
    n = len(a)
    back = None if groups is None else (groups[1][:n].copy(), groups[0])
    return (loss + _Contrastive.apply(b[:n], a, 1 / temperature, back)) / 2


def cosent_loss(first: Any, second: Any, scores: Any, temperature: float) -> Any:
    """CoSENT of pairs of vectors [n, d] and their human scores [n]."""
    cosines = F.cosine_similarity(first, second) / temperature
    differences = cosines[:, None] - cosines[None, :]
    is_ordered = scores[:, None] < scores[None, :]
    differences = differences.masked_fill(~is_ordered, -torch.inf).flatten()
    return torch.logsumexp(torch.cat([torch.zeros(1), differences]), dim=0)
