"""Agreement with float64 NumPy and PyTorch: op by op, layer by layer, whole.

The bounds are the project's promises: an op's relative Frobenius error is at most 1e-6, or
2.5e-8 sqrt(K) where its sums of K terms make that larger; normalised embeddings differ from
PyTorch's float32 by at most 1e-6; the instruction sets give the same bits.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from minifuse import ops
from minifuse.bench import reference
from minifuse.models.description import ModelDescription
from minifuse.models.layer import by_pair, frequencies_of, hidden_states
from minifuse.models.weights import read_slots
from minifuse.native import core
from minifuse.sentence_transformer import SentenceTransformer

__all__ = ["Check", "run_parity"]

_EMBEDDING_BOUND = 1e-6
_NUM_SCALAR_SENTENCES = 50
_NUM_FLOAT64_SENTENCES = 50


@dataclass(frozen=True)
class Check:
    """One comparison; bound None is for information only."""

    name: str
    value: float
    bound: float | None
    torch_value: float | None = None

    @property
    def holds(self) -> bool:
        """True if the value is within the bound; NaN is not."""
        return self.bound is None or self.value <= self.bound


def op_bound(num_terms: int) -> float:
    """The promised relative error of an op whose sums have this many terms."""
    return max(1e-6, 2.5e-8 * math.sqrt(num_terms))


def run_parity(model_name: str, sentences: Sequence[str]) -> list[Check]:
    """Every comparison on these sentences.

    Raises:
        ImportError: PyTorch is not installed.
        ValueError: no sentence.
    """
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "parity compares with PyTorch, which is not installed: pip install 'minifuse[torch]'"
        ) from error
    if not sentences:
        raise ValueError("no sentence to compare on")
    model = SentenceTransformer(model_name, dtype="float32")
    weights = dict(read_slots(model.pipeline.folder, model.pipeline.encoder.weight_slots()))
    is_of_berts_kind = model.pipeline.folder.description.is_of_berts_kind()
    checks = _op_checks(model, weights, sentences, torch) if is_of_berts_kind else []
    checks += _layer_checks(model, weights, sentences, torch)
    checks += _whole_checks(model_name, model, weights, sentences, torch)
    return checks


def _unit(x: Any) -> npt.NDArray[Any]:
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12))


class _Torch:
    """The steps of minifuse.models.layer by PyTorch in float32, on one sentence."""

    def __init__(self, torch: Any) -> None:
        functional = torch.nn.functional
        self._torch, self._functional = torch, functional
        self._activations: dict[str | None, Any] = {
            None: lambda x: x,
            "gelu": functional.gelu,
            "gelu_new": lambda x: functional.gelu(x, approximate="tanh"),
            "relu": functional.relu,
            "silu": functional.silu,
        }

    def rows(self, table: Any, ids: Any) -> Any:
        return table[self._torch.from_numpy(ids.astype(np.int64))]

    def linear(self, x: Any, weight: Any, bias: Any, activation: str | None = None) -> Any:
        return self._activations[activation](self._functional.linear(x, weight, bias))

    def layer_norm(self, x: Any, gamma: Any, beta: Any, eps: float, residual: Any = None) -> Any:
        x = x if residual is None else x + residual
        return self._functional.layer_norm(x, (x.shape[-1],), gamma, beta, eps)

    def projections(self, x: Any, *parts: tuple[Any, Any]) -> Any:
        return [self.linear(x, *part) for part in parts]

    def rms_norm(self, x: Any, gamma: Any, eps: float) -> Any:
        return self._functional.rms_norm(x, (x.shape[-1],), gamma, eps)

    def heads(self, projections: Any, description: ModelDescription, layer: int, of: Any) -> Any:
        frequencies, width = frequencies_of(description, layer), description.columns_of_head()
        placed = []
        for name, x in zip(("query_norm", "key_norm"), projections[:2], strict=True):
            heads = x.reshape(len(x), -1, width)
            if description.has_head_norms:
                heads = self.rms_norm(heads, of(name)[0], description.layer_norm_eps)
            if frequencies is not None:
                heads = self._turned(heads, frequencies)
            placed.append(heads.reshape(x.shape))
        return [*placed, projections[2]]

    def _turned(self, heads: Any, frequencies: Any) -> Any:
        places = np.arange(len(heads), dtype=np.float32)
        turn = self._torch.from_numpy(places[:, None] * frequencies)[:, None]
        a, b = heads.chunk(2, dim=2)
        cosine, sine = turn.cos(), turn.sin()
        return self._torch.cat([a * cosine - b * sine, b * cosine + a * sine], 2)

    def attention(
        self, projections: Any, description: ModelDescription, layer: int, bias: Any = None
    ) -> Any:
        width = description.columns_of_head()
        q, k, v = (y.reshape(1, len(y), -1, width).swapaxes(1, 2) for y in projections)
        biases = None
        if bias is not None:
            biases = self._torch.as_tensor(by_pair(bias, q.shape[2]))[None]
        context = self._functional.scaled_dot_product_attention(
            q, k, v, biases, scale=description.attention_scale or None, enable_gqa=True
        )
        return context[0].swapaxes(0, 1).reshape(projections[0].shape)

    def dropped(self, x: Any, layer: int, place: int) -> Any:
        return x


def _torch_states(tensors: dict[str, Any], ids: Any, description: Any, torch: Any) -> list[Any]:
    """Hidden states of one sentence by PyTorch in float32."""
    with torch.inference_mode():
        states = hidden_states(tensors, ids, description, _Torch(torch))
    return [state.numpy() for state in states]


def _tensors(weights: dict[str, Any], torch: Any) -> dict[str, Any]:
    return {name: torch.from_numpy(array) for name, array in weights.items()}


def _op_check(name: str, ours: Any, theirs: Any, exact: Any, num_terms: int) -> Check:
    return Check(
        f"op {name}",
        reference.relative_error(ours, exact),
        op_bound(num_terms),
        reference.relative_error(theirs.numpy(), exact),
    )


def _op_checks(
    model: SentenceTransformer, weights: dict[str, Any], sentences: Sequence[str], torch: Any
) -> list[Check]:
    """The first layer's operations on real activations, each from the same float32 inputs."""
    description = model.pipeline.folder.description
    eps, hidden = description.layer_norm_eps, description.hidden_size
    tokens = model.pipeline.tokenize(list(sentences[:_NUM_FLOAT64_SENTENCES]))
    cu_seqlens = tokens.cu_seqlens()
    x = model.pipeline.encoder.hidden_states(tokens.ids, cu_seqlens, num_threads=1)[0].copy()
    run = _Torch(torch)
    tensor = torch.from_numpy

    def of(name: str) -> tuple[Any, Any]:
        return weights[f"layers.0.{name}.weight"], weights[f"layers.0.{name}.bias"]

    def tensors_of(name: str) -> tuple[Any, Any]:
        weight, bias = of(name)
        return tensor(weight), tensor(bias)

    parts = ("query", "key", "value")
    heads = (len(x), description.num_attention_heads, -1)
    q, k, v = (ops.linear(x, *of(part)).reshape(heads) for part in parts)
    context = ops.attention_varlen(q, k, v, cu_seqlens).reshape(len(x), -1)
    dense, norm = of("attention_output"), of("attention_norm")
    norm_tensors = tensors_of("attention_norm")
    out = run.linear(tensor(context), *tensors_of("attention_output"))
    y = ops.linear_residual_layer_norm(context, *dense, x, *norm, eps)
    checks = [
        _op_check(
            "linear",
            ops.linear(x, *of("query")),
            run.linear(tensor(x), *tensors_of("query")),
            reference.linear(x, *of("query")),
            hidden,
        ),
        _attention_check((q, k, v), cu_seqlens, description, run, tensor),
        _op_check(
            "linear_residual_layer_norm",
            y,
            run.layer_norm(out, *norm_tensors, eps, tensor(x)),
            reference.layer_norm(reference.linear(context, *dense), *norm, eps, residual=x),
            hidden,
        ),
        _op_check(
            "layer_norm",
            ops.layer_norm(x, *norm, eps, residual=context),
            run.layer_norm(tensor(x), *norm_tensors, eps, tensor(context)),
            reference.layer_norm(x, *norm, eps, residual=context),
            1,
        ),
    ]
    if description.activation == "gelu":
        first, second = of("ffn_input"), of("ffn_output")
        middle = run.linear(tensor(y), *tensors_of("ffn_input"), "gelu")
        checks.append(
            _op_check(
                "gelu_ffn",
                ops.gelu_ffn(y, *first, *second),
                run.linear(middle, *tensors_of("ffn_output")),
                reference.gelu_ffn(y, *first, *second),
                description.intermediate_size,
            )
        )
    spans = list(itertools.pairwise(cu_seqlens))
    pooled = _op_check(
        "mean_pool_varlen",
        ops.mean_pool_varlen(x, cu_seqlens),
        torch.stack([tensor(x[begin:end]).mean(0) for begin, end in spans]),
        np.stack([reference.f64(x[begin:end]).mean(0) for begin, end in spans]),
        1,
    )
    return [*checks, pooled]


