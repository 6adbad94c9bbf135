"""The encoder in PyTorch, padding-free: packed tokens in, a vector a sentence out, with gradients.

The equations stand in minifuse.models.layer; here are their steps, with dropout. Attention and
dropout are native functions of autograd; every draw of a dropout is a hash of the seed of the step
and the place of the element, so that a sentence gets the same draws in whatever pieces a batch is
computed (what gradient caching replays).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from minifuse.models.architectures import Rows
from minifuse.models.checkpoint import open_checkpoint
from minifuse.models.description import Config, ModelDescription, read_object
from minifuse.models.folder import ModelFolder
from minifuse.models.layer import embed, position_rows, post_norm_layer
from minifuse.models.modules import NormalizeModule
from minifuse.models.weights import new_encoder, stored_tensors
from minifuse.native import core
from minifuse.training.packing import Packed

__all__ = ["ACTIVATIONS", "Draws", "TrainableEncoder", "dropped", "key_of"]

_MASK = (1 << 64) - 1


def _mixed(value: int) -> int:
    """splitmix64 (Steele, Lea and Flood 2014): near seeds become far ones."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


class Draws:
    """The seeds of a step's dropouts, one a place in the model."""

    def __init__(self, seed: int, step: int) -> None:
        self._base = _mixed(_mixed(seed) ^ step)

    def seed(self, layer: int, site: int) -> int:
        """Return the seed of a layer's site: 1 is attention, the others are models.layer's."""
        return _mixed(self._base ^ _mixed(layer * 4 + site))


class _Dropout(torch.autograd.Function):  # type: ignore[misc]
    """Rows of x [rows, width], each with the draws of its number."""

    @staticmethod
    def forward(ctx: Any, x: Any, numbers: Any, p: float, seed: int) -> Any:
        ctx.arguments = numbers, p, seed
        return torch.from_numpy(core.dropout(x.detach().contiguous().numpy(), numbers, p, seed))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (dy,) = gradients
        dx = core.dropout(dy.contiguous().numpy(), *ctx.arguments)
        return torch.from_numpy(dx), None, None, None


