"""The encoder in 8 bits: matrices smoothed and quantised, at load or once into a folder.

A matrix's inputs are quantised row by row, so an input channel that is large in every row would
take the resolution of all others. SmoothQuant (Xiao et al. 2023) hands a part of such a channel's
range to the weights, by the largest magnitude that it takes on sample text: here on sentences and
paragraphs of our own, so that a model needs no data to be loaded.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from minifuse import sample_text
from minifuse.files import ignore_other_engines, new_folder
from minifuse.loading import (
    QUANTIZED_WEIGHTS,
    BertConfig,
    ModelFolder,
    iterate_weights,
    load_encoder,
    new_encoder,
    read_model_folder,
    set_weights,
)
from minifuse.native import core
from minifuse.resolve import resolve_model
from minifuse.safetensors import SafetensorsFile, write_safetensors
from minifuse.tokenization import TextTokenizer

__all__ = ["QuantizedMatrix", "load_quantized_encoder", "quantize", "quantized_matrices"]

_FORMAT = {"format": "minifuse-int8", "version": "1"}


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


def _matrices_of_a_layer(config: BertConfig) -> Iterator[tuple[str, list[str], int]]:
    """(name, the checkpoint's names whose rows it joins, number of inputs), within a layer.

    In the order of Encoder.input_maxima's columns.
    """
    projections = [f"attention.self.{one}.weight" for one in ("query", "key", "value")]
    yield "attention.self.qkv.weight", projections, config.hidden_size
    for name in ("attention.output.dense.weight", "intermediate.dense.weight"):
        yield name, [name], config.hidden_size
    yield "output.dense.weight", ["output.dense.weight"], config.intermediate_size


def _input_maxima(
    folder: ModelFolder, tokenizer: TextTokenizer, num_threads: int
) -> npt.NDArray[np.float32]:
    """The largest magnitude of every input channel of every matrix, on the sample text.

    Returns:
        [num_hidden_layers, 3 hidden_size + intermediate_size]: what goes into Q, K and V, the
        attention's output matrix, W1 and W2, one after the other.
    """
    texts = [*sample_text.SENTENCES, *sample_text.paragraphs(4)]
    batch = tokenizer.encode(texts, folder.max_seq_length)
    encoder = load_encoder(folder)
    return encoder.input_maxima(batch.ids, batch.cu_seqlens(), num_threads=num_threads)


def quantized_matrices(
    folder: ModelFolder, tokenizer: TextTokenizer, num_threads: int
) -> Iterator[tuple[str, QuantizedMatrix]]:
    """Every matrix of the encoder in 8 bits, by the name under which the native encoder takes it.

    Raises and warns as load_encoder does.
    """
    maxima = _input_maxima(folder, tokenizer, num_threads)
    for layer, row in enumerate(maxima):
        prefix, begin = f"encoder.layer.{layer}.", 0
        for name, parts, num_inputs in _matrices_of_a_layer(folder.config):
            names = [prefix + part for part in parts]
            tensors = dict(iterate_weights(folder, set(names)))
            weight = np.concatenate([tensors[one] for one in names])
            max_input = np.ascontiguousarray(row[begin : begin + num_inputs])
            yield prefix + name, QuantizedMatrix(*core.quantize_linear(weight, max_input))
            begin += num_inputs


def _saved_matrices(path: Path, config: BertConfig) -> Iterator[tuple[str, QuantizedMatrix]]:
    """What quantize() wrote, matrix by matrix."""
    with SafetensorsFile(path) as file:
        if file.metadata.get("format") != _FORMAT["format"]:
            raise ValueError(f"{path}: not written by 'minifuse quantize'")
        if file.metadata.get("version") != _FORMAT["version"]:
            raise ValueError(
                f"{path}: version {file.metadata.get('version')!r}, wanted {_FORMAT['version']!r}: "
                "quantise the model again with this minifuse"
            )
        for layer in range(config.num_hidden_layers):
            for name, _, _ in _matrices_of_a_layer(config):
                full = f"encoder.layer.{layer}.{name}"
                for part in QuantizedMatrix._fields:
                    if f"{full}.{part}" not in file.names():
                        raise ValueError(f"{path}: lacks the tensor '{full}.{part}'")
                yield (
                    full,
                    QuantizedMatrix(
                        codes=file.read_int8(f"{full}.codes"),
                        scale=file.read(f"{full}.scale"),
                        input_scale=file.read(f"{full}.input_scale"),
                    ),
                )


def load_quantized_encoder(
    folder: ModelFolder, tokenizer: TextTokenizer, num_threads: int
) -> core.Encoder:
    """The native encoder with int8 matrices: as the folder holds them, or quantised now.

    Raises and warns as load_encoder does.
    """
    matrices: Iterable[tuple[str, QuantizedMatrix]]
    if folder.is_quantized:
        matrices = _saved_matrices(folder.weights_path, folder.config)
    else:
        matrices = quantized_matrices(folder, tokenizer, num_threads)
    encoder = new_encoder(folder.config, "int8")
    for name, matrix in matrices:
        try:
            encoder.set_quantized_weight(name, *matrix)
        except ValueError as error:
            raise ValueError(f"{folder.weights_path}: {error}") from error
    set_weights(encoder, folder)
    return encoder


def quantize(
    model_name_or_path: str | Path, output: str | Path, *, num_threads: int | None = None
) -> Path:
    """Write a model as a folder whose matrices are in int8, so that it loads at once.

    SentenceTransformer(output) gives bit for bit the vectors of the model loaded with dtype="int8"
    by the same version of minifuse, whatever the instruction set. The folder appears whole or not
    at all; sentence-transformers cannot read it.

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
    folder = read_model_folder(resolve_model(str(model_name_or_path)))
    if folder.is_quantized:
        raise ValueError(f"{folder.path}: is quantised already; give the model it was made from")
    threads = core.default_num_threads() if num_threads is None else num_threads
    tokenizer = TextTokenizer.from_folder(folder.transformer_path, folder.do_lower_case)
    with new_folder(output) as copy:
        shutil.copytree(folder.path, copy, ignore=_ignored(folder.weights_path), dirs_exist_ok=True)
        tensors: dict[str, npt.NDArray[Any]] = {}
        for name, matrix in quantized_matrices(folder, tokenizer, threads):
            for part, array in matrix._asdict().items():
                tensors[f"{name}.{part}"] = array
        wanted = set(new_encoder(folder.config, "int8").expected_weights())
        tensors |= dict(iterate_weights(folder, wanted - {n.rpartition(".")[0] for n in tensors}))
        transformer = copy / folder.transformer_path.relative_to(folder.path)
        write_safetensors(transformer / QUANTIZED_WEIGHTS, tensors, _FORMAT)
    return Path(output)


def _ignored(weights_path: Path) -> Any:
    """For shutil.copytree: the float weights, and what only other engines read."""

    def ignored(folder: str, names: list[str]) -> set[str]:
        own = {weights_path.name} if Path(folder) == weights_path.parent else set()
        return {*ignore_other_engines(folder, names), *own}

    return ignored
