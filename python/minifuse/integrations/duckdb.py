"""DuckDB: an SQL function that embeds a column of texts.

register(connection, model)
connection.sql("CREATE TABLE vectors AS SELECT id, embed(body) AS vector FROM notes")
connection.sql("SELECT id FROM vectors ORDER BY array_cosine_distance(vector, embed('query'))")

Columns pass as Arrow's arrays, so pyarrow is needed beside DuckDB.
"""

from __future__ import annotations

from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from minifuse.integrations import DEFAULT_MODEL, sentence_transformer_of, width_of

__all__ = ["register"]


def register(
    connection: duckdb.DuckDBPyConnection,
    model: Any = DEFAULT_MODEL,
    name: str = "embed",
    **encode_kwargs: Any,
) -> None:
    """Make ``name(text)`` known to a connection: VARCHAR to FLOAT[dim], NULL to NULL.

    DuckDB calls it with a vector of rows at a time, at most 2,048.

    Args:
        connection: to a database.
        model: a folder, a Hugging Face name or a loaded SentenceTransformer.
        name: the name of the function.
        encode_kwargs: arguments of its encode, such as normalize_embeddings.

    Raises:
        FileNotFoundError: no such model.
        TypeError: model is none of these.
        duckdb.Error: the connection has a function by that name.
    """
    loaded = sentence_transformer_of(model)
    width = width_of(loaded, encode_kwargs.get("truncate_dim"))

    def embed(texts: Any) -> pa.Array:
        column = texts.to_pylist()
        present = [text for text in column if text is not None]
        vectors = np.zeros((len(column), width), np.float32)
        is_null = np.array([text is None for text in column], bool)
        if present:
            vectors[~is_null] = loaded.encode(present, **encode_kwargs)
        return pa.FixedSizeListArray.from_arrays(
            pa.array(vectors.ravel()), width, mask=pa.array(is_null)
        )

    connection.create_function(
        name,
        embed,
        ["VARCHAR"],
        f"FLOAT[{width}]",
        type="arrow",
        null_handling="special",
    )
