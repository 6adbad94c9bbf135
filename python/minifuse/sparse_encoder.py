"""SparseEncoder: texts as weights of the words of a vocabulary, by sentence-transformers' names."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from minifuse.base_model import either, progress_bar
from minifuse.embedding_model import EmbeddingModel
from minifuse.models.folder import read_sparse_folder
from minifuse.models.inputs import as_list, checked_batch_size, length_of_call
from minifuse.models.pipeline import Pipeline, Request
from minifuse.models.sparse import SparsePipeline, SparseRow
from minifuse.native.devices import Device
from minifuse.tensors import import_torch

__all__ = ["SparseEncoder"]


class SparseEncoder(EmbeddingModel):
    """A model that gives every word of its vocabulary a weight in a text (SPLADE).

    Args:
        model_name_or_path: a folder or a Hugging Face name of a masked language model, with or
            without sentence-transformers' modules.
        similarity_fn_name: "dot", "cosine", "euclidean" or "manhattan"; None takes the folder's, or
            "dot".
        max_active_dims: keep only so many of the largest weights of a text; None takes the
            folder's, or all.
        device, dtype, num_threads, prompts, cache_folder and others: as SentenceTransformer's.

    Raises:
        FileNotFoundError: no such model, or a file of it is missing.
        ValueError: the model or an argument asks for what minifuse does not compute.
    """

    model_type = "SparseEncoder"
    _read_folder = staticmethod(read_sparse_folder)

    @staticmethod
    def _pipeline_of(device: Device) -> type[Pipeline]:
        if device != "cpu":
            raise ValueError(f"device is {device}: sparse encoders run on the CPU: device='cpu'")
        return SparsePipeline

    def __init__(
        self,
        model_name_or_path: str | Path | None = None,
        *,
        similarity_fn_name: Any = None,
        max_active_dims: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model_name_or_path, **kwargs)
        folder = self.pipeline.folder
        self.similarity_fn_name = similarity_fn_name or folder.similarity_fn_name or "dot"
        self.max_active_dims = max_active_dims or folder.max_active_dims

    def __repr__(self) -> str:
        return (
            f"SparseEncoder('{self.name}', max_seq_length={self.max_seq_length}, "
            f"vocabulary={self.pipeline.width}, dtype='{self.dtype}', isa='{self.isa}', "
            f"num_threads={self._num_threads})"
        )

    @property
    def max_active_dims(self) -> int | None:
        """Only so many of the largest weights of a text are kept; None: all."""
        return self._max_active_dims

    @max_active_dims.setter
    def max_active_dims(self, value: int | None) -> None:
        self._max_active_dims = _checked_dims(value)

    def get_embedding_dimension(self) -> int:
        """Words of the vocabulary."""
        return self.pipeline.width

    def get_sentence_embedding_dimension(self) -> int:
        """The same by its old name."""
        return self.pipeline.width

    def _state(self) -> dict[str, Any]:
        own = {"similarity": self._similarity_fn_name, "active": self._max_active_dims}
        return super()._state() | own

    def _restore(self, state: dict[str, Any]) -> None:
        super()._restore(state)
        self._similarity_fn_name, self._max_active_dims = state["similarity"], state["active"]

    def _settings(self) -> dict[str, Any]:
        settings = super()._settings()
        if self._max_active_dims is not None:
            settings["max_active_dims"] = self._max_active_dims
        return settings

    # ---- vectors ----------------------------------------------------------------------------

    def encode(
        self,
        inputs: Any = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        convert_to_tensor: bool = True,
        convert_to_sparse_tensor: bool = True,
        save_to_cpu: bool = False,
        device: Any = None,
        max_active_dims: int | None = None,
        pool: Any = None,
        chunk_size: int | None = None,
        *,
        sentences: Any = None,
        task: str | None = None,
        num_threads: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Sparse vectors of texts, one weight a word of the vocabulary.

        Memory grows with texts times vocabulary for 64 texts at a time and never with tokens times
        vocabulary.

        Args:
            inputs: a text or a sequence of texts. ``sentences`` is its old name.
            prompt_name, prompt: put before every text.
            batch_size: at most so many texts share one pass of a thread. It bounds memory and never
                changes a bit of the result.
            show_progress_bar: None shows one where the logger's level is INFO or DEBUG.
            convert_to_tensor: one tensor of all texts; False gives a list of them.
            convert_to_sparse_tensor: False gives dense tensors.
            save_to_cpu, device: accepted: a sparse encoder runs on the CPU.
            max_active_dims: for this call; None takes the model's.
            pool, chunk_size: accepted and ignored, because threads serve.
            task: "query" or "document", which some models tell apart; None: the model's default.
            num_threads: for this call; None takes the model's.

        Returns:
            A sparse tensor [n, vocabulary]; [vocabulary] for one text. Where PyTorch is not
            installed, a scipy.sparse.csr_matrix [n, vocabulary], of one row for one text.

        Raises:
            TypeError: an input is no string.
            ValueError: an argument that is out of range, a lone surrogate.
            ImportError: neither PyTorch nor SciPy is installed.
            KeyboardInterrupt: within a second of Ctrl-C.
        """
        inputs = either(inputs, sentences, "inputs", "sentences")
        if inputs is None:
            raise TypeError("inputs is None, wanted a text or a sequence of texts")
        batch_size = checked_batch_size(batch_size)
        if task not in (None, "query", "document"):
            raise ValueError(f"task is {task!r}, wanted 'query', 'document' or None")
        self._check_device(device)
        is_single = self.is_singular_input(inputs)
        texts = [inputs] if is_single else as_list(inputs)
        request = Request(
            num_threads=self._threads_of_call(num_threads),
            prompt=self._resolve_prompt(prompt, prompt_name) or "",
            batch_size=batch_size,
            max_length=length_of_call(f"{type(self).__name__}.encode()", kwargs),
        )
        pipeline = self.pipeline
        assert isinstance(pipeline, SparsePipeline)
        with progress_bar(len(texts), show_progress_bar) as advance:
            rows = pipeline.rows_of(texts, request, advance, task)
        most = _checked_dims(max_active_dims)
        most = self._max_active_dims if most is None else most
        if most is not None:
            rows = [row.largest(most) for row in rows]
        torch = _torch_or_none()
        if torch is None:
            return _csr_matrix(rows, pipeline.width)
        result = _sparse_tensor(rows, pipeline.width, torch)
        result = result if convert_to_sparse_tensor else result.to_dense()
        if is_single:
            return result[0]
        return result if convert_to_tensor else list(result)

    # ---- what they mean ---------------------------------------------------------------------

    def decode(self, embeddings: Any, top_k: int | None = None) -> Any:
        """The words that have a weight, with it, the heaviest first.

        Args:
            embeddings: what encode gives: a tensor or a csr_matrix, of one text or of several.
            top_k: give only so many words a text.

        Returns:
            A list of (word, weight) for one text (a tensor of one dimension), a list of these for
            several.

        Raises:
            TypeError: the embeddings are of another kind.
            ValueError: top_k is below 1, or a tensor has other dimensions.
        """
        if top_k is not None and top_k <= 0:
            raise ValueError(f"top_k must be a positive integer, got {top_k}.")
        rows, is_single = _rows_of(embeddings)
        decoded = []
        for row in rows:
            order = np.argsort(-row.weights, kind="stable")[:top_k]
            words, weights = row.words[order].tolist(), row.weights[order].tolist()
            names = [self.tokenizer.id_to_token(word) for word in words]
            decoded.append(list(zip(names, weights, strict=True)))
        return decoded[0] if is_single else decoded

    @staticmethod
    def intersection(embeddings_1: Any, embeddings_2: Any) -> Any:
        """The words that have a weight in both, with the product of their weights.

        Args:
            embeddings_1, embeddings_2: what encode gives: one text's with one's or with several, or
                as many with as many.

        Returns:
            Sparse vectors of the same kind.

        Raises:
            ValueError: unequal numbers of texts.
        """
        if type(embeddings_1).__module__.startswith("scipy.sparse"):
            if embeddings_1.shape[0] == 1 != embeddings_2.shape[0]:
                embeddings_1, embeddings_2 = embeddings_2, embeddings_1
            return embeddings_1.multiply(embeddings_2).tocsr()
        first, second = _dense(embeddings_1), _dense(embeddings_2)
        if first.ndim == second.ndim == 2 and len(first) != len(second):
            raise ValueError(
                f"{len(first)} texts and {len(second)}, wanted as many, or one text alone"
            )
        product = (first * second).detach().cpu().numpy()
        rows = [
            SparseRow(np.flatnonzero(row).astype(np.int32), row[row != 0])
            for row in np.atleast_2d(product)
        ]
        result = _sparse_tensor(rows, product.shape[-1], import_torch())
        return result[0] if product.ndim == 1 else result

    @staticmethod
    def sparsity(embeddings: Any) -> dict[str, float]:
        """Words that have a weight, on average, and the share of those that have none.

        Args:
            embeddings: what encode gives.

        Returns:
            "active_dims" and "sparsity_ratio".
        """
        rows, is_single = _rows_of(embeddings)
        width = embeddings.shape[0] if is_single else embeddings.shape[1]
        if not rows or width == 0:
            return {"active_dims": 0.0, "sparsity_ratio": 1.0}
        active = float(np.mean([len(row.words) for row in rows]))
        return {"active_dims": active, "sparsity_ratio": 1.0 - active / width}

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Every row with every row by similarity_fn_name: a dense [n1, n2]."""
        return super().similarity(_dense(embeddings1), _dense(embeddings2))

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Row i with row i by similarity_fn_name: [n]."""
        return super().similarity_pairwise(_dense(embeddings1), _dense(embeddings2))


