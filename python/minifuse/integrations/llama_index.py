"""LlamaIndex: minifuse's embeddings, and a postprocessor that sorts retrieved nodes by a reranker.

index = VectorStoreIndex.from_documents(documents, embed_model=MinifuseEmbedding())
engine = index.as_query_engine(node_postprocessors=[MinifuseRerank(top_n=3)])
"""

from __future__ import annotations

import asyncio
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

from minifuse.integrations import (
    DEFAULT_MODEL,
    DEFAULT_RERANKER,
    best_first,
    cross_encoder_of,
    sentence_transformer_of,
)

__all__ = ["MinifuseEmbedding", "MinifuseRerank"]

Vector = list[float]


class MinifuseEmbedding(BaseEmbedding):
    """Vectors of nodes and queries.

    Args:
        model: a folder, a Hugging Face name or a loaded SentenceTransformer.
        model_name: the same as model, by LlamaIndex's name.
        dtype, num_threads: SentenceTransformer's, for a name.
        encode_kwargs: arguments of its encode, such as normalize_embeddings.
        kwargs: BaseEmbedding's own fields, such as embed_batch_size.

    Raises:
        FileNotFoundError: no such model.
        TypeError: model is none of these.
    """

    dtype: str | None = None
    num_threads: int | None = None
    encode_kwargs: dict[str, Any] = Field(default_factory=dict)
    _model: Any = PrivateAttr()

    def __init__(
        self,
        model: Any = None,
        *,
        model_name: str | None = None,
        dtype: str | None = None,
        num_threads: int | None = None,
        encode_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # LlamaIndex builds a copy from the fields, of which model_name is one.
        given = (model_name or DEFAULT_MODEL) if model is None else model
        loaded = sentence_transformer_of(given, dtype=dtype, num_threads=num_threads)
        kwargs.setdefault("embed_batch_size", 256)
        super().__init__(
            model_name=loaded.name,
            dtype=str(loaded.dtype),
            num_threads=num_threads,
            encode_kwargs=encode_kwargs or {},
            **kwargs,
        )
        self._model = loaded

    @classmethod
    def class_name(cls) -> str:
        """The name that LlamaIndex writes into a stored configuration."""
        return "MinifuseEmbedding"

    def _get_text_embeddings(self, texts: list[str]) -> list[Vector]:
        vectors: list[Vector] = self._model.encode_document(texts, **self.encode_kwargs).tolist()
        return vectors

    def _get_text_embedding(self, text: str) -> Vector:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> Vector:
        vector: Vector = self._model.encode_query(query, **self.encode_kwargs).tolist()
        return vector

    # The kernels release the interpreter's lock, so a thread keeps the loop free.

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Vector]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)

    async def _aget_text_embedding(self, text: str) -> Vector:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_query_embedding(self, query: str) -> Vector:
        return await asyncio.to_thread(self._get_query_embedding, query)


class MinifuseRerank(BaseNodePostprocessor):
    """Keeps the nodes that answer a query best, by a cross-encoder.

    Args:
        model: a folder, a Hugging Face name or a loaded CrossEncoder.
        top_n: at most this many nodes are kept, the best first.
        dtype, num_threads: CrossEncoder's, for a name.
        keep_retrieval_score: put the retriever's score into the metadata as "retrieval_score".
        predict_kwargs: arguments of the model's predict.

    Raises:
        FileNotFoundError: no such model.
        TypeError: model is none of these.
    """

    model: str = DEFAULT_RERANKER
    top_n: int = 3
    dtype: str | None = None
    num_threads: int | None = None
    keep_retrieval_score: bool = False
    predict_kwargs: dict[str, Any] = Field(default_factory=dict)
    _model: Any = PrivateAttr()

    def __init__(
        self,
        model: Any = DEFAULT_RERANKER,
        top_n: int = 3,
        *,
        dtype: str | None = None,
        num_threads: int | None = None,
        **kwargs: Any,
    ) -> None:
        loaded = cross_encoder_of(model, dtype=dtype, num_threads=num_threads)
        super().__init__(
            model=loaded.name,
            top_n=top_n,
            dtype=str(loaded.dtype),
            num_threads=num_threads,
            **kwargs,
        )
        self._model = loaded

    @classmethod
    def class_name(cls) -> str:
        """The name that LlamaIndex writes into a stored configuration."""
        return "MinifuseRerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise ValueError("query_bundle is None: a reranker needs the query")
        if not nodes:
            return []
        pairs = [
            (query_bundle.query_str, one.node.get_content(MetadataMode.EMBED)) for one in nodes
        ]
        scores = self._model.predict(pairs, **self.predict_kwargs)
        kept = []
        for i in best_first(scores, self.top_n):
            if self.keep_retrieval_score:
                node = nodes[i].node
                node.metadata["retrieval_score"] = nodes[i].score
                if "retrieval_score" not in node.excluded_embed_metadata_keys:
                    node.excluded_embed_metadata_keys.append("retrieval_score")
            kept.append(NodeWithScore(node=nodes[i].node, score=float(scores[i])))
        return kept
