"""minifuse: sentence embeddings on hand-written fused kernels.

from minifuse import SentenceTransformer
model = SentenceTransformer("sentence-transformers/all-MiniLM-L6-v2")
embeddings = model.encode(["The sky is blue.", "Der Himmel ist blau."])
"""

from typing import TYPE_CHECKING, Any

from minifuse import hardware, ops, util
from minifuse.sentence_transformer import EncodeInfo, SentenceTransformer
from minifuse.tensors import prefer_tensors
from minifuse.util import InputExample, LoggingHandler, SimilarityFunction, quantize_embeddings

__all__ = [
    "CrossEncoder",
    "EncodeInfo",
    "Index",
    "InputExample",
    "LoggingHandler",
    "SentenceTransformer",
    "SimilarityFunction",
    "SparseEncoder",
    "__version__",
    "hardware",
    "ops",
    "prefer_tensors",
    "quantize_embeddings",
    "util",
]

if TYPE_CHECKING:
    from minifuse.cross_encoder import CrossEncoder
    from minifuse.search.index import Index
    from minifuse.sparse_encoder import SparseEncoder

__version__: str


def __getattr__(name: str) -> Any:
    # Read when asked: importlib.metadata brings the email package, a fifth of the import time.
    if name == "__version__":
        from importlib.metadata import version

        return version("minifuse")
    if name == "Index":
        from minifuse.search.index import Index

        return Index
    if name == "CrossEncoder":
        from minifuse.cross_encoder import CrossEncoder

        return CrossEncoder
    if name == "SparseEncoder":
        from minifuse.sparse_encoder import SparseEncoder

        return SparseEncoder
    raise AttributeError(f"module 'minifuse' has no attribute {name!r}")
