"""The fused operations beside the PyTorch calls they replace, on MiniLM's shapes.

One list for `minifuse bench --ops`, the pytest benchmarks and the tests: what is timed is what is
checked. H = 384, A = 12, D = 32, F = 1536; sentences of 8 to 40 tokens, which PyTorch gets padded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from minifuse import hardware, ops
from minifuse.bench.timing import interleaved, repeated, time_once

__all__ = ["OP_TOKENS", "OpCase", "Placement", "bench_ops", "op_cases"]

OP_TOKENS = (32, 128, 512, 2048, 4096)

_HIDDEN, _INNER, _HEADS = 384, 1536, 12


@dataclass(frozen=True)
class Placement:
    """Converts arrays for our operation and for PyTorch's: on a device, both take tensors."""

    ours: Callable[[Any], Any]
    theirs: Callable[[Any], Any]


def _on_the_cpu() -> Placement:
    import torch

    return Placement(ours=lambda array: array, theirs=torch.from_numpy)


@dataclass(frozen=True)
class OpCase:
    """One operation at one size.

    Attributes:
        name: the operation in words.
        tokens: real tokens; padding comes on top for PyTorch.
        flops: multiply-adds of the operation, counted twice.
        torch: runs PyTorch's form.
        packed: runs ours with weights packed beforehand, or ours where there is no weight.
        unpacked: runs ours on plain weights; None where there is no weight.
    """

    name: str
    tokens: int
    flops: float
    torch: Callable[[], Any]
    packed: Callable[[], Any]
    unpacked: Callable[[], Any] | None = None


