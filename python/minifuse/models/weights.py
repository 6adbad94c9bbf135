"""The tensors of a folder, in the slots of a native encoder."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Container, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from minifuse.models.architectures import Computed, Derived, Rows
from minifuse.models.checkpoint import TensorFile, open_checkpoint
from minifuse.models.description import ModelDescription
from minifuse.models.folder import ModelFolder
from minifuse.native import core
from minifuse.native.devices import Device, cuda_module

__all__ = ["load_encoder", "new_encoder", "read_slots", "set_weights", "stored_tensors"]

FloatArray = npt.NDArray[np.float32]

# The table of words is half of a small model. It never lies in memory twice.
_LARGE = ("embeddings.word",)
# The number of a layer in a tensor's name.
_LAYER = re.compile(r"(?:^|\.)layers?\.(\d{1,9})\.")


def stored_tensors(
    folder: ModelFolder, slots: Iterable[str], others: Iterable[str] = ()
) -> dict[str, FloatArray]:
    """Return the whole tensors that these slots are made from, and others that the file has.

    By their names without prefix.

    Raises:
        FileNotFoundError: the folder has no weights.
        ValueError: two tensors are one (both are named), or the file is damaged.
    """
    wanted = {source.name for slot in slots if (source := _stored(folder, slot))} | set(others)
    return {own: file.read(name) for own, name, file in _own_tensors(folder, wanted)}


def _stored(folder: ModelFolder, slot: str) -> Rows | Derived | None:
    """Return the tensor that a slot is made from; None: it is made from none."""
    source = folder.architecture.source(slot)
    return None if isinstance(source, Computed) else source


def _own_tensors(
    folder: ModelFolder, wanted: Container[str]
) -> Iterator[tuple[str, str, TensorFile]]:
    """Yield names of the wanted tensors without prefix and with it, in the order of their file."""
    taken: dict[str, str] = {}
    with open_checkpoint(folder.weights_path) as file:
        for name in file.names():
            own = folder.architecture.own_name(name)
            if own not in wanted:  # the pooler, heads of other tasks, position_ids
                continue
            if own in taken:
                raise ValueError(
                    f"{folder.weights_path}: {taken[own]!r} and {name!r} are one tensor"
                )
            taken[own] = name
            yield own, name, file


def read_slots(folder: ModelFolder, slots: Iterable[str]) -> Iterator[tuple[str, FloatArray]]:
    """Yield slots and what goes into them, float32, in the order of the folder's file.

    First come those that are computed. Slots that the family has no tensor for are left out, and so
    are tensors that are missing.

    Raises:
        FileNotFoundError: the folder has no weights.
        ValueError: two tensors are for one slot (both are named), or the file is damaged.
    """
    for piece in _read_pieces(folder, slots, ()):
        yield piece.slot, piece.rows


class _Piece(NamedTuple):
    """All of what goes into a slot, or some of its rows."""

    slot: str
    rows: FloatArray
    first_row: int
    shape: tuple[int, ...]  # of all of it


def _read_pieces(
    folder: ModelFolder, slots: Iterable[str], large: Container[str]
) -> Iterator[_Piece]:
    """Do what read_slots does; slots of ``large`` come in pieces where they are whole tensors."""
    wanted: dict[str, list[tuple[str, Rows | Derived]]] = {}
    for slot in tuple(slots):  # the caller may take away what it is given
        source = folder.architecture.source(slot)
        if isinstance(source, Computed):
            made = source.of(folder.description)
            yield _Piece(slot, made, 0, made.shape)
        elif source:
            wanted.setdefault(source.name, []).append((slot, source))
    for own, name, file in _own_tensors(folder, wanted):
        slot, source = wanted[own][0]
        if slot in large and wanted[own] == [(slot, Rows(own))]:
            shape, pieces = file.pieces(name)
            first_row = 0
            for rows in pieces:
                yield _Piece(slot, rows, first_row, shape)
                first_row += len(rows)
            continue
        array = file.read(name)
        for slot, source in wanted[own]:
            try:
                made = source.of(array, folder.description)
            except (IndexError, ValueError) as error:
                raise ValueError(
                    f"{folder.weights_path}: {own!r} has shape {list(array.shape)}: {error}"
                ) from error
            yield _Piece(slot, made, 0, made.shape)


def new_encoder(description: ModelDescription, dtype: str, device: str = "cpu") -> core.Encoder:
    """Return a native encoder without weights. dtype: "float32", "bfloat16", "int8" or "float16".

    Raises:
        ValueError: the device's kernels do not take this model, or there are none.
    """
    native: Any = core.Encoder
    if device != "cpu":
        native = functools.partial(cuda_module().Encoder, device=Device(device).index)
    encoder: core.Encoder = native(description, dtype=dtype)
    return encoder


def set_weights(encoder: core.Encoder, folder: ModelFolder, done: Iterable[str] = ()) -> None:
    """Pack the folder's float tensors, each read, packed and dropped, and finish the encoder.

    Args:
        encoder: without weights, but for those of ``done``.
        folder: of the model that the encoder was made for.
        done: slots that are filled.

    Raises:
        ValueError: a tensor is missing, misshapen, of another dtype or of no use in a layer
            (named).

    Warns:
        RuntimeWarning: a tensor holds NaN.
    """
    path = folder.weights_path
    shapes = {slot: tuple(shape) for slot, shape in encoder.weight_slots().items()}
    empty = shapes.keys() - set(done)
    names: dict[str, str] = {}
    for slot in sorted(empty):
        source = folder.architecture.source(slot)
        names[slot] = slot if isinstance(source, Computed) or source is None else source.name
        if source is None:
            encoder.set_weight(slot, np.zeros(shapes[slot], np.float32))
            empty.remove(slot)
    if not done:
        _check_layers(folder, set(names.values()))
    has_nan: set[str] = set()
    for slot, rows, first_row, whole in _read_pieces(folder, empty, _LARGE):
        name = names[slot]
        if name not in has_nan and rows.size and np.isnan(rows.min()):
            has_nan.add(name)
            warnings.warn(f"{path}: tensor {name!r} holds NaN", RuntimeWarning, stacklevel=3)
        if whole != shapes[slot]:
            raise ValueError(
                f"{path}: {name!r} has shape {list(whole)}, wanted {list(shapes[slot])}"
            )
        if rows.shape == whole:
            encoder.set_weight(slot, rows)
        else:
            encoder.set_weight_rows(slot, rows, first_row)
        if first_row + len(rows) == whole[0]:
            empty.remove(slot)
    if empty:
        slot = min(empty)
        shape = list(shapes[slot])
        raise ValueError(f"{path}: the checkpoint lacks {names[slot]!r}, shape {shape}")
    encoder.finish_weights()


def _check_layers(folder: ModelFolder, used: Container[str]) -> None:
    """Check that all tensors of the layers are used: another one would change what they compute.

    Raises:
        ValueError: one is not (named).
    """
    with open_checkpoint(folder.weights_path) as file:
        for name in file.names():
            own = folder.architecture.own_name(name)
            layer = _LAYER.search(own)
            is_extra = layer is not None and own not in used and not own.endswith("inv_freq")
            if is_extra and int(layer[1]) < folder.description.num_hidden_layers:  # type: ignore[index]
                raise ValueError(
                    f"{folder.weights_path}: minifuse has no use for {name!r}, so it would not "
                    "compute this model: use sentence-transformers"
                )


def load_encoder(folder: ModelFolder, dtype: str = "float32", device: str = "cpu") -> core.Encoder:
    """Return the native encoder in a type of floats, its weights packed.

    Raises and warns as set_weights does.

    Raises:
        FileNotFoundError: the folder has no weights.
        ValueError: the folder holds int8 matrices only.
    """
    if folder.is_quantized:
        raise ValueError(
            f"{folder.path}: holds int8 weights only, dtype={dtype!r} needs the model that they "
            "were made from"
        )
    encoder = new_encoder(folder.description, dtype, device)
    set_weights(encoder, folder)
    return encoder