def _checked_dims(value: int | None) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, np.integer))):
        raise TypeError(f"max_active_dims is {value!r}, wanted an integer or None")
    if value is not None and value < 1:
        raise ValueError(f"max_active_dims is {value}, wanted >= 1")
    return None if value is None else int(value)


def _torch_or_none() -> Any:
    try:
        return import_torch()
    except ImportError:
        return None


def _joined(rows: Sequence[SparseRow]) -> tuple[npt.NDArray[np.int64], Any, Any]:
    """The place where each row begins, and the words and weights of all."""
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row.words) for row in rows], out=offsets[1:])
    if not rows:
        return offsets, np.zeros(0, np.int32), np.zeros(0, np.float32)
    words = np.concatenate([row.words for row in rows])
    return offsets, words, np.concatenate([row.weights for row in rows])


def _csr_matrix(rows: Sequence[SparseRow], width: int) -> Any:
    try:
        from scipy.sparse import csr_matrix
    except ImportError as error:
        raise ImportError(
            "sparse vectors are tensors of PyTorch or matrices of SciPy, and neither is installed: "
            "pip install scipy"
        ) from error
    offsets, words, weights = _joined(rows)
    return csr_matrix((weights, words, offsets), shape=(len(rows), width))


def _sparse_tensor(rows: Sequence[SparseRow], width: int, torch: Any) -> Any:
    offsets, words, weights = _joined(rows)
    texts = np.repeat(np.arange(len(rows)), np.diff(offsets))
    places = torch.from_numpy(np.stack([texts, words.astype(np.int64)]))
    size = (len(rows), width)
    return torch.sparse_coo_tensor(
        places, torch.from_numpy(weights), size, is_coalesced=True, check_invariants=True
    )