def _attention_check(
    qkv: Any, cu_seqlens: Any, description: ModelDescription, run: _Torch, tensor: Any
) -> Check:
    """Attention of packed sentences, q, k and v [total_tokens, heads, head_dim]."""
    exact, theirs = [], []
    for begin, end in itertools.pairwise(cu_seqlens):
        rows = [part[begin:end].reshape(end - begin, -1) for part in qkv]
        exact.append(reference.Float64.attention(rows, description, 0))
        theirs.append(run.attention([tensor(part) for part in rows], description, 0).numpy())
    longest = int(np.diff(cu_seqlens).max())
    q, k, v = qkv
    ours = ops.attention_varlen(q, k, v, cu_seqlens).reshape(len(q), -1)
    return _op_check(
        "attention_varlen", ours, tensor(np.concatenate(theirs)), np.concatenate(exact), longest
    )


def _layer_checks(
    model: SentenceTransformer, weights: dict[str, Any], sentences: Sequence[str], torch: Any
) -> list[Check]:
    description = model.pipeline.folder.description
    tokens = model.pipeline.tokenize(list(sentences[:_NUM_FLOAT64_SENTENCES]))
    cu_seqlens = tokens.cu_seqlens()
    ours = model.pipeline.encoder.hidden_states(tokens.ids, cu_seqlens, num_threads=1)
    sentence_ids = [tokens.ids[begin:end] for begin, end in itertools.pairwise(cu_seqlens)]
    exact = [hidden_states(weights, ids, description, reference.Float64) for ids in sentence_ids]
    tensors = _tensors(weights, torch)
    theirs = [_torch_states(tensors, ids, description, torch) for ids in sentence_ids]
    checks = []
    for index, state in enumerate(ours):
        truth = np.concatenate([states[index] for states in exact])
        torch_state = np.concatenate([states[index] for states in theirs])
        checks.append(
            Check(
                "embeddings" if index == 0 else f"after layer {index}",
                reference.relative_error(state, truth),
                None,
                reference.relative_error(torch_state, truth),
            )
        )
    return checks


