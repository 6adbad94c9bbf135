"""txtai: minifuse as the method that makes an index's vectors.

    embeddings = Embeddings(path="sentence-transformers/all-MiniLM-L6-v2", method=METHOD)

The method is stored by its name, so a saved index finds it again.
"""

from __future__ import annotations

from typing import Any

from txtai.vectors import Vectors

from minifuse.integrations import sentence_transformer_of

__all__ = ["METHOD", "MinifuseVectors"]

METHOD = "minifuse.integrations.txtai.MinifuseVectors"


class MinifuseVectors(Vectors):
    """Vectors of txtai's configuration: ``path`` names the model.

    ``vectors`` may hold arguments of SentenceTransformer, such as {"dtype": "int8"}. encode's
    batch_size is ``encodebatch``, and ``encodeargs`` holds its other arguments. Queries and
    documents get the model's own prompts, unless ``instructions`` has one, which txtai puts before
    the text.
    """

    def loadmodel(self, path: str) -> Any:
        """Load the model."""
        return sentence_transformer_of(path, **self.config.get("vectors", {}))

    def encode(self, data: Any, category: str | None = None) -> Any:
        """Vectors float32 [n, dim] of texts; category is "query" or "data"."""
        encode = self.model.encode_query if category == "query" else self.model.encode_document
        options: dict[str, Any] = {"batch_size": self.encodebatch}
        if self.instructions and (category or "query") in self.instructions:
            options["prompt"] = ""  # txtai's stands in the texts by now
        return encode(list(data), **options | self.config.get("encodeargs", {}))
