"""LangChain: minifuse's embeddings, and a reranker that compresses what a retriever found.

store = InMemoryVectorStore(MinifuseEmbeddings())
reranked = ContextualCompressionRetriever(
    base_compressor=MinifuseReranker(), base_retriever=store.as_retriever())
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.embeddings import Embeddings
from pydantic import ConfigDict, Field, PrivateAttr

from minifuse.integrations import (
    DEFAULT_MODEL,
    DEFAULT_RERANKER,
    best_first,
    cross_encoder_of,
    sentence_transformer_of,
)

__all__ = ["MinifuseEmbeddings", "MinifuseReranker"]


class MinifuseEmbeddings(Embeddings):
    """Vectors of documents and queries.

    Args:
        model: a folder, a Hugging Face name or a loaded SentenceTransformer.
        dtype, num_threads: SentenceTransformer's, for a name.
        encode_kwargs: arguments of its encode, such as normalize_embeddings.

    Raises:
        FileNotFoundError: no such model.
        TypeError: model is none of these.
    """

    def __init__(
        self,
        model: Any = DEFAULT_MODEL,
        *,
        dtype: str | None = None,
        num_threads: int | None = None,
        encode_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.model = sentence_transformer_of(model, dtype=dtype, num_threads=num_threads)
        self.encode_kwargs = dict(encode_kwargs or {})

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return a vector for each text."""
        vectors: list[list[float]] = self.model.encode_document(
            list(texts), **self.encode_kwargs
        ).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a query, with the model's prompt for queries."""
        vector: list[float] = self.model.encode_query(text, **self.encode_kwargs).tolist()
        return vector


class MinifuseReranker(BaseDocumentCompressor):
    """Keeps the documents that answer a query best, by a cross-encoder.

    Args:
        model: a folder, a Hugging Face name or a loaded CrossEncoder.
        top_n: at most this many documents are kept, the best first; None keeps all.
        score_key: the key of a document's metadata that takes its score; None adds none.
        dtype, num_threads: CrossEncoder's, for a name.
        predict_kwargs: arguments of the model's predict.

    Raises:
        FileNotFoundError: no such model.
        TypeError: model is none of these.
    """

    model: Any = DEFAULT_RERANKER
    top_n: int | None = 3
    score_key: str | None = "relevance_score"
    dtype: str | None = None
    num_threads: int | None = None
    predict_kwargs: dict[str, Any] = Field(default_factory=dict)

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")
    _loaded: Any = PrivateAttr()

    def model_post_init(self, _context: Any) -> None:
        """Load the model where a name was given."""
        self._loaded = cross_encoder_of(self.model, dtype=self.dtype, num_threads=self.num_threads)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Return copies of the documents with the highest scores, the best first."""
        if not documents:
            return []
        pairs = [(query, document.page_content) for document in documents]
        scores = self._loaded.predict(pairs, **self.predict_kwargs)
        kept = []
        for i in best_first(scores, self.top_n):
            document = documents[i].model_copy(update={"metadata": dict(documents[i].metadata)})
            if self.score_key is not None:
                document.metadata[self.score_key] = float(scores[i])
            kept.append(document)
        return kept
