"""The encoder's equations in Python, for whatever carries out their steps: float64 NumPy (the
referee), PyTorch, or PyTorch with gradients and dropout (training). csrc/model/layer.h has them for
the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from minifuse.models.description import ModelDescription

__all__ = [
    "EMBEDDINGS",
    "Steps",
    "by_pair",
    "embed",
    "frequencies_of",
    "hidden_states",
    "post_norm_layer",
    "pre_norm_layer",
    "rotary_frequencies",
    "sandwich_norm_layer",
    "within",
]

FloatArray = npt.NDArray[np.float32]

# Places of the dropouts of rows: behind each of these.
EMBEDDINGS, ATTENTION_OUTPUT, FFN_OUTPUT = 0, 2, 3


class Steps(Protocol):
    """The operations that the equations are made of, on rows [tokens, width]."""

    def rows(self, table: Any, ids: npt.NDArray[np.integer[Any]]) -> Any:
        """Return rows of a table."""

    def linear(self, x: Any, weight: Any, bias: Any, activation: str | None = None) -> Any:
        """Return activation(x W^T + b)."""

    def layer_norm(self, x: Any, gamma: Any, beta: Any, eps: float, residual: Any = None) -> Any:
        """Return LayerNorm(x + residual)."""

    def rms_norm(self, x: Any, gamma: Any, eps: float) -> Any:
        """Return RMSNorm(x)."""

    def projections(self, x: Any, *parts: tuple[Any, Any]) -> Any:
        """Return x W^T + b for each of query, key and value, in the form that attention takes."""

    def heads(
        self, projections: Any, description: ModelDescription, layer: int, of: Callable[..., Any]
    ) -> Any:
        """Return the projections as attention takes them: heads of query and key normed and turned.

        of: a name of the layer -> its weight and bias.
        """

    def attention(
        self, projections: Any, description: ModelDescription, layer: int, bias: Any
    ) -> Any:
        """Return softmax(scale Q K^T + bias) V of each sentence and head, [tokens, heads * D].

        bias is None, or [heads, 2 P - 1] or [1, 2 P - 1]: by the distance of the tokens.
        """

    def dropped(self, x: Any, layer: int, place: int) -> Any:
        """Return x with the dropout of a place; x itself where nothing is dropped."""


def rotary_frequencies(theta: float, head_dim: int, scale: float = 1.0) -> FloatArray:
    """Return theta^(-2 d / head_dim) / scale of the pairs (x[d], x[d + head_dim / 2]).

    Rotary positions (Su et al. 2021) turn them by position * frequency. PyTorch rounds both to
    float32, and a long text's angles are off by 1e-4 of what they stand for: part of the model, not
    an error of its kernels.
    """
    exponents = np.arange(0, head_dim, 2).astype(np.float32) / np.float32(head_dim)
    powers = (theta ** exponents.astype(np.float64)).astype(np.float32)
    return np.asarray(np.float32(1) / powers / np.float32(scale))


def by_pair(bias: Any, seqlen: int) -> Any:
    """Biases by distance [heads, 2 P - 1] for query i and key j, [heads, seqlen, seqlen]."""
    place = np.arange(seqlen)
    return bias[:, bias.shape[1] // 2 + place - place[:, None]]


def within(before: int, after: int, seqlen: int) -> FloatArray:
    """Return biases by distance [1, 2 seqlen - 1] that let a token attend to so many others."""
    distances = np.arange(1 - seqlen, seqlen)
    is_reached = (distances >= -before) & (distances <= after)
    return np.where(is_reached, 0, -np.inf).astype(np.float32)[None]


def frequencies_of(description: ModelDescription, layer: int) -> FloatArray | None:
    """Return the frequencies of a layer's rotary positions; None: it has none."""
    window = description.windows[layer] if description.windows else 0
    width = description.columns_of_head()
    if window and description.local_rotary_theta:
        return rotary_frequencies(description.local_rotary_theta, width)
    if description.rotary_theta:
        return rotary_frequencies(description.rotary_theta, width, description.rotary_scale)
    return None


