"""The same vectors in other engines: against the engines themselves."""

from __future__ import annotations

import tempfile

import numpy as np
import pytest

from minifuse import Index
from minifuse.search.adapters import search_postgres, to_faiss, to_postgres


@pytest.fixture
def index(rng):
    centers = rng.standard_normal((20, 32))
    vectors = centers[rng.integers(0, 20, 2000)] + rng.standard_normal((2000, 32))
    index = Index(32)
    index.add(vectors, [f"text {i} 'quoted'\t\\ ü" for i in range(2000)])
    return index


@pytest.fixture
def queries(rng):
    queries = rng.standard_normal((40, 32)).astype(np.float32)
    return queries / np.linalg.norm(queries, axis=1, keepdims=True)


def recall(found, wanted):
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, wanted, strict=True)])


def test_faiss(index, queries):
    pytest.importorskip("faiss", reason="faiss-cpu is the engine")
    graph = to_faiss(index)
    graph.hnsw.efSearch = 200
    scores, ids = graph.search(queries, 10)
    wanted_scores, wanted = index.search(queries, 10)
    assert recall(ids, wanted) > 0.97
    np.testing.assert_allclose(scores[:, 0], wanted_scores[:, 0], atol=1e-5)


@pytest.fixture(scope="module")
def connection():
    pgserver = pytest.importorskip("pgserver", reason="it brings PostgreSQL with pgvector")
    psycopg = pytest.importorskip("psycopg", reason="it talks to PostgreSQL")
    # The server runs as another user. pytest's own folders are closed to others again whenever
    # another pytest starts.
    with tempfile.TemporaryDirectory() as folder:
        server = pgserver.get_server(folder, cleanup_mode="delete")
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute("CREATE EXTENSION vector")
            yield connection
        server.cleanup()


def test_postgres(index, queries, connection):
    assert to_postgres(index, connection, 'odd "name"') == 2000
    connection.execute("SET hnsw.ef_search = 200")
    scores, ids = search_postgres(connection, 'odd "name"', queries, 10)
    wanted_scores, wanted = index.search(queries, 10)
    assert recall(ids, wanted) > 0.97
    np.testing.assert_allclose(scores[:, 0], wanted_scores[:, 0], atol=1e-5)
    text = connection.execute('SELECT text FROM "odd ""name""" WHERE id = 7').fetchone()[0]
    assert text == index.text(7)
    with pytest.raises(Exception, match="already exists"):
        to_postgres(index, connection, 'odd "name"')


def test_too_many_dimensions():
    pytest.importorskip("psycopg", reason="it talks to PostgreSQL")
    with pytest.raises(ValueError, match="wanted at most 2000"):
        to_postgres(Index(3000), None, "x")
