"""minifuse: sentence embeddings on hand-written fused kernels.

from minifuse import SentenceTransformer
model = SentenceTransformer("sentence-transformers/all-MiniLM-L6-v2")
embeddings = model.encode(["The sky is blue.", "Der Himmel ist blau."])
"""

from minifuse import hardware, ops, util
from minifuse.index import Index
from minifuse.sentence_transformer import EncodeInfo, SentenceTransformer

__all__ = ["EncodeInfo", "Index", "SentenceTransformer", "__version__", "hardware", "ops", "util"]

__version__: str


def __getattr__(name: str) -> str:
    # Read when asked: importlib.metadata brings the email package, a fifth of the import time.
    if name == "__version__":
        from importlib.metadata import version

        return version("minifuse")
    raise AttributeError(f"module 'minifuse' has no attribute {name!r}")
