"""Qdrant: collections of texts that minifuse embeds, in local mode or on a server.

create_collection(client, "notes", model)
add(client, "notes", texts, model)
search(client, "notes", "a query", model, limit=5)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from qdrant_client import QdrantClient
from qdrant_client.models import Distance, PointStruct, ScoredPoint, VectorParams

from minifuse.integrations import DEFAULT_MODEL, sentence_transformer_of

__all__ = ["add", "create_collection", "search"]

# The distances of Qdrant have these names here.
_DISTANCES = {
    "cosine": Distance.COSINE,
    "dot": Distance.DOT,
    "euclidean": Distance.EUCLID,
    "manhattan": Distance.MANHATTAN,
}
_POINTS = 1024  # of one request


def create_collection(
    client: QdrantClient, name: str, model: Any = DEFAULT_MODEL, **options: Any
) -> None:
    """Create a collection for vectors of a model, with the model's similarity as its distance.

    Args:
        client: to a server, or in local mode.
        name: the name of the collection.
        model: a folder, a Hugging Face name or a loaded SentenceTransformer.
        options: further arguments of the client's create_collection.

    Raises:
        FileNotFoundError: no such model.
        ValueError, or from a server UnexpectedResponse: there is a collection by that name.
    """
    loaded = sentence_transformer_of(model)
    client.create_collection(
        name,
        vectors_config=VectorParams(
            size=loaded.get_embedding_dimension(),
            distance=_DISTANCES[loaded.similarity_fn_name],
        ),
        **options,
    )


def add(
    client: QdrantClient,
    name: str,
    texts: Sequence[str],
    model: Any = DEFAULT_MODEL,
    *,
    ids: Iterable[int | str] | None = None,
    payloads: Iterable[Mapping[str, Any]] | None = None,
) -> int:
    """Embed texts and put them into a collection, each with its text as ``text`` of the payload.

    A point that is there under the same id is replaced. Points go in a request of 1,024 at a time.

    Args:
        client: to a server, or in local mode.
        name: the name of the collection.
        texts: documents.
        model: a folder, a Hugging Face name or a loaded SentenceTransformer.
        ids: one for each text, integers or UUIDs. None makes a UUID of the text, so that a text
            that is added again replaces itself.
        payloads: one for each text, to keep beside it.

    Returns:
        The number of texts.

    Raises:
        FileNotFoundError: no such model.
        TypeError: texts is one string.
        ValueError: more or fewer ids or payloads than texts.
    """
    if isinstance(texts, str):
        raise TypeError("texts is one string, wanted a list of strings")
    texts = list(texts)
    names = [str(uuid5(NAMESPACE_OID, text)) for text in texts] if ids is None else list(ids)
    kept = [dict(one) for one in ([{}] * len(texts) if payloads is None else payloads)]
    for what, values in (("ids", names), ("payloads", kept)):
        if len(values) != len(texts):
            raise ValueError(f"{len(texts)} texts and {len(values)} {what}: wanted as many")
    loaded = sentence_transformer_of(model)
    vectors = loaded.encode_document(texts)
    points = (
        PointStruct(id=names[i], vector=vectors[i].tolist(), payload={**kept[i], "text": texts[i]})
        for i in range(len(texts))
    )
    while request := list(islice(points, _POINTS)):
        client.upsert(name, request)
    return len(texts)


def search(
    client: QdrantClient,
    name: str,
    query: str,
    model: Any = DEFAULT_MODEL,
    limit: int = 10,
    **options: Any,
) -> list[ScoredPoint]:
    """Find the texts nearest to a query.

    Args:
        client: to a server, or in local mode.
        name: the name of the collection.
        query: a text.
        model: a folder, a Hugging Face name or a loaded SentenceTransformer.
        limit: at most this many points.
        options: further arguments of the client's query_points, such as query_filter.

    Returns:
        Points with id, score and payload, the best first.

    Raises:
        FileNotFoundError: no such model.
    """
    vector = sentence_transformer_of(model).encode_query(query).tolist()
    found = client.query_points(name, query=vector, limit=limit, **options)
    points: list[ScoredPoint] = found.points
    return points
