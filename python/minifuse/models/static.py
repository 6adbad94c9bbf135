"""Static models: a text is the mean of its tokens' rows of a table, without an encoder.

sentence-transformers' StaticEmbedding and model2vec's format (Minish Lab 2024), whose rows may be
shared among tokens and weighted; both become one table with a row for each token.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from minifuse.files.safetensors_file import SafetensorsFile
from minifuse.models.checkpoint import TensorFile, find_weights, open_checkpoint
from minifuse.native import FloatArray

__all__ = ["StaticEncoder", "read_table"]

# Tokens whose rows are copied at a time.
_MOST_TOKENS = 1 << 14

IntArray = npt.NDArray[np.int32]


def read_table(folder: Path) -> FloatArray:
    """Return the table of a static model, float32 [vocab_size, width].

    Raises:
        FileNotFoundError: the folder has no weights.
        ValueError: they are no table.
    """
    path = find_weights(folder)
    if path is None:
        raise FileNotFoundError(f"{folder}: model.safetensors is missing")
    with open_checkpoint(path) as file:
        names = set(file.names())
        name = "embedding.weight" if "embedding.weight" in names else "embeddings"
        if name not in names:
            raise ValueError(f"{path}: lacks the tensor 'embedding.weight' or 'embeddings'")
        table = file.read(name)
        if table.ndim != 2 or table.size == 0:
            raise ValueError(f"{path}: {name!r} has shape {list(table.shape)}, wanted a table")
        if name == "embeddings" and "mapping" in names:
            table = table[_rows_of_tokens(path, file, len(table))]
        if name == "embeddings" and "weights" in names:
            weights = file.read("weights")
            if weights.shape != table.shape[:1]:
                raise ValueError(
                    f"{path}: 'weights' has shape {list(weights.shape)}, wanted [{len(table)}]"
                )
            table = table * weights[:, None]
    return table


def _rows_of_tokens(path: Path, file: TensorFile, num_rows: int) -> npt.NDArray[np.int64]:
    if not isinstance(file, SafetensorsFile):
        raise ValueError(f"{path}: 'mapping' is read from safetensors only")
    mapping = file.read_integers("mapping")
    if mapping.ndim != 1 or mapping.size == 0 or mapping.min() < 0 or mapping.max() >= num_rows:
        raise ValueError(f"{path}: 'mapping' does not name rows of the {num_rows} there are")
    return mapping


class StaticEncoder:
    """A table in the place of a native encoder.

    A row is added to the sum of those before it, whatever else is in the batch: the same bits.
    """

    isa = "numpy"

    def __init__(self, table: FloatArray) -> None:
        self._table = table

    def encode(self, ids: IntArray, cu_seqlens: IntArray, **how: Any) -> FloatArray:
        """Means of rows [batch, width]; zeros for no row.

        Args:
            ids: int32 [total_tokens].
            cu_seqlens: int32 [batch + 1].
            how: ``pool_from``, the first tokens of each text that stay out; all else that a native
                encoder takes has no meaning here.
        """
        begins = np.minimum(cu_seqlens[:-1] + how["pool_from"], cu_seqlens[1:])
        means = np.zeros((len(begins), self._table.shape[1]), np.float32)
        for place, (begin, end) in enumerate(zip(begins.tolist(), cu_seqlens[1:], strict=True)):
            for first in range(begin, int(end), _MOST_TOKENS):
                rows = self._table[ids[first : min(first + _MOST_TOKENS, end)]]
                rows[0] += means[place]  # of those before: one after the other, as at once
                means[place] = np.add.reduce(rows, axis=0)
            means[place] /= np.float32(max(end - begin, 1))
        return means

    def token_embeddings(self, ids: IntArray, cu_seqlens: IntArray, **how: Any) -> FloatArray:
        """The rows themselves, [total_tokens, width]."""
        return self._table[ids]

    def encode_with_tokens(
        self, ids: IntArray, cu_seqlens: IntArray, **how: Any
    ) -> tuple[FloatArray, FloatArray]:
        """Both."""
        return self.encode(ids, cu_seqlens, **how), self.token_embeddings(ids, cu_seqlens)