def position_rows(
    ids: npt.NDArray[np.integer[Any]],
    cu_seqlens: npt.NDArray[np.integer[Any]],
    padding_id: int,
) -> npt.NDArray[np.int64]:
    """Return the row of the table of positions for each token: its place in its sentence.

    Where a model's padding has a row, it is the first one: tokens of this id take it, also in the
    middle of a text, and are not counted.

    Args:
        ids: [tokens], of sentences one after the other.
        cu_seqlens: [sentences + 1], where each begins.
        padding_id: of the padding; -1: it has no row.
    """
    starts = cu_seqlens[:-1].astype(np.int64)
    lengths = cu_seqlens[1:].astype(np.int64) - starts
    if padding_id < 0:
        return np.arange(len(ids)) - np.repeat(starts, lengths)
    counts = np.concatenate([[0], np.cumsum(ids != padding_id)])
    return np.where(ids != padding_id, counts[1:] - np.repeat(counts[starts], lengths), 0)


def embed(
    weights: Mapping[str, Any],
    ids: npt.NDArray[np.integer[Any]],
    positions: npt.NDArray[np.integer[Any]],
    eps: float,
    run: Steps,
    token_types: npt.NDArray[np.integer[Any]] | None = None,
) -> Any:
    """LayerNorm(word[id] + position[i] + token_type[t]), the rows of tokens.

    A model without embeddings of positions or of token types has no such weights.

    Args:
        weights: slot -> what ``run`` computes with.
        ids: [tokens].
        positions: [tokens], rows of the table of positions.
        eps: of the LayerNorm.
        run: carries out the steps.
        token_types: [tokens]; None: all are 0.
    """
    x = run.rows(weights["embeddings.word"], ids)
    if "embeddings.position" in weights:
        x = x + run.rows(weights["embeddings.position"], positions)
    if "embeddings.token_type" in weights:
        of_type = weights["embeddings.token_type"]
        x = x + (of_type[0] if token_types is None else run.rows(of_type, token_types))
    if "embeddings.norm.weight" in weights:
        norm = weights["embeddings.norm.weight"], weights.get("embeddings.norm.bias")
        x = run.layer_norm(x, *norm, eps)
    return run.dropped(x, 0, EMBEDDINGS)


class _Layer:
    """The two halves of a layer, on rows [tokens, H].

    Args:
        weights: slot -> what ``run`` computes with.
        layer: its number.
        description: of the model.
        run: carries out the steps.
    """

    def __init__(
        self, weights: Mapping[str, Any], layer: int, description: ModelDescription, run: Steps
    ) -> None:
        self._weights, self._layer = weights, layer
        self._description, self._run = description, run

    def norm(self, name: str, x: Any, residual: Any = None) -> Any:
        """Norm(x + residual) by one of the layer's norms."""
        gamma, beta = self._parts(name)
        eps = self._description.layer_norm_eps
        if self._description.has_rms_norms:
            return self._run.rms_norm(x, gamma, eps)
        return self._run.layer_norm(x, gamma, beta, eps, residual=residual)

    def attended(self, x: Any) -> Any:
        """O Wo + bo, for O = softmax(Q K^T / sqrt(D) + bias) V of each sentence and head."""
        what, run, layer = self._description, self._run, self._layer
        # Q, K, V = X Wq + bq, X Wk + bk, X Wv + bv
        projections = run.projections(x, *map(self._parts, ("query", "key", "value")))
        projections = run.heads(projections, what, layer, self._parts)
        context = run.attention(projections, what, layer, self._bias(x.shape[0]))
        return run.dropped(
            run.linear(context, *self._parts("attention_output")), layer, ATTENTION_OUTPUT
        )

    def _bias(self, seqlen: int) -> Any:
        what = self._description
        bias = self._weights.get("attention.relative_bias")
        window = what.windows[self._layer] if what.windows else 0
        if not window and not what.is_causal:
            return bias
        most = seqlen if bias is None else bias.shape[1] // 2 + 1
        before = window or most
        reached = within(before, 0 if what.is_causal else before, most)
        return reached if bias is None else bias + reached

    def fed_forward(self, y: Any) -> Any:
        """activation(Y W1 + b1) W2 + b2, or with activation(Y Wg + bg) * (Y W1 + b1)."""
        what, run = self._description, self._run
        if what.has_gate:
            hidden = run.linear(y, *self._parts("ffn_gate"), activation=what.activation)
            hidden = hidden * run.linear(y, *self._parts("ffn_input"))
        else:
            hidden = run.linear(y, *self._parts("ffn_input"), activation=what.activation)
        return run.dropped(run.linear(hidden, *self._parts("ffn_output")), self._layer, FFN_OUTPUT)

    def _parts(self, name: str) -> tuple[Any, Any]:
        prefix = f"layers.{self._layer}.{name}."
        return self._weights[prefix + "weight"], self._weights.get(prefix + "bias")


