"""The tensors of a folder, in the slots of a native encoder."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Container, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from minifuse.models.checkpoint import open_checkpoint
from minifuse.models.description import ModelDescription
from minifuse.models.folder import ModelFolder
from minifuse.native import core
from minifuse.native.devices import Device, cuda_module

__all__ = ["load_encoder", "new_encoder", "read_slots", "set_weights", "stored_tensors"]

FloatArray = npt.NDArray[np.float32]


def stored_tensors(
    folder: ModelFolder, slots: Iterable[str], others: Iterable[str] = ()
) -> dict[str, FloatArray]:
    """Return the whole tensors that these slots are made from, and others that the file has.

    By their names without prefix.

    Raises:
        FileNotFoundError: the folder has no weights.
        ValueError: two tensors are one (both are named), or the file is damaged.
    """
    architecture = folder.architecture
    sources = [architecture.source(slot) for slot in slots]
    wanted = {source.name for source in sources if source} | set(others)
    return dict(_read_own(folder, wanted))


def _read_own(folder: ModelFolder, wanted: Container[str]) -> Iterator[tuple[str, FloatArray]]:
    """Yield the wanted tensors in the order of the file, by their names without prefix."""
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
            yield own, file.read(name)


def read_slots(folder: ModelFolder, slots: Iterable[str]) -> Iterator[tuple[str, FloatArray]]:
    """Yield slots and what goes into them, float32, in the order of the folder's file.

    Slots that the family has no tensor for are left out, and so are tensors that are missing.

    Raises:
        FileNotFoundError: the folder has no weights.
        ValueError: two tensors are for one slot (both are named), or the file is damaged.
    """
    architecture = folder.architecture
    wanted: dict[str, list[str]] = {}
    for slot in slots:
        if source := architecture.source(slot):
            wanted.setdefault(source.name, []).append(slot)
    for own, array in _read_own(folder, wanted):
        for slot in wanted[own]:
            try:
                made = architecture.source(slot).of(array, folder.description)  # type: ignore[union-attr]
            except (IndexError, ValueError) as error:
                shape = list(array.shape)
                raise ValueError(
                    f"{folder.weights_path}: {own!r} has shape {shape}: {error}"
                ) from error
            yield slot, made


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
        ValueError: a tensor is missing, misshapen or of another dtype (named).

    Warns:
        RuntimeWarning: a tensor holds NaN.
    """
    path, architecture = folder.weights_path, folder.architecture
    shapes = {slot: tuple(shape) for slot, shape in encoder.weight_slots().items()}
    empty = shapes.keys() - set(done)
    for slot in sorted(empty):
        if architecture.source(slot) is None:
            encoder.set_weight(slot, np.zeros(shapes[slot], np.float32))
            empty.remove(slot)
    for slot, array in read_slots(folder, empty):
        name = architecture.source(slot).name  # type: ignore[union-attr]
        if array.size and np.isnan(array.min()):
            warnings.warn(f"{path}: tensor {name!r} holds NaN", RuntimeWarning, stacklevel=3)
        if array.shape != shapes[slot]:
            raise ValueError(
                f"{path}: {name!r} has shape {list(array.shape)}, wanted {list(shapes[slot])}"
            )
        encoder.set_weight(slot, array)
        empty.remove(slot)
    if empty:
        slot = min(empty)
        name = architecture.source(slot).name  # type: ignore[union-attr]
        raise ValueError(f"{path}: the checkpoint lacks {name!r}, shape {list(shapes[slot])}")
    encoder.finish_weights()


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
