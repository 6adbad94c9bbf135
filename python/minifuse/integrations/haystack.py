"""Haystack: components that embed texts and documents and that sort documents by a reranker.

    pipeline.add_component("embedder", MinifuseDocumentEmbedder())
    pipeline.add_component("query", MinifuseTextEmbedder())
    pipeline.add_component("ranker", MinifuseRanker(top_k=5))

They load their model in warm_up(), which a pipeline calls, and are written to YAML by its name.
Haystack reads such a file only where the reader trusts this one:
``Pipeline.loads(text, allowed_modules=["minifuse.integrations.haystack"])``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from haystack import Document, component, default_from_dict, default_to_dict

from minifuse.integrations import (
    DEFAULT_MODEL,
    DEFAULT_RERANKER,
    best_first,
    cross_encoder_of,
    sentence_transformer_of,
)

__all__ = ["MinifuseDocumentEmbedder", "MinifuseRanker", "MinifuseTextEmbedder"]


class _Component:
    """Arguments that are written to a file, and a model: each component has them."""

    load_model: Any = staticmethod(sentence_transformer_of)

    # Haystack builds each component's class a second time, and a bare super() would name the first.
    def keep(self, model: str, options: dict[str, Any], **arguments: Any) -> None:
        """Keep the arguments of the constructor; options are those of the model."""
        self.arguments = {"model": model, **options, **arguments}
        self.options = options
        self.loaded: Any = None

    def warm_up(self) -> None:
        """Load the model, once."""
        if self.loaded is None:
            self.loaded = self.load_model(self.arguments["model"], **self.options)

    def to_dict(self) -> dict[str, Any]:
        """The component as a pipeline's file describes it."""
        written: dict[str, Any] = default_to_dict(self, **self.arguments)
        return written

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Any:
        """The component of a pipeline's file."""
        return default_from_dict(cls, data)

    def text_of(self, document: Document) -> str:
        """The text of a document: the chosen fields of its metadata, then its content."""
        chosen = self.arguments["meta_fields_to_embed"] or []
        fields = [str(document.meta[key]) for key in chosen if document.meta.get(key) is not None]
        return str(self.arguments["embedding_separator"]).join([*fields, document.content or ""])


@component
class MinifuseTextEmbedder(_Component):
    """Embeds one text, such as a query.

    Args:
        model: a folder or a Hugging Face name.
        dtype, num_threads: SentenceTransformer's.
        encode_kwargs: arguments of its encode, such as normalize_embeddings.

    Raises:
        FileNotFoundError: no such model, when it is warmed up.
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        dtype: str | None = None,
        num_threads: int | None = None,
        encode_kwargs: dict[str, Any] | None = None,
    ) -> None:
        options = {"dtype": dtype, "num_threads": num_threads}
        self.keep(model, options, encode_kwargs=encode_kwargs)

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, Any]:
        """Return the vector of a text, with the model's prompt for queries."""
        if not isinstance(text, str):
            raise TypeError(
                f"text is a {type(text).__name__}, wanted a string; documents go to "
                "MinifuseDocumentEmbedder"
            )
        self.warm_up()
        encode_kwargs = self.arguments["encode_kwargs"] or {}
        return {"embedding": self.loaded.encode_query(text, **encode_kwargs).tolist()}


@component
class MinifuseDocumentEmbedder(_Component):
    """Embeds documents.

    Args:
        model: a folder or a Hugging Face name.
        dtype, num_threads: SentenceTransformer's.
        meta_fields_to_embed: fields of the metadata that go before the content.
        embedding_separator: text between them.
        encode_kwargs: arguments of its encode, such as normalize_embeddings.

    Raises:
        FileNotFoundError: no such model, when it is warmed up.
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        dtype: str | None = None,
        num_threads: int | None = None,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        encode_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.keep(
            model,
            {"dtype": dtype, "num_threads": num_threads},
            meta_fields_to_embed=meta_fields_to_embed,
            embedding_separator=embedding_separator,
            encode_kwargs=encode_kwargs,
        )

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Return copies of the documents with their vectors."""
        if not isinstance(documents, list) or not all(isinstance(d, Document) for d in documents):
            raise TypeError("documents: wanted a list of Documents; text: MinifuseTextEmbedder")
        self.warm_up()
        encode_kwargs = self.arguments["encode_kwargs"] or {}
        texts = [self.text_of(one) for one in documents]
        vectors = self.loaded.encode_document(texts, **encode_kwargs).tolist()
        embedded = [
            replace(one, embedding=vector) for one, vector in zip(documents, vectors, strict=True)
        ]
        return {"documents": embedded}


@component
class MinifuseRanker(_Component):
    """Sorts documents by how well they answer a query, by a cross-encoder.

    Args:
        model: a folder or a Hugging Face name.
        top_k: at most this many documents are kept, the best first; None keeps all.
        score_threshold: documents with a lower score are left out.
        dtype, num_threads: CrossEncoder's.
        meta_fields_to_embed, embedding_separator: as MinifuseDocumentEmbedder's.
        predict_kwargs: arguments of the model's predict.

    Raises:
        FileNotFoundError: no such model, when it is warmed up.
    """

    load_model = staticmethod(cross_encoder_of)

    def __init__(
        self,
        model: str = DEFAULT_RERANKER,
        top_k: int | None = 10,
        score_threshold: float | None = None,
        dtype: str | None = None,
        num_threads: int | None = None,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        predict_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.keep(
            model,
            {"dtype": dtype, "num_threads": num_threads},
            top_k=top_k,
            score_threshold=score_threshold,
            meta_fields_to_embed=meta_fields_to_embed,
            embedding_separator=embedding_separator,
            predict_kwargs=predict_kwargs,
        )

    @component.output_types(documents=list[Document])
    def run(
        self, query: str, documents: list[Document], top_k: int | None = None
    ) -> dict[str, Any]:
        """Return copies of the best documents with their scores, the best first.

        A document that comes twice, as from two retrievers, is kept once.

        Args:
            query: a text.
            documents: to sort.
            top_k: for this call; None takes the component's.
        """
        documents = list({document.id: document for document in documents}.values())
        if not documents:
            return {"documents": []}
        self.warm_up()
        pairs = [(query, self.text_of(one)) for one in documents]
        predict_kwargs = self.arguments["predict_kwargs"] or {}
        scores = self.loaded.predict(pairs, **predict_kwargs)
        threshold = self.arguments["score_threshold"]
        ranked = [
            replace(documents[i], score=float(scores[i]))
            for i in best_first(scores, self.arguments["top_k"] if top_k is None else top_k)
            if threshold is None or scores[i] >= threshold
        ]
        return {"documents": ranked}