def post_norm_layer(
    weights: Mapping[str, Any], layer: int, x: Any, description: ModelDescription, run: Steps
) -> Any:
    """One post-norm layer (Vaswani et al. 2017; Devlin et al. 2019) on rows x [tokens, H].

    Args:
        weights: slot -> what ``run`` computes with.
        layer: its number.
        x: [tokens, H].
        description: of the model.
        run: carries out the steps.
    """
    of = _Layer(weights, layer, description, run)
    y = of.norm("attention_norm", of.attended(x), residual=x)
    return of.norm("ffn_norm", of.fed_forward(y), residual=y)


def pre_norm_layer(
    weights: Mapping[str, Any], layer: int, x: Any, description: ModelDescription, run: Steps
) -> Any:
    """One pre-norm layer (Xiong et al. 2020), as post_norm_layer.

    Where the embeddings have a norm, it is that of the first attention.
    """
    of = _Layer(weights, layer, description, run)
    is_normed = layer == 0 and description.has_embedding_norm
    x = x + of.attended(x if is_normed else of.norm("attention_norm", x))
    return x + of.fed_forward(of.norm("ffn_norm", x))


def sandwich_norm_layer(
    weights: Mapping[str, Any], layer: int, x: Any, description: ModelDescription, run: Steps
) -> Any:
    """One layer with norms before and behind attention and feed-forward (Gemma Team 2024)."""
    of = _Layer(weights, layer, description, run)
    is_normed = layer == 0 and description.has_embedding_norm
    attended = of.attended(x if is_normed else of.norm("attention_norm", x))
    x = x + of.norm("attention_output_norm", attended)
    return x + of.norm("ffn_output_norm", of.fed_forward(of.norm("ffn_norm", x)))


_LAYERS = {"post": post_norm_layer, "pre": pre_norm_layer, "sandwich": sandwich_norm_layer}


def hidden_states(
    weights: Mapping[str, Any],
    ids: npt.NDArray[np.integer[Any]],
    description: ModelDescription,
    run: Steps,
) -> list[Any]:
    """The embeddings of one sentence and what follows each layer, [seqlen, H] each.

    The last are those that the model gives: normed, where norms stand first.
    """
    eps = description.layer_norm_eps
    positions = position_rows(ids, np.array([0, len(ids)]), description.padding_id)
    states = [embed(weights, ids, positions, eps, run)]
    for layer in range(description.num_hidden_layers):
        layer_of = _LAYERS[description.norms]
        states.append(layer_of(weights, layer, states[-1], description, run))
    if description.norms != "post":
        gamma = weights["final_norm.weight"]
        if description.has_rms_norms:
            states[-1] = run.rms_norm(states[-1], gamma, eps)
        else:
            states[-1] = run.layer_norm(states[-1], gamma, weights.get("final_norm.bias"), eps)
    return states
