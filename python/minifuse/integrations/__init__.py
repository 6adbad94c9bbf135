"""minifuse where people already work: one file for each library, each imported only by name.

    from minifuse.integrations.langchain import MinifuseEmbeddings

A file that is imported without its library says so at once. Nothing else of minifuse imports these
files, and none of the libraries is a dependency.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from minifuse.cross_encoder import CrossEncoder
    from minifuse.sentence_transformer import SentenceTransformer

__all__ = [
    "DEFAULT_MODEL",
    "DEFAULT_RERANKER",
    "Backend",
    "best_first",
    "cross_encoder_of",
    "kept_sentence_transformer",
    "sentence_transformer_of",
    "width_of",
]

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_RERANKER = "cross-encoder/ms-marco-MiniLM-L6-v2"

Model = TypeVar("Model")


def sentence_transformer_of(model: Any, **options: Any) -> SentenceTransformer:
    """Return a model that embeds: itself where it is loaded, or loaded by its name.

    Args:
        model: a SentenceTransformer, a folder or a Hugging Face name.
        options: SentenceTransformer's arguments, for a name.

    Raises:
        TypeError: it is neither a model nor a name, or a loaded model comes with options.
    """
    from minifuse.sentence_transformer import SentenceTransformer

    return _loaded(model, SentenceTransformer, options)


@functools.lru_cache(maxsize=4)
def kept_sentence_transformer(
    name: str, dtype: str | None, num_threads: int | None
) -> SentenceTransformer:
    """Return a model by its name, the same for the same arguments.

    Libraries that store an embedding function by its name build it again for every call. A folder
    that is changed meanwhile is not read again.

    Args:
        name: a folder or a Hugging Face name.
        dtype, num_threads: SentenceTransformer's.
    """
    return sentence_transformer_of(name, dtype=dtype, num_threads=num_threads)


def width_of(model: SentenceTransformer, truncate_dim: int | None = None) -> int:
    """Return the width of the vectors that encode(truncate_dim=truncate_dim) gives."""
    if truncate_dim is None:
        return model.get_embedding_dimension()
    return min(model.pipeline.width, truncate_dim)


def cross_encoder_of(model: Any, **options: Any) -> CrossEncoder:
    """Return a model that scores pairs: itself where it is loaded, or loaded by its name.

    Args:
        model: a CrossEncoder, a folder or a Hugging Face name.
        options: CrossEncoder's arguments, for a name.

    Raises:
        TypeError: it is neither a model nor a name, or a loaded model comes with options.
    """
    from minifuse.cross_encoder import CrossEncoder

    return _loaded(model, CrossEncoder, options)


class Backend:
    """An embedder of BERTopic or KeyBERT, before their own base class.

    Args:
        model: a folder, a Hugging Face name or a loaded SentenceTransformer.
        encode_kwargs: arguments of its encode.

    Raises:
        FileNotFoundError: no such model.
        TypeError: model is none of these.
    """

    embedding_model: Any

    def __init__(self, model: Any = DEFAULT_MODEL, **encode_kwargs: Any) -> None:
        super().__init__(sentence_transformer_of(model))  # type: ignore[call-arg]
        self.encode_kwargs = encode_kwargs

    def embed(self, documents: Any, verbose: bool = False) -> Any:
        """Return vectors float32 [n, dim] of documents or words; verbose shows a bar."""
        options = {"show_progress_bar": verbose} | self.encode_kwargs
        return self.embedding_model.encode(list(documents), **options)


def best_first(scores: Any, top_k: int | None = None) -> list[int]:
    """Return the positions of the highest scores, the best first; ties keep their order.

    Args:
        scores: [n], one a document: a reranker with several labels gives [n, labels] and is
            refused.
        top_k: at most so many positions; None gives all.

    Raises:
        ValueError: a document has several scores, or top_k is negative.
    """
    if np.ndim(scores) != 1:
        raise ValueError(
            f"the model gives scores of shape {np.shape(scores)}, wanted one for each document: "
            "a model with one label"
        )
    if top_k is not None and top_k < 0:
        raise ValueError(f"the number of documents to keep is {top_k}, wanted >= 0")
    order: list[int] = np.argsort(-np.asarray(scores), kind="stable")[:top_k].tolist()
    return order


def _loaded(model: Any, kind: type[Model], options: dict[str, Any]) -> Model:
    options = {name: value for name, value in options.items() if value is not None}
    if isinstance(model, (str, Path)):
        return kind(model, **options)  # type: ignore[call-arg]
    if not isinstance(model, kind):
        raise TypeError(
            f"model is a {type(model).__name__}, wanted a minifuse.{kind.__name__}, a folder or a "
            "model name"
        )
    if options:
        raise TypeError(f"{', '.join(options)}: the model is loaded already; pass its name instead")
    return model
