"""All that models have in common which turn texts into vectors: prompts of queries and documents,
and similarities.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from minifuse.base_model import BaseModel, either
from minifuse.search import similarity

__all__ = ["EmbeddingModel"]


class EmbeddingModel(BaseModel):
    """A model that turns texts into vectors.

    Attributes:
        similarity_fn_name: what similarity() computes.
    """

    SUPPORTED_SIMILARITY_FN_NAMES: ClassVar[list[str]] = list(similarity.SIMILARITIES)
    _similarity_fn_name = "cosine"

    @property
    def similarity_fn_name(self) -> str:
        """ "cosine", "dot", "euclidean" or "manhattan": what similarity() computes."""
        return self._similarity_fn_name

    @similarity_fn_name.setter
    def similarity_fn_name(self, value: Any) -> None:
        self._similarity_fn_name = similarity.name_of(value)

    # ---- vectors ----------------------------------------------------------------------------

    @abstractmethod
    def encode(self, inputs: Any, prompt_name: Any, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        """Vectors of texts."""

    def encode_query(
        self,
        inputs: Any = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        *args: Any,
        sentences: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As encode; the prompt named "query" applies unless prompt or prompt_name is given."""
        if prompt is None and prompt_name is None and "query" in self.prompts:
            prompt_name = "query"
        inputs = either(inputs, sentences, "inputs", "sentences")
        named = self._by_name(args) | kwargs | {"task": "query"}
        return self.encode(inputs=inputs, prompt_name=prompt_name, prompt=prompt, **named)

    def encode_document(
        self,
        inputs: Any = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        *args: Any,
        sentences: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As encode; the first prompt of "document", "passage", "corpus" applies."""
        if prompt is None and prompt_name is None:
            names = [n for n in ("document", "passage", "corpus") if n in self.prompts]
            prompt_name = names[0] if names else None
        inputs = either(inputs, sentences, "inputs", "sentences")
        named = self._by_name(args) | kwargs | {"task": "document"}
        return self.encode(inputs=inputs, prompt_name=prompt_name, prompt=prompt, **named)

    def _by_name(self, arguments: tuple[Any, ...]) -> dict[str, Any]:
        """Arguments that encode takes by position behind the prompt, by their names."""
        if not arguments:
            return {}
        import inspect  # few programs need it

        names = list(inspect.signature(type(self).encode).parameters)[4:]  # behind self
        return dict(zip(names, arguments, strict=False))

    def encode_multi_process(
        self, inputs: Any = None, pool: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As encode, on the threads of this process.

        Args:
            inputs: texts. ``sentences`` is its old name.
            pool: ignored.
            args, kwargs: encode's arguments.
        """
        return self.encode(inputs, *args, **kwargs)

    def is_singular_input(self, inputs: Any) -> bool:
        """Return whether the input is one text, and not a batch."""
        return isinstance(inputs, str)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Every row with every row by similarity_fn_name: [n1, n2], an array for arrays."""
        return similarity.SIMILARITIES[self._similarity_fn_name][0](embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Row i with row i by similarity_fn_name: [n], an array for arrays."""
        return similarity.SIMILARITIES[self._similarity_fn_name][1](embeddings1, embeddings2)

    def _settings(self) -> dict[str, Any]:
        return super()._settings() | {"similarity_fn_name": self._similarity_fn_name}
