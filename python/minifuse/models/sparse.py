"""Texts to sparse vectors: the head of a masked language model gives every word of the vocabulary a
weight in a text (SPLADE, Formal et al. 2021). Some models weigh the words of a query by a table
alone, without an encoder (Geng et al. 2024, arXiv:2411.04403).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from minifuse.models.checkpoint import open_checkpoint
from minifuse.models.description import read_object
from minifuse.models.folder import ModelFolder
from minifuse.models.modules import weights_of
from minifuse.models.pipeline import Pipeline, Request
from minifuse.native import FloatArray, core
from minifuse.native.devices import Device
from minifuse.tokens.token_batch import TokenBatch
from minifuse.tokens.tokenization import TextTokenizer

__all__ = [
    "MaskedLanguageHead",
    "SparsePipeline",
    "SparseRow",
    "WordWeights",
    "read_masked_language_head",
    "read_word_weights",
]

# Weights of all words that exist at a time, in floats: 64 texts of BERT's vocabulary.
_MOST_WEIGHTS = 1 << 21
_MOST_WEIGHT = 3e38  # of a word: what float32 holds


class MaskedLanguageHead(NamedTuple):
    """LayerNorm(activation(x W^T + b)) D^T + c, of which only the highest scores are kept.

    Attributes:
        dense, bias: W [H, H], and b [H] or None.
        activation: by the kernels' name.
        gamma, beta: of the LayerNorm, [H].
        eps: of the LayerNorm.
        decoder, decoder_bias: D [vocab_size, H], and c [vocab_size].
    """

    dense: core.PackedLinear
    bias: FloatArray | None
    activation: str
    gamma: FloatArray
    beta: FloatArray
    eps: float
    decoder: core.PackedLinear
    decoder_bias: FloatArray

    def weights(
        self, rows: FloatArray, cu_seqlens: npt.NDArray[np.int32], is_twice: bool
    ) -> FloatArray:
        """The weight of each word in each text, [batch, vocab_size]: log(1 + max(0, score)).

        Args:
            rows: [total_tokens, H], the encoder's.
            cu_seqlens: int32 [batch + 1].
            is_twice: take the logarithm twice.
        """
        hidden = core.linear(rows, self.dense, self.bias, self.activation)
        hidden = core.layer_norm(hidden, self.gamma, self.beta, self.eps, None)
        return core.splade_weights(hidden, cu_seqlens, self.decoder, self.decoder_bias, is_twice)


def read_masked_language_head(folder: ModelFolder, dtype: str) -> MaskedLanguageHead:
    """Return the head that a folder's file of weights has.

    Args:
        folder: of a masked language model.
        dtype: of the matrices: "float32" or "bfloat16".

    Raises:
        ValueError: the family has no such head, or a tensor is missing or misshapen.
    """
    names = folder.architecture.masked_language
    if names is None:
        raise ValueError(f"{folder.path}: minifuse has no sparse encoders of this family")
    path, what = folder.weights_path, folder.description
    H, V = what.hidden_size, what.vocab_size
    with open_checkpoint(path) as file:
        own = {folder.architecture.own_name(name): name for name in file.names()}

        def read(shape: tuple[int, ...], *wanted: str) -> FloatArray | None:
            for name in wanted:
                if name in own:
                    tensor = file.read(own[name])
                    if tensor.shape != shape:
                        raise ValueError(
                            f"{path}: {name!r} has shape {list(tensor.shape)}, wanted {list(shape)}"
                        )
                    return tensor
            return None

        def need(shape: tuple[int, ...], *wanted: str) -> FloatArray:
            tensor = read(shape, *wanted)
            if tensor is None:
                raise ValueError(
                    f"{path}: lacks the tensor {wanted[0]!r}: not a masked language model"
                )
            return tensor

        word = folder.architecture.source("embeddings.word")
        tied = getattr(word, "name", "")
        beta = read((H,), f"{names.norm}.bias")
        bias = read((V,), f"{names.decoder}.bias", *names.biases)
        return MaskedLanguageHead(
            dense=core.pack_linear(need((H, H), f"{names.dense}.weight"), dtype),
            bias=read((H,), f"{names.dense}.bias"),
            activation=names.activation or what.activation,
            gamma=need((H,), f"{names.norm}.weight"),
            beta=np.zeros(H, np.float32) if beta is None else beta,
            eps=what.layer_norm_eps,
            decoder=core.pack_linear(need((V, H), f"{names.decoder}.weight", tied), dtype),
            decoder_bias=np.zeros(V, np.float32) if bias is None else bias,
        )


class SparseRow(NamedTuple):
    """The words that have a weight in a text.

    Attributes:
        words: int32 [active], ascending.
        weights: float32 [active].
    """

    words: npt.NDArray[np.int32]
    weights: FloatArray

    def largest(self, count: int) -> SparseRow:
        """At most so many of the largest weights; among equals the first words."""
        if len(self.words) <= count:
            return self
        kept = np.sort(np.argsort(-self.weights, kind="stable")[:count])
        return SparseRow(self.words[kept], self.weights[kept])


class WordWeights(NamedTuple):
    """A weight for each word, which it has in every query that it stands in.

    Attributes:
        tokenizer: of queries; it adds no special tokens.
        weights: float32 [vocab_size].
        max_seq_length: words of a query that count, at most.
    """

    tokenizer: TextTokenizer
    weights: FloatArray
    max_seq_length: int

    def rows(self, texts: Sequence[str], num_threads: int) -> list[SparseRow]:
        """The words of each text with their weights."""
        tokens = self.tokenizer.encode(texts, self.max_seq_length, num_threads)
        found = []
        for ids in np.split(tokens.ids, tokens.cu_seqlens()[1:-1]):
            words = np.unique(ids)
            words = words[self.weights[words] != 0]
            found.append(SparseRow(words, self.weights[words]))
        return found


def read_word_weights(path: Path) -> WordWeights:
    """Return the weights of a SparseStaticEmbedding's folder.

    Raises:
        FileNotFoundError: the weights or the tokenizer are missing.
        ValueError: a file is damaged, or the tokenizer has words without a weight.
    """
    tokenizer = TextTokenizer.from_folder(path, adds_special=False)
    name = str(read_object(path / "config.json").get("path") or "model.safetensors")
    if name.endswith(".json"):
        weights = np.zeros(tokenizer.vocab_size, np.float32)
        for word, weight in read_object(path / Path(name).name).items():
            number = tokenizer.backend.token_to_id(word)
            is_number = type(weight) in (int, float) and abs(weight) < _MOST_WEIGHT
            if number is None or not is_number:
                raise ValueError(f"{path}: {word!r:.40} with {weight!r:.40} is no word's weight")
            weights[number] = weight
    else:
        with open_checkpoint(weights_of(path)) as file:
            if "weight" not in file.names():
                raise ValueError(f"{path}: lacks the tensor 'weight'")
            weights = file.read("weight")
    if weights.ndim != 1 or len(weights) < tokenizer.vocab_size or not np.isfinite(weights).all():
        raise ValueError(
            f"{path}: 'weight' has shape {list(weights.shape)}, wanted a finite number for each of "
            f"the {tokenizer.vocab_size} words"
        )
    length = _max_length(path)
    return WordWeights(tokenizer, weights, length)


def _max_length(path: Path) -> int:
    settings = path / "tokenizer_config.json"
    value = read_object(settings).get("model_max_length") if settings.is_file() else None
    # Numbers beyond any text stand for no limit.
    return int(value) if isinstance(value, (int, float)) and 1 <= value < 1 << 24 else 1 << 24


class SparsePipeline(Pipeline):
    """A model's tokenizer, encoder and head for masked words, on the CPU.

    Attributes:
        head: the head; its matrices are in bfloat16 where the encoder's are in fewer bits.
        queries: weights of words in queries; None: queries are encoded as documents are.
    """

    def __init__(
        self, folder: ModelFolder, dtype: str | None, device: Device, num_threads: int
    ) -> None:
        super().__init__(folder, dtype, device, num_threads)
        kind = "float32" if self.dtype == "float32" else "bfloat16"
        self.head = read_masked_language_head(folder, kind)
        self.width = folder.description.vocab_size
        self.queries = (
            None if folder.queries_path is None else read_word_weights(folder.queries_path)
        )
        if self.queries is not None and len(self.queries.weights) > self.width:
            raise ValueError(
                f"{folder.path}: queries have {len(self.queries.weights)} words and documents "
                f"{self.width}: they belong to different models"
            )

    def rows_of(
        self, texts: list[Any], request: Request, advance: Callable[[int], Any], task: str | None
    ) -> list[SparseRow]:
        """Weights of words in texts: of queries by the table, where the model has one.

        Raises as encode and encode_queries do.
        """
        if self.queries is not None and (task or self.folder.default_route) == "query":
            return self.encode_queries(texts, request)
        rows: list[SparseRow] = self.encode(texts, request, advance)[0]
        return rows

    def encode_queries(self, texts: list[Any], request: Request) -> list[SparseRow]:
        """Weights of words in queries, by the table.

        Raises:
            TypeError: an input is not a string.
            ValueError: it is not valid Unicode.
        """
        assert self.queries is not None
        for place, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"inputs[{place}] is a {type(text).__name__}, wanted a string")
        return self.queries.rows([request.prompt + text for text in texts], request.num_threads)

    def _room(self, num_texts: int, request: Request) -> Any:
        return [None] * num_texts

    def _encode_tokens(self, tokens: TokenBatch, pool_from: int, request: Request) -> Any:
        """Tokens of a window -> a SparseRow for each text."""
        found: list[SparseRow] = []
        cu_seqlens, step = tokens.cu_seqlens(), max(1, _MOST_WEIGHTS // self.width)
        for first in range(0, len(tokens.seqlens), step):
            offsets = cu_seqlens[first : first + step + 1]
            begin, end = int(offsets[0]), int(offsets[-1])
            types = None if tokens.token_types is None else tokens.token_types[begin:end]
            offsets = offsets - offsets[0]
            rows = self.encoder.token_embeddings(
                tokens.ids[begin:end], offsets, token_types=types, **self._limits(request)
            )
            for weights in self.head.weights(rows, offsets, self.folder.takes_log_twice):
                words = np.flatnonzero(weights)
                found.append(SparseRow(words.astype(np.int32), weights[words]))
        return found