def ragged_lengths(tokens: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Sentence lengths of 8 to 40 tokens that add up to `tokens`."""
    lengths: list[int] = []
    left = tokens
    while left:
        lengths.append(min(int(generator.integers(8, 41)), left))
        left -= lengths[-1]
    return np.array(lengths)


def op_cases(tokens: int, seed: int = 0, placement: Placement | None = None) -> list[OpCase]:
    """Every case at this number of tokens, on random inputs; NumPy arrays for ours if None.

    Raises:
        ImportError: PyTorch is not installed.
    """
    generator = np.random.default_rng(seed)

    def random(*shape: int) -> npt.NDArray[np.float32]:
        return (generator.standard_normal(shape) * 0.05).astype(np.float32)

    x, residual = random(tokens, _HIDDEN), random(tokens, _HIDDEN)
    seqlens = ragged_lengths(tokens, generator)
    place = placement or _on_the_cpu()
    return [
        _linear_residual_layer_norm(x, residual, random, place),
        _gelu_ffn(x, random, place),
        _attention(tokens, seqlens, random, place),
        _pooling(x, seqlens, place),
    ]


def _linear_residual_layer_norm(x: Any, residual: Any, random: Any, place: Placement) -> OpCase:
    import torch

    functional = torch.nn.functional
    num_tokens = len(x)
    arrays = (x, residual, random(_HIDDEN, _HIDDEN), *(random(_HIDDEN) for _ in range(3)))
    tx, tr, tw, tb, tg, tbeta = map(place.theirs, arrays)
    x, residual, wo, bo, gamma, beta = map(place.ours, arrays)
    packed = ops.pack_linear(wo)
    return OpCase(
        "linear + residual + LayerNorm",
        num_tokens,
        2.0 * num_tokens * _HIDDEN * _HIDDEN,
        lambda: functional.layer_norm(
            functional.linear(tx, tw, tb) + tr, (_HIDDEN,), tg, tbeta, 1e-12
        ),
        lambda: ops.linear_residual_layer_norm(x, packed, bo, residual, gamma, beta),
        lambda: ops.linear_residual_layer_norm(x, wo, bo, residual, gamma, beta),
    )


def _gelu_ffn(x: Any, random: Any, place: Placement) -> OpCase:
    import torch

    functional = torch.nn.functional
    num_tokens = len(x)
    arrays = (x, random(_INNER, _HIDDEN), random(_INNER), random(_HIDDEN, _INNER), random(_HIDDEN))
    tx, tw1, tb1, tw2, tb2 = map(place.theirs, arrays)
    x, w1, b1, w2, b2 = map(place.ours, arrays)
    packed1, packed2 = ops.pack_linear(w1), ops.pack_linear(w2)
    return OpCase(
        "GELU FFN",
        num_tokens,
        4.0 * num_tokens * _HIDDEN * _INNER,
        lambda: functional.linear(functional.gelu(functional.linear(tx, tw1, tb1)), tw2, tb2),
        lambda: ops.gelu_ffn(x, packed1, b1, packed2, b2),
        lambda: ops.gelu_ffn(x, w1, b1, w2, b2),
    )


def _attention(tokens: int, seqlens: Any, random: Any, place: Placement) -> OpCase:
    import torch

    cu_seqlens = np.concatenate([[0], np.cumsum(seqlens)]).astype(np.int32)
    q, k, v = (random(tokens, _HEADS, _HIDDEN // _HEADS) for _ in range(3))
    mask = np.arange(int(seqlens.max())) < seqlens[:, None]
    padded = []
    for part in (q, k, v):
        one = np.zeros((*mask.shape, _HEADS, _HIDDEN // _HEADS), np.float32)
        one[mask] = part
        padded.append(place.theirs(one.transpose(0, 2, 1, 3).copy()))
    keep = place.theirs(mask)[:, None, None, :]
    q, k, v = map(place.ours, (q, k, v))
    return OpCase(
        "attention, ragged",
        tokens,
        4.0 * _HIDDEN * float((seqlens**2).sum()),
        lambda: torch.nn.functional.scaled_dot_product_attention(*padded, attn_mask=keep),
        lambda: ops.attention_varlen(q, k, v, cu_seqlens),
    )


def _pooling(x: Any, seqlens: Any, place: Placement) -> OpCase:
    mask = np.arange(int(seqlens.max())) < seqlens[:, None]
    states = np.zeros((*mask.shape, _HIDDEN), np.float32)
    states[mask] = x
    tstates, tmask = place.theirs(states), place.theirs(mask)
    ours, keep = place.ours(states), place.ours(mask)

    def pool() -> Any:
        weights = tmask.unsqueeze(-1).to(tstates.dtype)
        return (tstates * weights).sum(1) / weights.sum(1).clamp(min=1e-9)

    return OpCase(
        "masked mean pooling",
        len(x),
        2.0 * len(x) * _HIDDEN,
        pool,
        lambda: ops.masked_mean_pool(ours, keep),
    )


def bench_ops(num_threads: int, rounds: int = 30) -> list[dict[str, Any]]:
    """Each fused op against PyTorch on MiniLM's shapes, 32 to 4,096 tokens, interleaved.

    Returns:
        Rows with op, tokens, microseconds of PyTorch, of ours with packed and unpacked weights, the
        speed-ups, and the share of the measured arithmetic ceiling with packed weights.

    Raises:
        ImportError: PyTorch is not installed.
    """
    import torch

    torch.set_num_threads(num_threads)
    rows: list[dict[str, Any]] = []
    for tokens in OP_TOKENS:
        for case in op_cases(tokens):
            runs = {"torch": case.torch, "packed": case.packed}
            if case.unpacked is not None:
                runs["unpacked"] = case.unpacked
            # Calls of some milliseconds, so that the clock's resolution does not matter.
            repeat = max(1, int(2e-3 / max(time_once(case.packed), 1e-6)))
            with torch.inference_mode():
                times = interleaved({k: repeated(f, repeat) for k, f in runs.items()}, rounds, True)
            medians = {k: float(np.median(v)) / repeat * 1e6 for k, v in times.items()}
            unpacked = medians.get("unpacked")
            peak = hardware.peak(num_threads, 0.1, "float32")["float32"]
            rows.append(
                {
                    "op": case.name,
                    "tokens": tokens,
                    "torch_us": medians["torch"],
                    "packed_us": medians["packed"],
                    "unpacked_us": unpacked,
                    "speedup_packed": medians["torch"] / medians["packed"],
                    "speedup_unpacked": medians["torch"] / unpacked if unpacked else None,
                    "share_of_peak": case.flops / (medians["packed"] * 1e-6) / peak,
                }
            )
    return rows