def _rows_of(embeddings: Any) -> tuple[list[SparseRow], bool]:
    """Sparse rows of a tensor or csr_matrix, and whether it is one text's."""
    if type(embeddings).__module__.startswith("scipy.sparse"):
        matrix = embeddings.tocsr()
        matrix.sum_duplicates()
        spans = itertools.pairwise(matrix.indptr.tolist())
        return [SparseRow(matrix.indices[b:e], matrix.data[b:e]) for b, e in spans], False
    if not type(embeddings).__module__.startswith("torch"):
        raise TypeError(
            f"embeddings are a {type(embeddings).__name__}, wanted a torch.Tensor or a csr_matrix"
        )
    if embeddings.ndim not in (1, 2):
        raise ValueError(f"Input tensor must be 1D or 2D, got {embeddings.ndim}D.")
    is_single = embeddings.ndim == 1
    dense = (embeddings[None] if is_single else embeddings).detach().cpu()
    sparse = (dense if dense.is_sparse else dense.to_sparse()).coalesce()
    texts, words = sparse.indices().numpy()
    weights = sparse.values().numpy()
    begins = np.searchsorted(texts, np.arange(sparse.shape[0] + 1)).tolist()
    spans = itertools.pairwise(begins)
    return [SparseRow(words[b:e], weights[b:e]) for b, e in spans], is_single


def _dense(embeddings: Any) -> Any:
    """A tensor or array without holes, for the measures of similarity."""
    if isinstance(embeddings, (list, tuple)):
        return import_torch().stack([_dense(one) for one in embeddings])
    if type(embeddings).__module__.startswith("scipy.sparse"):
        return np.asarray(embeddings.todense(), np.float32)
    is_sparse = getattr(embeddings, "is_sparse", False)
    return embeddings.to_dense() if is_sparse else embeddings
