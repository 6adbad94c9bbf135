"""LanceDB: minifuse as the embedding function of a table.

    function = get_registry().get("minifuse").create()
    class Note(LanceModel):
        text: str = function.SourceField()
        vector: Vector(function.ndims()) = function.VectorField()

LanceDB keeps the name and the arguments with the table, so a program that has imported this file
opens it again without naming the model.
"""

from __future__ import annotations

from typing import Any, ClassVar

from lancedb.embeddings import TextEmbeddingFunction, register

from minifuse.integrations import DEFAULT_MODEL, kept_sentence_transformer

__all__ = ["MinifuseEmbeddings"]


@register("minifuse")
class MinifuseEmbeddings(TextEmbeddingFunction):
    """Vectors of a table's texts and of queries.

    Args:
        name: a folder or a Hugging Face name.
        dtype, num_threads: SentenceTransformer's.
        normalize: divide every vector by its length.
        max_retries: LanceDB tries again so often after an error; a model that runs here makes no
            errors that pass by themselves.

    A text that is null has no vector.
    """

    name: str = DEFAULT_MODEL
    dtype: str | None = None
    num_threads: int | None = None
    normalize: bool = False

    max_retries: int = 0

    model_config: ClassVar[Any] = {"extra": "forbid"}

    @property
    def model(self) -> Any:
        """The model, loaded when it is first needed."""
        return kept_sentence_transformer(self.name, self.dtype, self.num_threads)

    def ndims(self) -> int:
        """The width of the vectors."""
        return int(self.model.get_embedding_dimension())

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> list[Any]:
        """Return vectors of a table's texts, None for a null."""
        present = [text for text in texts if text is not None]
        vectors = iter(self.model.encode_document(present, normalize_embeddings=self.normalize))
        return [None if text is None else next(vectors) for text in texts]

    def compute_query_embeddings(self, query: Any, *args: Any, **kwargs: Any) -> list[Any]:
        """Return the vector of a query, with the model's prompt for queries."""
        texts = self.sanitize_input(query)
        return list(self.model.encode_query(list(texts), normalize_embeddings=self.normalize))
