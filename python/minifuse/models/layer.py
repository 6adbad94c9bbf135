"""The encoder's equations in Python, for whatever carries out their steps: float64 NumPy (the
referee), PyTorch, or PyTorch with gradients and dropout (training). csrc/model/layer.h has them for
the kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from minifuse.models.description import ModelDescription

__all__ = [
    "EMBEDDINGS",
    "Steps",
    "angles",
    "by_pair",
    "embed",
    "hidden_states",
    "post_norm_layer",
]

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

    def projections(self, x: Any, *parts: tuple[Any, Any]) -> Any:
        """Return x W^T + b for each of query, key and value, in the form that attention takes."""

    def turned(self, projections: Any, num_heads: int, theta: float) -> Any:
        """Return the projections, each head of query and key turned by its position (angles)."""

    def attention(self, projections: Any, num_heads: int, layer: int, bias: Any) -> Any:
        """Return softmax(Q K^T / sqrt(D) + bias) V of each sentence and head, [tokens, H].

        bias is None, or [num_heads, 2 P - 1]: a head's bias by the distance of the tokens.
        """

    def dropped(self, x: Any, layer: int, place: int) -> Any:
        """Return x with the dropout of a place; x itself where nothing is dropped."""


def angles(theta: float, seqlen: int, head_dim: int) -> npt.NDArray[np.float32]:
    """Return the angles of rotary positions (Su et al. 2021), [seqlen, head_dim / 2].

    Position i turns the pair (x[d], x[d + head_dim / 2]) by i theta^(-2 d / head_dim). PyTorch has
    frequencies and angles in float32, and a long text's are off by 1e-4 of what they stand for: part
    of the model, not an error of its kernels.
    """
    exponents = np.arange(0, head_dim, 2, np.float32) / np.float32(head_dim)
    powers = (theta ** exponents.astype(np.float64)).astype(np.float32)
    places = np.arange(seqlen, dtype=np.float32)
    return places[:, None] * (np.float32(1) / powers)


def by_pair(bias: Any, seqlen: int) -> Any:
    """Biases by distance [heads, 2 P - 1] as those of query i and key j, [heads, seqlen, seqlen]."""
    place = np.arange(seqlen)
    return bias[:, bias.shape[1] // 2 + place - place[:, None]]


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
        positions: [tokens], of each token in its sentence.
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
    norm = weights["embeddings.norm.weight"], weights["embeddings.norm.bias"]
    return run.dropped(run.layer_norm(x, *norm, eps), 0, EMBEDDINGS)


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
    eps = description.layer_norm_eps

    def of(name: str) -> tuple[Any, Any]:
        prefix = f"layers.{layer}.{name}."
        return weights[prefix + "weight"], weights.get(prefix + "bias")

    # Q, K, V = X Wq + bq, X Wk + bk, X Wv + bv
    projections = run.projections(x, of("query"), of("key"), of("value"))
    # per sentence, per head:  O = softmax(Q K^T / sqrt(D) + bias) V, rotary positions turn Q and K
    if description.rotary_theta:
        heads = description.num_attention_heads
        projections = run.turned(projections, heads, description.rotary_theta)
    bias = weights.get("attention.relative_bias")
    context = run.attention(projections, description.num_attention_heads, layer, bias)
    # Y = LayerNorm(X + O Wo + bo)
    out = run.dropped(run.linear(context, *of("attention_output")), layer, ATTENTION_OUTPUT)
    y = run.layer_norm(out, *of("attention_norm"), eps, residual=x)
    # X = LayerNorm(Y + activation(Y W1 + b1) W2 + b2), or with activation(Y Wg + bg) * (Y W1 + b1)
    if description.has_gate:
        hidden = run.linear(y, *of("ffn_gate"), activation=description.activation)
        hidden = hidden * run.linear(y, *of("ffn_input"))
    else:
        hidden = run.linear(y, *of("ffn_input"), activation=description.activation)
    out = run.dropped(run.linear(hidden, *of("ffn_output")), layer, FFN_OUTPUT)
    return run.layer_norm(out, *of("ffn_norm"), eps, residual=y)


def hidden_states(
    weights: Mapping[str, Any],
    ids: npt.NDArray[np.integer[Any]],
    description: ModelDescription,
    run: Steps,
) -> list[Any]:
    """The embeddings of one sentence and what follows each layer, [seqlen, H] each."""
    states = [embed(weights, ids, np.arange(len(ids)), description.layer_norm_eps, run)]
    for layer in range(description.num_hidden_layers):
        states.append(post_norm_layer(weights, layer, states[-1], description, run))
    return states
