"""Polars: an expression that embeds a column of texts.

frame.with_columns(embed("body", model).alias("vector"))
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from minifuse.integrations import DEFAULT_MODEL, sentence_transformer_of, width_of

__all__ = ["embed"]


def embed(column: str | pl.Expr, model: Any = DEFAULT_MODEL, **encode_kwargs: Any) -> pl.Expr:
    """Return the expression of a column's vectors, Array(Float32, dim); null stays null.

    A text has the same vector in any slice, so that Polars may stream the column.

    Args:
        column: a name or an expression of strings.
        model: a folder, a Hugging Face name or a loaded SentenceTransformer; it is loaded now.
        encode_kwargs: arguments of its encode, such as normalize_embeddings.

    Raises:
        FileNotFoundError: no such model.
        TypeError: model is none of these; at the query, the column holds no strings.
    """
    loaded = sentence_transformer_of(model)
    width = width_of(loaded, encode_kwargs.get("truncate_dim"))
    kind = pl.Array(pl.Float32, width)

    def vectors_of(texts: pl.Series) -> pl.Series:
        if texts.dtype not in (pl.String, pl.Null):
            raise TypeError(f"the column {texts.name!r} is {texts.dtype}, wanted String")
        present = texts.is_not_null().to_numpy()
        rows = np.zeros((len(texts), width), np.float32)
        if present.any():
            rows[present] = loaded.encode(texts.drop_nulls().to_list(), **encode_kwargs)
        vectors = pl.Series(texts.name, rows, dtype=kind)
        return (
            vectors
            if present.all()
            else vectors.zip_with(
                pl.Series(present), pl.Series(texts.name, [None] * len(texts), dtype=kind)
            )
        )

    expression = pl.col(column) if isinstance(column, str) else column
    return expression.map_batches(vectors_of, return_dtype=kind, is_elementwise=True)
