"""Chroma: minifuse as the embedding function of a collection.

    collection = client.create_collection("notes", embedding_function=MinifuseEmbeddingFunction())

Chroma keeps the function's name and settings with a collection, so a program that has imported this
file opens it again without naming the model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from chromadb.api.types import Documents, Embeddings, Space
from chromadb.utils.embedding_functions import EmbeddingFunction, register_embedding_function

from minifuse.integrations import DEFAULT_MODEL, kept_sentence_transformer

__all__ = ["MinifuseEmbeddingFunction"]

# A vector of another model or another length means nothing beside those that are stored.
_FIXED = ("model_name", "normalize_embeddings", "truncate_dim")
_SPACES: dict[str, Space] = {"cosine": "cosine", "dot": "ip", "euclidean": "l2"}


@register_embedding_function
class MinifuseEmbeddingFunction(EmbeddingFunction[Documents]):
    """Vectors of documents and queries.

    Args:
        model_name: a folder or a Hugging Face name.
        dtype, num_threads: SentenceTransformer's; they may change from one program to the next.
        normalize_embeddings: divide every vector by its length.
        truncate_dim: keep only the first dimensions.

    Raises:
        FileNotFoundError: no such model.
        ValueError: an argument that is out of range.
    """

    def __init__(
        self,
        model_name: str = DEFAULT_MODEL,
        dtype: str | None = None,
        num_threads: int | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
    ) -> None:
        self.model_name = model_name
        self.normalize_embeddings = normalize_embeddings
        self.truncate_dim = truncate_dim
        self.model = kept_sentence_transformer(model_name, dtype, num_threads)
        self._chosen = {"dtype": dtype, "num_threads": num_threads}

    def __call__(self, input: Documents) -> Embeddings:
        """Return vectors of documents: a float32 array [dim] for each."""
        return self._vectors(self.model.encode_document(list(input), **self._options()))

    def embed_query(self, input: Documents) -> Embeddings:
        """Return vectors of queries, with the model's prompt for queries."""
        return self._vectors(self.model.encode_query(list(input), **self._options()))

    def _options(self) -> dict[str, Any]:
        return {
            "normalize_embeddings": self.normalize_embeddings,
            "truncate_dim": self.truncate_dim,
        }

    @staticmethod
    def _vectors(array: Any) -> Embeddings:
        return list(np.asarray(array, np.float32))

    # ---- stored with a collection -------------------------------------------------------------

    @staticmethod
    def name() -> str:
        """The name under which Chroma's registry finds this class."""
        return "minifuse"

    def default_space(self) -> Space:
        """The distance of a new collection, as the model compares its vectors."""
        return _SPACES.get(self.model.similarity_fn_name, "cosine")

    def supported_spaces(self) -> list[Space]:
        """Distances that mean something for these vectors."""
        return ["cosine", "l2", "ip"]

    def get_config(self) -> dict[str, Any]:
        """The arguments that build this function again."""
        return {"model_name": self.model_name, **self._chosen, **self._options()}

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> MinifuseEmbeddingFunction:
        """Build the function that get_config() describes."""
        return MinifuseEmbeddingFunction(**config)

    @staticmethod
    def validate_config(config: dict[str, Any]) -> None:
        """Raise ValueError for settings that are not this function's."""
        known = {*_FIXED, "dtype", "num_threads"}
        if unknown := sorted(set(config) - known):
            raise ValueError(f"unknown settings {unknown}, known are {sorted(known)}")

    def validate_config_update(
        self, old_config: dict[str, Any], new_config: dict[str, Any]
    ) -> None:
        """Raise ValueError where the vectors of a collection would no longer be comparable."""
        for key in _FIXED:
            if key in new_config and new_config[key] != old_config.get(key):
                raise ValueError(
                    f"{key} is {old_config.get(key)!r} for the vectors of this collection and "
                    f"cannot become {new_config[key]!r}: make a new collection"
                )