class _Attention(torch.autograd.Function):  # type: ignore[misc]
    """softmax(q k^T / sqrt(D)) v in each sentence, weights dropped: [total, 3 H] -> [total, H]."""

    @staticmethod
    def forward(
        ctx: Any, qkv: Any, cu_seqlens: Any, numbers: Any, num_heads: int, p: float, seed: int
    ) -> Any:
        x = qkv.detach().contiguous()
        ctx.where = cu_seqlens, numbers
        ctx.how = {"num_heads": num_heads, "dropout": p, "seed": seed}
        out = torch.from_numpy(core.attention_forward(x.numpy(), cu_seqlens, numbers, **ctx.how))
        ctx.save_for_backward(x, out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (dout,) = gradients
        qkv, out = (tensor.detach().numpy() for tensor in ctx.saved_tensors)
        dqkv = core.attention_backward(qkv, out, dout.contiguous().numpy(), *ctx.where, **ctx.how)
        return torch.from_numpy(dqkv), None, None, None, None, None


def dropped(x: Any, numbers: npt.NDArray[np.int64], p: float, seed: int) -> Any:
    """Rows of x [rows, width] after dropout, each with the draws of its number."""
    return x if p == 0 else _Dropout.apply(x, numbers, p, seed)


ACTIVATIONS: dict[str | None, Any] = {
    None: lambda x: x,
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "tanh": torch.tanh,
}
_ATTENTION = 1  # the site of its dropout


class _Steps:
    """The steps of minifuse.models.layer on the packed rows of some sentences.

    Args:
        cu_seqlens: [batch + 1].
        numbers: [batch], the place of each sentence in the whole batch.
        rows: [total_tokens], the place of each token there, for the draws.
        most: positions that a sentence can have.
        dropouts: of rows and of attention.
        draws: None: no dropout.
    """

    def __init__(
        self,
        cu_seqlens: npt.NDArray[np.int32],
        numbers: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
        most: int,
        dropouts: tuple[float, float],
        draws: Draws | None,
    ) -> None:
        self._cu_seqlens, self._numbers, self._rows, self._most = cu_seqlens, numbers, rows, most
        self._hidden_dropout, self._attention_dropout = dropouts
        self._draws = draws

    def rows(self, table: Any, ids: npt.NDArray[np.integer[Any]]) -> Any:
        return F.embedding(torch.from_numpy(ids.astype(np.int64)), table)

    def linear(self, x: Any, weight: Any, bias: Any, activation: str | None = None) -> Any:
        return ACTIVATIONS[activation](F.linear(x, weight, bias))

    def layer_norm(self, x: Any, gamma: Any, beta: Any, eps: float, residual: Any = None) -> Any:
        x = x if residual is None else x + residual
        return F.layer_norm(x, (x.shape[1],), gamma, beta, eps)

    def rms_norm(self, x: Any, gamma: Any, eps: float) -> Any:
        return F.rms_norm(x, (x.shape[1],), gamma, eps)

    def projections(self, x: Any, *parts: tuple[Any, Any]) -> Any:
        weights, biases = zip(*parts, strict=True)
        return F.linear(x, torch.cat(weights), torch.cat(biases))

    def heads(self, projections: Any, description: ModelDescription, layer: int, of: Any) -> Any:
        return projections  # of BERT's kind: as they are

    def attention(
        self, projections: Any, description: ModelDescription, layer: int, bias: Any
    ) -> Any:
        num_heads = description.num_attention_heads
        places = self._numbers * (num_heads * self._most * self._most)
        is_dropped = self._draws is not None
        p = self._attention_dropout if is_dropped else 0.0
        seed = self._draws.seed(layer, _ATTENTION) if self._draws is not None else 0
        return _Attention.apply(projections, self._cu_seqlens, places, num_heads, p, seed)

    def dropped(self, x: Any, layer: int, place: int) -> Any:
        if self._draws is None:
            return x
        return dropped(x, self._rows, self._hidden_dropout, self._draws.seed(layer, place))


class _Slots(Mapping[str, Any]):
    """Slot -> the parameter that goes there, or its rows, or zeros.

    Args:
        sources: slot -> tensor of the checkpoint.
        parameters: the checkpoint's whole tensors, of which slots are views.
        shapes: of the slots; zeros have them.
    """

    def __init__(
        self,
        sources: Mapping[str, Rows | None],
        parameters: Any,
        shapes: Mapping[str, Sequence[int]],
    ) -> None:
        self._sources, self._parameters, self._shapes = sources, parameters, shapes

    def __getitem__(self, slot: str) -> Any:
        source = self._sources[slot]
        if source is None:
            return torch.zeros(*self._shapes[slot])
        tensor = self._parameters[key_of(source.name)]
        return tensor if source.rows is None else tensor[source.rows]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


class TrainableEncoder(torch.nn.Module):  # type: ignore[misc]
    """Packed tokens to pooled vectors, float32.

    Args:
        folder: what the model is and where its weights lie.

    Raises:
        ValueError: the folder holds int8 weights, another pooling than mean or cls, modules
            behind the pooling that have weights, or a model of another kind than BERT's.
    """

    def __init__(self, folder: ModelFolder) -> None:
        super().__init__()
        if folder.is_quantized:
            raise ValueError(f"{folder.path}: int8 weights cannot be trained, wanted float ones")
        if folder.poolings not in (["mean"], ["cls"]):
            raise ValueError(f"{folder.path}: pools by {folder.poolings}, wanted mean or cls")
        if folder.is_static:
            raise ValueError(f"{folder.path}: a static model cannot be trained yet")
        if not folder.description.is_of_berts_kind():
            raise ValueError(
                f"{folder.path}: only models of BERT's kind can be trained yet: without relative "
                "biases, rotary positions, gates, windows, and norms that stand first; this one "
                "cannot be trained"
            )
        if not all(isinstance(module, NormalizeModule) for module in folder.modules):
            raise ValueError(
                f"{folder.path}: has a Dense or LayerNorm module, which cannot be trained yet"
            )
        self.folder = folder
        path = folder.transformer_path / "config.json"
        config = Config(path, read_object(path))
        self.hidden_dropout, self.attention_dropout = (
            config.number(key, 0.1) for key in folder.architecture.dropouts
        )
        self._weights = torch.nn.ParameterDict()
        slots = new_encoder(folder.description, "float32").weight_slots()
        sources: dict[str, Rows | None] = {}
        for slot in slots:
            source = folder.architecture.source(slot)
            assert source is None or isinstance(source, Rows), slot
            sources[slot] = source
        tensors = stored_tensors(folder, slots)
        missing = sorted({source.name for source in sources.values() if source} - tensors.keys())
        if missing:
            raise ValueError(f"{folder.weights_path}: tensor {missing[0]!r} is missing")
        for name, array in tensors.items():
            self._weights[key_of(name)] = torch.nn.Parameter(torch.from_numpy(array).clone())
        self._slots = _Slots(sources, self._weights, slots)
        self._undecayed = {
            key_of(source.name)
            for slot, source in sources.items()
            if source and (slot.endswith(".bias") or "norm." in slot)
        }

    def no_decay(self) -> tuple[list[Any], list[Any]]:
        """Parameters that decay, and those that do not: biases and LayerNorms."""
        decaying: list[Any] = []
        others: list[Any] = []
        for name, parameter in self._weights.items():
            (others if name in self._undecayed else decaying).append(parameter)
        return decaying, others

    def forward(
        self, sentences: Packed, numbers: npt.NDArray[np.int64], draws: Draws | None = None
    ) -> Any:
        """Vectors [batch, H] of packed sentences.

        Args:
            sentences: [batch] of them.
            numbers: [batch], the place of each sentence in the whole batch: of its draws.
            draws: None: no dropout.
        """
        ids, cu_seqlens, types = sentences
        description = self.folder.description
        most = description.max_position_embeddings
        lengths: npt.NDArray[np.int64] = cu_seqlens[1:].astype(np.int64) - cu_seqlens[:-1]
        positions = np.arange(len(ids)) - np.repeat(cu_seqlens[:-1].astype(np.int64), lengths)
        rows = np.repeat(numbers, lengths) * most + positions
        dropouts = self.hidden_dropout, self.attention_dropout
        run = _Steps(cu_seqlens, numbers, rows, most, dropouts, draws)
        table = position_rows(ids, cu_seqlens, description.padding_id)
        x = embed(self._slots, ids, table, description.layer_norm_eps, run, types)
        for layer in range(description.num_hidden_layers):
            x = post_norm_layer(self._slots, layer, x, description, run)

        starts = torch.from_numpy(cu_seqlens[:-1].astype(np.int64))
        if self.folder.poolings == ["cls"]:
            return x[starts]
        sentence = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))
        sums = torch.zeros(len(lengths), x.shape[1]).index_add(0, sentence, x)
        return sums / torch.from_numpy(lengths.astype(np.float32))[:, None]

    def tensors(self) -> dict[str, npt.NDArray[np.float32]]:
        """Every tensor of the folder's file by its own name, trained ones as they are now."""
        tensors = {}
        with open_checkpoint(self.folder.weights_path) as file:
            for name in file.names():
                key = key_of(self.folder.architecture.own_name(name))
                if key in self._weights:
                    tensors[name] = self._weights[key].detach().numpy()
                elif "position_ids" not in name:
                    tensors[name] = file.read(name)
        return tensors


def key_of(name: str) -> str:
    """Return a tensor's name as a key of a ParameterDict, which holds no dots."""
    return name.replace(".", "/")