def _whole_checks(
    name: str,
    model: SentenceTransformer,
    weights: dict[str, Any],
    sentences: Sequence[str],
    torch: Any,
) -> list[Check]:
    poolings = model.pipeline.folder.poolings
    if poolings != ["mean"]:
        raise ValueError(f"parity knows mean pooling, this model has {poolings}")
    texts = list(sentences)
    tokens = model.pipeline.tokenize(texts)
    description = model.pipeline.folder.description
    tensors = _tensors(weights, torch)
    theirs = np.stack(
        [
            _torch_states(tensors, tokens.ids[begin:end], description, torch)[-1].mean(0)
            for begin, end in itertools.pairwise(tokens.cu_seqlens())
        ]
    )
    theirs = _unit(theirs)

    # A forced instruction set is compared alone; otherwise every one that runs here.
    forced = os.environ.get("MINIFUSE_ISA")
    # VNNI adds int8 only: its float32 kernels are those of the set below.
    every = [isa for isa in core.supported_isas() if not isa.endswith("_vnni")]
    isas = [forced] if forced else every
    checks: list[Check] = []
    digests: dict[str, str] = {}
    bits: dict[str, Any] = {}
    active = core.isa()
    try:
        for isa in isas:
            core.select_isa(isa)
            part = texts[:_NUM_SCALAR_SENTENCES] if isa == "scalar" else texts
            # batch-of-one pooling, then the same normalisation for everybody
            ours = SentenceTransformer(name).encode(part, normalize_embeddings=False)
            bits[isa] = ours
            digests[isa] = hashlib.sha256(ours[:_NUM_SCALAR_SENTENCES].tobytes()).hexdigest()[:16]
            difference = float(np.abs(_unit(ours) - theirs[: len(part)]).max())
            label = f"{isa}: {len(part)} embeddings, max abs difference"
            checks.append(Check(label, difference, _EMBEDDING_BOUND))
    finally:
        core.select_isa(active)
    for isa in isas[1:]:
        shared = min(len(bits[isas[0]]), len(bits[isa]))
        different = int(
            np.count_nonzero(
                bits[isas[0]][:shared].view(np.uint32) != bits[isa][:shared].view(np.uint32)
            )
        )
        checks.append(
            Check(f"{isas[0]} and {isa}: {shared} embeddings, differing bits", different, 0)
        )
    for isa, digest in digests.items():
        checks.append(
            Check(f"{isa}: SHA-256 of the first {_NUM_SCALAR_SENTENCES}: {digest}", 0, None)
        )
    return checks
