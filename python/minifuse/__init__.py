"""minifuse: sentence embeddings on hand-written fused kernels.

from minifuse import SentenceTransformer
model = SentenceTransformer("sentence-transformers/all-MiniLM-L6-v2")
embeddings = model.encode(["The sky is blue.", "Der Himmel ist blau."])
"""

from importlib.metadata import version as _version

from minifuse import hardware, ops, util
from minifuse.sentence_transformer import EncodeInfo, SentenceTransformer

__all__ = ["EncodeInfo", "SentenceTransformer", "__version__", "hardware", "ops", "util"]

__version__ = _version("minifuse")
