"""Families of models, one file each: how a family's config.json describes a model, and which tensor
of its checkpoints goes into which slot of the native core.

Every module of this folder defines ``ARCHITECTURE``; nothing else has to be registered.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from minifuse.models.description import Config, ModelDescription

__all__ = [
    "STATIC",
    "Architecture",
    "Derived",
    "Head",
    "MaskedLanguage",
    "Rows",
    "architecture_of",
    "families",
    "section",
    "without_biases",
]

FloatArray = npt.NDArray[np.float32]

_LAYER = re.compile(r"^layers\.(\d+)\.")


class Rows(NamedTuple):
    """A part of a checkpoint's tensor.

    Attributes:
        name: of the tensor, without the family's prefix.
        rows: the rows that are used: a slice, or one row; None: all of it.
    """

    name: str
    rows: slice | int | None = None

    def of(self, tensor: FloatArray, description: ModelDescription) -> FloatArray:
        """Return what goes into the slot."""
        return tensor if self.rows is None else np.ascontiguousarray(tensor[self.rows])


class Derived(NamedTuple):
    """An array that is computed from a checkpoint's tensor.

    Attributes:
        name: of the tensor, without the family's prefix.
        of: what goes into the slot. It gives the same bits on every machine.
    """

    name: str
    of: Callable[[FloatArray, ModelDescription], FloatArray]


def section(name: str, index: int, count: int) -> Derived:
    """Return one of the matrices that a checkpoint joins, all of equal height."""

    def of(tensor: FloatArray, description: ModelDescription) -> FloatArray:
        if tensor.ndim == 0 or len(tensor) % count != 0:
            raise ValueError(f"wanted the rows of {count} matrices")
        return np.ascontiguousarray(np.split(tensor, count)[index])

    return Derived(name, of)


def without_biases(*names: str) -> dict[str, None]:
    """Return the slots of biases that a family's layers do not have."""
    return {f"layers.{{}}.{name}.bias": None for name in names}


class Computed(NamedTuple):
    """An array that is computed from the description alone.

    Attributes:
        of: what goes into the slot. It gives the same bits on every machine.
    """

    of: Callable[[ModelDescription], FloatArray]


@dataclass(frozen=True)
class Head:
    """A family's head for classification: output(norm(activation(dense(pooled token)))).

    Attributes:
        dense, output: names of its layers, without ".weight" and ".bias"; dense is None where the
            output is all.
        activation: between them, by the kernels' name.
        norm: the name of its LayerNorm, or None.
        pooling: makes one row of those of a text.
        pooling_key: of config.json, where it says the pooling.
    """

    dense: str | None
    output: str = "classifier"
    activation: str = "tanh"
    norm: str | None = None
    pooling: str = "cls"
    pooling_key: str | None = None

    def tensors(self) -> list[str]:
        """Names of all tensors that the head can have."""
        layers = [one for one in (self.dense, self.norm, self.output) if one]
        return [f"{one}.{part}" for one in layers for part in ("weight", "bias")]


@dataclass(frozen=True)
class MaskedLanguage:
    """A family's head for masked words: decoder(norm(activation(dense(token)))).

    Attributes:
        dense, norm, decoder: names of its layers, without ".weight" and ".bias". A decoder that is
            not there is the table of words.
        biases: other names of the decoder's bias.
        activation: by the kernels' name; None: the model's.
    """

    dense: str
    norm: str
    decoder: str
    biases: tuple[str, ...] = ()
    activation: str | None = None

    def tensors(self) -> list[str]:
        """Names of all tensors that the head can have."""
        layers = (self.dense, self.norm, self.decoder)
        own = [f"{one}.{part}" for one in layers for part in ("weight", "bias")]
        return own + list(self.biases)


@dataclass(frozen=True)
class Architecture:
    """One family.

    Attributes:
        model_types: values of model_type in config.json, or "... with alibi".
        describe: makes the description of a model from its config.json.
        tensors: slot -> tensor of a checkpoint, "{}" being the number of the layer; either both
            without ".weight" and ".bias", or both whole, which goes first. None: the family has no
            such tensor, and zeros serve.
        prefixes: of tensor names, where a checkpoint has one.
        dropouts: keys of config.json that hold the dropout of rows and that of attention.
        head: of the family's cross-encoders; None: there are none.
        masked_language: the head of its masked language models; None: there are none.
        language_matrix: the tensor that makes logits of words in its causal language models, which
            may share the table of words; None: there are none.
    """

    model_types: tuple[str, ...]
    describe: Callable[[Config], ModelDescription]
    tensors: Mapping[str, str | Rows | Derived | Computed | None]
    prefixes: tuple[str, ...] = ()
    dropouts: tuple[str, str] = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    head: Head | None = None
    masked_language: MaskedLanguage | None = None
    language_matrix: str | None = None

    def own_name(self, name: str) -> str:
        """Return a tensor's name without prefix, in the spelling of today."""
        for prefix in self.prefixes:
            name = name.removeprefix(prefix)
        return name.replace(".gamma", ".weight").replace(".beta", ".bias")

    def source(self, slot: str) -> Rows | Derived | Computed | None:
        """Return the tensor of a slot, what is computed for it, or None for zeros."""
        pattern, layer = _LAYER.sub("layers.{}.", slot), _LAYER.match(slot)
        stem, _, part = pattern.rpartition(".")
        is_whole = pattern in self.tensors
        source = self.tensors[pattern if is_whole else stem]
        if source is None or isinstance(source, Computed):
            return source
        if isinstance(source, str):
            source = Rows(source)
        name = source.name if is_whole else f"{source.name}.{part}"
        return source._replace(name=name.replace("{}", layer[1] if layer else ""))


def _describe_nothing(config: Config) -> ModelDescription:
    raise ValueError(f"{config.path}: a static model has no config.json of an encoder")


# Static models (minifuse.models.static) have no slots.
STATIC = Architecture(model_types=(), describe=_describe_nothing, tensors={})


@functools.cache
def families() -> dict[str, Architecture]:
    """Return every family by the name of its file."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    return {name: importlib.import_module(f"{__name__}.{name}").ARCHITECTURE for name in names}


def architecture_of(config: Config) -> Architecture:
    """Return the family of a config.json.

    Raises:
        ValueError: minifuse does not run it.
    """
    model_type = config.values.get("model_type")
    if config.values.get("position_embedding_type") == "alibi":
        model_type = f"{model_type} with alibi"  # JinaBERT's configurations say bert
    known = {name: one for one in families().values() for name in one.model_types}
    if not isinstance(model_type, str) or model_type not in known:
        raise ValueError(
            f"{config.path}: model_type is {model_type!r}; minifuse runs {', '.join(known)} "
            "(use sentence-transformers for this model)"
        )
    return known[model_type]
