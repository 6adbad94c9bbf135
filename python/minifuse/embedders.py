"""Models as the embedders of BERTopic and KeyBERT.

These libraries tell sentence-transformers' models by the name of their class; any other object they
leave aside and load a model of their own, without a word. They take an embedder of their own class,
which is made here.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["bertopic_embedder", "keybert_embedder"]


def bertopic_embedder(model: Any, **encode_kwargs: Any) -> Any:
    """Return a model as BERTopic takes it: BERTopic(embedding_model=bertopic_embedder(model)).

    Args:
        model: a SentenceTransformer.
        encode_kwargs: arguments of its encode.

    Raises:
        ImportError: BERTopic is not installed.
    """
    return _embedder("bertopic", model, encode_kwargs)


def keybert_embedder(model: Any, **encode_kwargs: Any) -> Any:
    """Return a model as KeyBERT takes it: KeyBERT(model=keybert_embedder(model)).

    Args:
        model: a SentenceTransformer.
        encode_kwargs: arguments of its encode.

    Raises:
        ImportError: KeyBERT is not installed.
    """
    return _embedder("keybert", model, encode_kwargs)


def _embedder(library: str, model: Any, encode_kwargs: dict[str, Any]) -> Any:
    try:
        base = importlib.import_module(f"{library}.backend").BaseEmbedder
    except ImportError as error:
        raise ImportError(f"this needs {library}: pip install {library}") from error

    class Embedder(base):  # type: ignore[misc, valid-type]
        """A minifuse model behind the library's interface."""

        def embed(self, documents: Any, verbose: bool = False) -> Any:
            """Vectors [n, dim] of documents or words."""
            return model.encode(list(documents), show_progress_bar=verbose, **encode_kwargs)

    return Embedder(model)
