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
    checks = _op_checks(model, weights, sentences, torch)
    checks += _layer_checks(model, weights, sentences, torch)
    checks += _whole_checks(model_name, model, weights, sentences, torch)
    return checks


def _unit(x: Any) -> npt.NDArray[Any]:
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12))


def _layer_weights(weights: dict[str, Any], name: str) -> tuple[Any, Any]:
    prefix = f"layers.0.{name}."
    return weights[prefix + "weight"], weights[prefix + "bias"]


def _op_checks(
    model: SentenceTransformer, weights: dict[str, Any], sentences: Sequence[str], torch: Any
) -> list[Check]:
    """The first layer's operations on real activations, each from the same float32 inputs."""
    functional = torch.nn.functional
    config = model.pipeline.folder.description
    heads, eps = config.num_attention_heads, config.layer_norm_eps
    tokens = model.pipeline.tokenize(list(sentences[:_NUM_FLOAT64_SENTENCES]))
    cu_seqlens = tokens.cu_seqlens()
    states = model.pipeline.encoder.hidden_states(tokens.ids, cu_seqlens, num_threads=1)
    x = np.ascontiguousarray(states[0])
    tx = torch.from_numpy(x)
    of = {
        name: _layer_weights(weights, name)
        for name in (
            "query",
            "key",
            "value",
            "attention_output",
            "attention_norm",
            "ffn_input",
            "ffn_output",
        )
    }
    tensor = {k: tuple(torch.from_numpy(a) for a in v) for k, v in of.items()}
    checks: list[Check] = []

    def compare(name: str, ours: Any, theirs: Any, exact: Any, num_terms: int) -> None:
        checks.append(
            Check(
                f"op {name}",
                reference.relative_error(ours, exact),
                op_bound(num_terms),
                reference.relative_error(theirs.numpy(), exact),
            )
        )

    hidden, inner = config.hidden_size, config.intermediate_size
    query = "query"
    compare(
        "linear",
        ops.linear(x, *of[query]),
        functional.linear(tx, *tensor[query]),
        reference.linear(x, *of[query]),
        hidden,
    )
    parts = ("query", "key", "value")
    q, k, v = (ops.linear(x, *of[p]).reshape(len(x), heads, -1) for p in parts)
    spans = list(itertools.pairwise(cu_seqlens))
    exact = np.concatenate(
        [
            reference.attention(*(p[b:e].swapaxes(0, 1) for p in (q, k, v))).swapaxes(0, 1)
            for b, e in spans
        ]
    )
    tensors = [torch.from_numpy(p) for p in (q, k, v)]
    theirs = torch.cat(
        [
            functional.scaled_dot_product_attention(
                *(t[b:e].transpose(0, 1)[None] for t in tensors)
            )[0].transpose(0, 1)
            for b, e in spans
        ]
    )
    context = ops.attention_varlen(q, k, v, cu_seqlens)
    compare("attention_varlen", context, theirs, exact, int(tokens.seqlens.max()))
    context = context.reshape(len(x), -1)
    dense, norm = of["attention_output"], of["attention_norm"]
    out = functional.linear(torch.from_numpy(context), *tensor["attention_output"])
    y = ops.linear_residual_layer_norm(context, *dense, x, *norm, eps)
    compare(
        "linear_residual_layer_norm",
        y,
        functional.layer_norm(out + tx, (hidden,), *tensor["attention_norm"], eps),
        reference.layer_norm(reference.linear(context, *dense), *norm, eps, residual=x),
        hidden,
    )
    compare(
        "layer_norm",
        ops.layer_norm(x, *norm, eps, residual=context),
        functional.layer_norm(
            tx + torch.from_numpy(context), (hidden,), *tensor["attention_norm"], eps
        ),
        reference.layer_norm(x, *norm, eps, residual=context),
        1,
    )
    first, second = of["ffn_input"], of["ffn_output"]
    if config.activation == "gelu":
        mid = functional.linear(torch.from_numpy(y), *tensor["ffn_input"])
        compare(
            "gelu_ffn",
            ops.gelu_ffn(y, *first, *second),
            functional.linear(functional.gelu(mid), *tensor["ffn_output"]),
            reference.gelu_ffn(y, *first, *second),
            inner,
        )
    pooled = np.stack([reference.f64(x[b:e]).mean(0) for b, e in spans])
    compare(
        "mean_pool_varlen",
        ops.mean_pool_varlen(x, cu_seqlens),
        torch.stack([tx[b:e].mean(0) for b, e in spans]),
        pooled,
        1,
    )
    return checks


