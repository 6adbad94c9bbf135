"""The encoder in 8 bits: matrices smoothed and quantised, at load or once into a folder.

A matrix's inputs are quantised row by row, so an input channel that is large in every row would
take the resolution of all others. SmoothQuant (Xiao et al. 2023) hands a part of such a channel's
range to the weights, by the largest magnitude that it takes on sample text. Weights are then
rounded so that the error of one makes up for another's where the inputs go together (GPTQ, Frantar
et al. 2023), by the inputs' second moments on the same text. The text is our own
(calibration_text.py), so that a model needs no data to be loaded.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from minifuse import ops
from minifuse.files.safetensors_file import SafetensorsFile, write_safetensors
from minifuse.files.whole import ignore_other_engines, new_folder
from minifuse.models import calibration_text
from minifuse.models.checkpoint import is_weight_file
from minifuse.models.folder import QUANTIZED_WEIGHTS, ModelFolder, read_folder
from minifuse.models.resolve import resolve_model
from minifuse.models.weights import (
    load_encoder,
    new_encoder,
    read_slots,
    set_weights,
    stored_tensors,
)
from minifuse.native import FloatArray, core
from minifuse.tokens.tokenization import TextTokenizer

__all__ = ["QuantizedMatrix", "load_quantized_encoder", "quantize", "quantized_matrices"]

# The calibration text is processed in batches with this many inputs of matrices: 16 MiB.
_MAX_INPUT_FLOATS = 1 << 22

_FORMAT = {"format": "minifuse-int8", "version": "2"}


class QuantizedMatrix(NamedTuple):
    """W[n, k] ~ scale[g, n] codes[n, k] input_scale[k], k in group g of inputs.

    Attributes:
        codes: int8 [out_features, in_features].
        scale: float32 [groups, out_features].
        input_scale: float32 [in_features], what a matrix's inputs are multiplied with.
    """

    codes: npt.NDArray[np.int8]
    scale: npt.NDArray[np.float32]
    input_scale: npt.NDArray[np.float32]


class _Matrix(NamedTuple):
    """A matrix of the encoder.

    Attributes:
        slot: its slot in int8.
        parts: the slots of the float weights whose rows it joins.
        num_inputs: its columns.
    """

    slot: str
    parts: list[str]
    num_inputs: int


def _matrices(encoder: core.Encoder, layer: int) -> list[_Matrix]:
    """Return the matrices of a layer in the order of the columns of Encoder.matrix_inputs."""
    return [
        _Matrix(
            f"layers.{layer}.{name}.weight",
            [f"layers.{layer}.{part}.weight" for part in parts],
            num_inputs,
        )
        for name, parts, num_inputs in encoder.layer_matrices()
    ]


class _InputStatistics:
    """Statistics of a matrix's inputs x.

    Attributes:
        max_input: float32 [in_features], the largest magnitude of each.
        moments: float32 [groups, INT8_GROUP, INT8_GROUP], the mean of x[i] x[j] within each group
            of inputs; zeros past in_features.
    """

    def __init__(self, num_inputs: int) -> None:
        size = core.INT8_GROUP
        self.max_input: FloatArray = np.zeros(num_inputs, np.float32)
        self.moments: FloatArray = np.zeros((-(-num_inputs // size), size, size), np.float32)

    def add(self, rows: FloatArray, share: float) -> None:
        """Rows [num_rows, in_features], each of which is this share of all.

        Sums are those of our own linear layer: the same bits on every machine.
        """
        np.maximum(self.max_input, np.abs(rows).max(axis=0), out=self.max_input)
        for group, total in enumerate(self.moments):
            begin = group * core.INT8_GROUP
            columns = np.ascontiguousarray(rows[:, begin : begin + core.INT8_GROUP].T)
            products = ops.linear(columns, columns) * np.float32(share)
            total[: len(columns), : len(columns)] += products


def _input_statistics(
    folder: ModelFolder, tokenizer: TextTokenizer, num_threads: int
) -> dict[str, _InputStatistics]:
    """Measure the inputs of every matrix, by its name, on the calibration text."""
    texts = calibration_text.TEXTS
    batch = tokenizer.encode(texts, folder.max_seq_length)
    ids, cu_seqlens = batch.ids, batch.cu_seqlens()
    encoder = load_encoder(folder)
    statistics = {
        matrix.slot: _InputStatistics(matrix.num_inputs)
        for layer in range(folder.description.num_hidden_layers)
        for matrix in _matrices(encoder, layer)
    }
    floats_a_token = sum(len(one.max_input) for one in statistics.values())
    tokens_at_once = max(1, _MAX_INPUT_FLOATS // max(1, floats_a_token))
    first = 0
    while first < len(texts):
        # At least one text, and as many as the limit lets in.
        last = int(np.searchsorted(cu_seqlens, cu_seqlens[first] + tokens_at_once, "right")) - 1
        last = max(last, first + 1)
        begin, end = cu_seqlens[first], cu_seqlens[last]
        inputs = encoder.matrix_inputs(
            ids[begin:end], cu_seqlens[first : last + 1] - begin, num_threads=num_threads
        )
        for layer, rows in enumerate(inputs):
            column = 0
            for slot, _, num_inputs in _matrices(encoder, layer):
                statistics[slot].add(rows[:, column : column + num_inputs], 1.0 / len(ids))
                column += num_inputs
        first = last
    return statistics


def quantized_matrices(
    folder: ModelFolder, tokenizer: TextTokenizer, num_threads: int
) -> Iterator[tuple[str, QuantizedMatrix]]:
    """Yield every matrix of the encoder in 8 bits, with its slot.

    Raises and warns as load_encoder does.
    """
    statistics = _input_statistics(folder, tokenizer, num_threads)
    encoder = new_encoder(folder.description, "int8")
    for layer in range(folder.description.num_hidden_layers):
        for slot, parts, _ in _matrices(encoder, layer):
            tensors = dict(read_slots(folder, parts))
            weight = np.concatenate([tensors[part] for part in parts])
            of_inputs = statistics.pop(slot)
            codes = core.quantize_linear(weight, of_inputs.max_input, of_inputs.moments)
            yield slot, QuantizedMatrix(*codes)


def _saved_matrices(path: Path, slots: Iterable[str]) -> Iterator[tuple[str, QuantizedMatrix]]:
    """Yield the matrices that quantize() wrote, one by one."""
    with SafetensorsFile(path) as file:
        if file.metadata.get("format") != _FORMAT["format"]:
            raise ValueError(f"{path}: not written by 'minifuse quantize'")
        if file.metadata.get("version") != _FORMAT["version"]:
            raise ValueError(
                f"{path}: version {file.metadata.get('version')!r}, wanted {_FORMAT['version']!r}: "
                "quantise the model again with this minifuse"
            )
        for slot in slots:
            for part in QuantizedMatrix._fields:
                if f"{slot}.{part}" not in file.names():
                    raise ValueError(f"{path}: lacks the tensor '{slot}.{part}'")
            yield (
                slot,
                QuantizedMatrix(
                    codes=file.read_int8(f"{slot}.codes"),
                    scale=file.read(f"{slot}.scale"),
                    input_scale=file.read(f"{slot}.input_scale"),
                ),
            )


def load_quantized_encoder(
    folder: ModelFolder, tokenizer: TextTokenizer, num_threads: int
) -> core.Encoder:
    """The native encoder with int8 matrices: as the folder holds them, or quantised now.

    Raises and warns as load_encoder does.
    """
    encoder = new_encoder(folder.description, "int8")
    slots = [
        matrix.slot
        for layer in range(folder.description.num_hidden_layers)
        for matrix in _matrices(encoder, layer)
    ]
    matrices: Iterable[tuple[str, QuantizedMatrix]]
    if folder.is_quantized:
        matrices = _saved_matrices(folder.weights_path, slots)
    else:
        matrices = quantized_matrices(folder, tokenizer, num_threads)
    for slot, matrix in matrices:
        try:
            encoder.set_quantized_weight(slot, *matrix)
        except ValueError as error:
            raise ValueError(f"{folder.weights_path}: {error}") from error
    set_weights(encoder, folder, done=slots)
    return encoder


def quantize(
    model_name_or_path: str | Path, output: str | Path, *, num_threads: int | None = None
) -> Path:
    """Write a model as a folder whose matrices are in int8, so that it loads at once.

    SentenceTransformer(output), CrossEncoder(output) or SparseEncoder(output), as the model is one,
    gives bit for bit the results of the model loaded with dtype="int8" by the same version of
    minifuse, whatever the instruction set. The folder appears whole or not at all;
    sentence-transformers cannot read it.

    Args:
        model_name_or_path: a folder or name, as SentenceTransformer takes it.
        output: a folder that does not exist or is empty.
        num_threads: at most this many; the default number if None.

    Returns:
        output, as a Path.

    Raises:
        FileExistsError: output holds files already.
        FileNotFoundError: no such model, or a file of it is missing.
        ValueError: the model is quantised already, or is not one that minifuse computes.
    """
    path = resolve_model(str(model_name_or_path))
    _, folder = read_folder(path)
    if folder.is_quantized:
        raise ValueError(f"{folder.path}: is quantised already; give the model it was made from")
    threads = core.default_num_threads() if num_threads is None else num_threads
    if folder.routes:
        raise ValueError(f"{folder.path}: a model with a Router cannot be quantised as a whole")
    if folder.is_static:
        raise ValueError(f"{folder.path}: a static model has no matrices to quantise")
    tokenizer = TextTokenizer.from_folder(folder.transformer_path, **folder.tokenizer_settings())
    with new_folder(output) as copy:
        shutil.copytree(folder.path, copy, ignore=_ignored(folder.weights_path), dirs_exist_ok=True)
        tensors: dict[str, npt.NDArray[Any]] = {}
        done = set()
        for slot, matrix in quantized_matrices(folder, tokenizer, threads):
            done.add(slot)
            for part, array in matrix._asdict().items():
                tensors[f"{slot}.{part}"] = array
        # All others keep the checkpoint's names and rows: they are read as a checkpoint's.
        slots = new_encoder(folder.description, "int8").weight_slots().keys() - done
        tensors |= stored_tensors(folder, slots, folder.head_tensors)
        transformer = copy / folder.transformer_path.relative_to(folder.path)
        write_safetensors(transformer / QUANTIZED_WEIGHTS, tensors, _FORMAT)
    return Path(output)


def _ignored(weights_path: Path) -> Any:
    """For shutil.copytree: the float weights, and what only other engines read."""

    def ignored(folder: str, names: list[str]) -> set[str]:
        is_own = Path(folder) == weights_path.parent
        own = {name for name in names if is_own and is_weight_file(name)}
        return {*ignore_other_engines(folder, names), *own}

    return ignored
