"""KeyBERT: a minifuse model as its embedder.

    words = KeyBERT(model=MinifuseBackend(model))

KeyBERT recognises sentence-transformers' models by the name of their class. For any other object
it loads a model of its own, without a word; so it is given an embedder of its own class.
"""

from __future__ import annotations

from keybert.backend import BaseEmbedder

from minifuse.integrations import Backend

__all__ = ["MinifuseBackend"]


class MinifuseBackend(Backend, BaseEmbedder):
    """Vectors of documents and words; the arguments are Backend's."""
