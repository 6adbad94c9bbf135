"""The one description of a model, and the config.json that it is made from."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Config", "ModelDescription", "read_json", "read_object"]

# The largest size in config.json that Python passes on; the native core checks each one.
_LARGEST_INTEGER = (1 << 62) - 1


@dataclass(frozen=True)
class ModelDescription:
    """Sizes and settings of an encoder, by Hugging Face's names (csrc/model/description.h).

    Attributes:
        vocab_size: rows of the word embeddings.
        max_position_embeddings: tokens of the longest sentence.
        hidden_size: columns of a token's vector, a multiple of num_attention_heads.
        num_hidden_layers: layers.
        num_attention_heads: heads of a layer.
        intermediate_size: columns of the feed-forward's intermediate.
        layer_norm_eps: epsilon of every LayerNorm.
        activation: "gelu", "gelu_new", "relu", "silu" or "tanh".
        type_vocab_size: types that a token can have; 0: they have no embeddings.
        has_relative_bias: whether attention adds a bias by head and distance to its scores: slot
            "attention.relative_bias", [num_attention_heads, 2 max_position_embeddings - 1].
        has_position_embeddings: whether positions have a table of embeddings.
        padding_id: the token that takes the first row of that table wherever it stands, and is not
            counted; -1: none.
        rotary_theta: queries and keys are turned by their positions, with this base of the
            frequencies (Su et al. 2021); 0: they are not.
        rotary_scale: what those frequencies are divided by.
        local_rotary_theta: the same of layers with a window, where it is another; 0: it is not.
        windows: layer by layer, to how many tokens on either side a token attends; 0: to all.
            Empty: all layers attend to all.
        norms: where they stand: "post", behind attention and feed-forward (Vaswani et al. 2017);
            "pre", before each and behind the last layer ("final_norm", Xiong et al. 2020); or
            "sandwich", as "pre" and behind each (Gemma Team 2024).
        has_rms_norms: RMSNorm without biases in place of LayerNorm (Zhang and Sennrich 2019).
        has_embedding_norm: where norms stand first, whether the embeddings have one; then the first
            attention has none.
        num_key_value_heads: heads of K and V, each read by several of Q; 0: as many as of Q.
        head_dim: columns of a head; 0: hidden_size / num_attention_heads.
        has_head_norms: whether each head of Q and K goes through an RMSNorm ("query_norm",
            "key_norm").
        attention_scale: of scores; 0: 1 / sqrt(head_dim).
        is_causal: whether a token attends to itself and those before it only.
        has_gate: whether the feed-forward's intermediate is activation(Y Wg + bg) * (Y W1 + b1),
            Wg in slots "ffn_gate" (Shazeer 2020).
    """

    vocab_size: int
    max_position_embeddings: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    layer_norm_eps: float
    activation: str
    type_vocab_size: int = 1
    has_relative_bias: bool = False
    has_position_embeddings: bool = True
    padding_id: int = -1
    rotary_theta: float = 0.0
    rotary_scale: float = 1.0
    local_rotary_theta: float = 0.0
    windows: tuple[int, ...] = ()
    norms: str = "post"
    has_rms_norms: bool = False
    has_embedding_norm: bool = True
    num_key_value_heads: int = 0
    head_dim: int = 0
    has_head_norms: bool = False
    attention_scale: float = 0.0
    is_causal: bool = False
    has_gate: bool = False

    def columns_of_head(self) -> int:
        """Return the columns of a head, 0 where there are too many: the core refuses that."""
        return self.head_dim or self.hidden_size // max(1, self.num_attention_heads)

    def is_of_berts_kind(self) -> bool:
        """Return whether the model differs from BERT by sizes, activation and embeddings only."""
        return not (
            self.has_relative_bias
            or self.rotary_theta
            or self.has_gate
            or self.windows
            or self.norms != "post"
            or self.is_causal
        )


class Config:
    """The values of a config.json; errors name the file and the key.

    Args:
        path: the file, for messages.
        values: its object.
    """

    # Hugging Face's names of an activation -> the kernels'.
    _ACTIVATIONS: Mapping[str, str] = {
        "gelu": "gelu",
        "gelu_new": "gelu_new",
        "gelu_pytorch_tanh": "gelu_new",
        "relu": "relu",
        "silu": "silu",
        "swish": "silu",
        "tanh": "tanh",
    }

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path = path
        self.values = values

    def integer(self, key: str, default: int | None = None) -> int:
        """Return an integer.

        Raises:
            ValueError: it is missing and has no default, or is no integer of a sensible size.
        """
        value = self.values.get(key, default)
        if type(value) is not int or not 0 <= value <= _LARGEST_INTEGER:
            raise ValueError(
                f"{self.path}: {key} is {value!r:.60}, wanted an integer 0..{_LARGEST_INTEGER}"
            )
        return value

    def number(self, key: str, default: float) -> float:
        """Return a number.

        Raises:
            ValueError: it is no number, or no finite one.
        """
        value = self.values.get(key, default)
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not abs(value) <= 1e300
        ):
            raise ValueError(f"{self.path}: {key} is {value!r:.60}, wanted a number")
        return float(value)

    def names(self, key: str, known: Collection[str]) -> list[str]:
        """Return a list of names.

        Raises:
            ValueError: it is no list, or holds something that is not among the known names.
        """
        value = self.values.get(key)
        if isinstance(value, list) and all(isinstance(n, str) and n in known for n in value):
            return value
        names = ", ".join(known)
        raise ValueError(f"{self.path}: {key} is {value!r:.60}, wanted a list of {names}")

    def rotary_theta(
        self, old_key: str, default: float, kind: str | None = None, scales: bool = False
    ) -> float:
        """Return the base of rotary positions, by today's rope_parameters or an older key.

        Args:
            old_key: where configurations had it before.
            default: the family's.
            kind: of the layers, where rope_parameters has several.
            scales: the family reads rope_scaling itself.

        Raises:
            ValueError: it is no number above 0, or a type that scales it is asked for.
        """
        scaling = self.values.get("rope_scaling")
        if scaling is not None and not scales:
            kinds = scaling.values() if isinstance(scaling, dict) else [scaling]
            if any(kind not in ("default", 1) for kind in kinds):  # or a factor of 1
                raise ValueError(f"{self.path}: rope_scaling is given, wanted none")
        parameters = self.values.get("rope_parameters") or {}
        if kind is not None and isinstance(parameters, dict):
            parameters = parameters.get(kind) or {}
        if not isinstance(parameters, dict):
            value = self.values["rope_parameters"]
            raise ValueError(f"{self.path}: rope_parameters is {value!r:.60}, wanted an object")
        inner = Config(self.path, {old_key: parameters.get("rope_theta"), **parameters})
        for key in ("rope_type", "type"):
            inner.want(key, "default")
        inner.want("partial_rotary_factor", 1.0)
        if self.values.get("rotary_scaling_factor") is not None:
            raise ValueError(f"{self.path}: rotary_scaling_factor is given, wanted none")
        if inner.values[old_key] is None:
            inner.values[old_key] = self.values.get(old_key, default)
        theta = inner.number(old_key, default)
        if theta <= 0:
            raise ValueError(f"{self.path}: {old_key} is {theta}, wanted a number > 0")
        return theta

    def activation(self, key: str, default: str = "gelu") -> str:
        """Return the kernels' name of an activation.

        Raises:
            ValueError: the kernels do not have it.
        """
        value = self.values.get(key, default)
        if not isinstance(value, str) or value not in self._ACTIVATIONS:
            names = ", ".join(self._ACTIVATIONS)
            raise ValueError(f"{self.path}: {key} is {value!r}, wanted one of {names}")
        return self._ACTIVATIONS[value]

    def want(self, key: str, wanted: Any) -> None:
        """Check that a setting, where it is given, has the only value that minifuse computes.

        Raises:
            ValueError: it has another value.
        """
        value = self.values.get(key)
        if value is not None and value != wanted:  # null stands for the default
            raise ValueError(f"{self.path}: {key} is {value!r:.60}, wanted {wanted!r}")

    def want_encoder(self) -> None:
        """Check that the model is an encoder.

        Raises:
            ValueError: it is a decoder.
        """
        if self.values.get("is_decoder") or self.values.get("add_cross_attention"):
            raise ValueError(f"{self.path}: a decoder; minifuse runs encoders")


def read_json(path: Path) -> Any:
    """Return the value of a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON (the file is named).
    """
    try:
        with path.open(encoding="utf-8") as file:
            return json.load(file)
    except RecursionError as error:
        raise ValueError(f"{path}: lists or objects are nested too deeply") from error
    except ValueError as error:  # not JSON, not UTF-8, or a number of thousands of digits
        raise ValueError(f"{path}: not JSON ({error})") from error


def read_object(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON, or another value than an object (the file is named).
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: holds a {type(value).__name__}, wanted an object")
    return value