def _torch_states(weights: dict[str, Any], config: Any, ids: Any, torch: Any) -> list[Any]:
    """Hidden states of sentences of one length, ids [batch, seqlen], by PyTorch in float32."""
    functional = torch.nn.functional
    w = {name: torch.from_numpy(array) for name, array in weights.items()}
    hidden, heads, eps = config.hidden_size, config.num_attention_heads, config.layer_norm_eps
    batch, seqlen = ids.shape

    def linear(x: Any, name: str) -> Any:
        return functional.linear(x, w[name + ".weight"], w[name + ".bias"])

    def norm(x: Any, name: str) -> Any:
        return functional.layer_norm(x, (hidden,), w[name + ".weight"], w[name + ".bias"], eps)

    activation = {
        "gelu": functional.gelu,
        "gelu_new": lambda x: functional.gelu(x, approximate="tanh"),
        "relu": functional.relu,
    }[config.activation]
    x = w["embeddings.word"][torch.from_numpy(ids.astype(np.int64))]
    x = x + w["embeddings.token_type"]
    x = norm(x + w["embeddings.position"][:seqlen], "embeddings.norm")
    states = [x]
    for layer in range(config.num_hidden_layers):
        p = f"layers.{layer}."
        q, k, v = (
            linear(x, f"{p}{n}").view(batch, seqlen, heads, -1).transpose(1, 2)
            for n in ("query", "key", "value")
        )
        context = functional.scaled_dot_product_attention(q, k, v)
        context = context.transpose(1, 2).reshape(batch, seqlen, hidden)
        y = norm(x + linear(context, p + "attention_output"), p + "attention_norm")
        z = activation(linear(y, p + "ffn_input"))
        x = norm(y + linear(z, p + "ffn_output"), p + "output_norm")
        states.append(x)
    return states


def _layer_checks(
    model: SentenceTransformer, weights: dict[str, Any], sentences: Sequence[str], torch: Any
) -> list[Check]:
    config = model.pipeline.folder.description
    tokens = model.pipeline.tokenize(list(sentences[:_NUM_FLOAT64_SENTENCES]))
    cu_seqlens = tokens.cu_seqlens()
    ours = model.pipeline.encoder.hidden_states(tokens.ids, cu_seqlens, num_threads=1)
    exact: list[list[Any]] = [[] for _ in range(config.num_hidden_layers + 1)]
    theirs: list[list[Any]] = [[] for _ in range(config.num_hidden_layers + 1)]
    for begin, end in itertools.pairwise(cu_seqlens):
        ids = tokens.ids[begin:end]
        x = reference.embed(weights, ids, config.layer_norm_eps)
        exact[0].append(x)
        for layer in range(config.num_hidden_layers):
            x = reference.post_norm_layer(
                weights,
                layer,
                x,
                config.num_attention_heads,
                config.layer_norm_eps,
                config.activation,
            )
            exact[layer + 1].append(x)
        with torch.inference_mode():
            for index, state in enumerate(_torch_states(weights, config, ids[None], torch)):
                theirs[index].append(state[0].numpy())
    return [
        Check(
            "embeddings" if index == 0 else f"after layer {index}",
            reference.relative_error(ours[index], truth := np.concatenate(exact[index])),
            None,
            reference.relative_error(np.concatenate(theirs[index]), truth),
        )
        for index in range(config.num_hidden_layers + 1)
    ]


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
    starts = tokens.cu_seqlens()[:-1]
    theirs = np.empty((len(texts), model.pipeline.folder.description.hidden_size), np.float32)
    with torch.inference_mode():
        for seqlen in np.unique(tokens.seqlens):
            places = np.flatnonzero(tokens.seqlens == seqlen)
            for first in range(0, len(places), 64):
                some = places[first : first + 64]
                ids = tokens.ids[starts[some][:, None] + np.arange(seqlen)]
                states = _torch_states(weights, model.pipeline.folder.description, ids, torch)
                theirs[some] = states[-1].mean(1).numpy()
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
