"""Past one machine's memory: the vectors of an index in other engines.

``to_faiss`` builds faiss's approximate graph over them, ``to_postgres`` a table with pgvector. Both
keep the ids and give the same scores for the same vectors; their neighbours are approximate.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from minifuse.search.index import Index

__all__ = ["search_postgres", "to_faiss", "to_postgres"]

_ROWS = 10_000


def to_faiss(index: Index, neighbors: int = 32, ef_construction: int = 200) -> Any:
    """A faiss.IndexHNSWFlat (Malkov and Yashunin 2018) by inner product over the same vectors.

    Args:
        index: what is copied; vectors in fewer bits as they are stored.
        neighbors: of each node of the graph.
        ef_construction: candidates that are looked at for them; more is slower and better.

    Returns:
        The faiss index; its ``search(queries, k)`` gives scores and ids as ours does. With cosine
        queries must have length 1; ``hnsw.efSearch`` trades speed for recall.

    Raises:
        ImportError: faiss is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "this needs faiss, which is not installed: pip install faiss-cpu"
        ) from error
    graph = faiss.IndexHNSWFlat(index.dim, neighbors, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = ef_construction
    for first in range(0, len(index), _ROWS):
        graph.add(index.reconstruct(range(first, min(len(index), first + _ROWS))))
    return graph


def to_postgres(index: Index, connection: Any, table: str) -> int:
    """Copy the vectors, and texts where there are, into a new table with a pgvector column.

    The table has ``id`` (the ids of the index), ``text`` and ``embedding``, and a graph index by
    inner product. All of it is one transaction: it is there whole or not at all.

    Args:
        index: what is copied.
        connection: of psycopg 3, to a database with the extension ``vector``.
        table: its name; it must not exist.

    Returns:
        The number of rows.

    Raises:
        psycopg.Error: what the database says.
        ValueError: more dimensions than pgvector can index (2,000).
    """
    from psycopg import sql

    if index.dim > 2000:
        raise ValueError(f"the index has {index.dim} dimensions, wanted at most 2000 for pgvector")
    name = sql.Identifier(table)
    create = sql.SQL(
        "CREATE TABLE {} (id bigint PRIMARY KEY, text text, embedding vector({}) NOT NULL)"
    )
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute(create.format(name, sql.Literal(index.dim)))
        into = sql.SQL("COPY {} (id, text, embedding) FROM STDIN").format(name)
        with cursor.copy(into) as copy:
            for first in range(0, len(index), _ROWS):
                ids = range(first, min(len(index), first + _ROWS))
                for i, vector in zip(ids, index.reconstruct(ids), strict=True):
                    text = index.text(i) if index.has_texts else None
                    copy.write_row((i, text, _literal(vector)))
        build = sql.SQL("CREATE INDEX ON {} USING hnsw (embedding vector_ip_ops)")
        cursor.execute(build.format(name))
    return len(index)


def search_postgres(
    connection: Any, table: str, queries: Any, k: int = 10
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The k nearest rows of each query by inner product, as ``Index.search`` gives them.

    Args:
        connection: of psycopg 3.
        table: of ``to_postgres``.
        queries: float [num_queries, dim]; with cosine of length 1.
        k: how many; ids end in -1 where the graph finds fewer.
    """
    from psycopg import sql

    rows = np.atleast_2d(np.asarray(queries, np.float32))
    scores = np.full((len(rows), k), -np.inf, np.float32)
    ids = np.full((len(rows), k), -1, np.int64)
    select = sql.SQL(
        "SELECT id, -(embedding <#> %(query)s::vector) FROM {} "
        "ORDER BY embedding <#> %(query)s::vector, id LIMIT %(k)s"
    ).format(sql.Identifier(table))
    with connection.cursor() as cursor:
        for row, query in enumerate(rows):
            found = cursor.execute(select, {"query": _literal(query), "k": k}).fetchall()
            for place, (i, score) in enumerate(found):
                ids[row, place], scores[row, place] = i, score
    return scores, ids


def _literal(vector: npt.NDArray[np.float32]) -> str:
    return "[" + ",".join(map(repr, vector.tolist())) + "]"
