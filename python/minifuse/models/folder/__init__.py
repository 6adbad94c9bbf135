"""A sentence-transformers folder as data: everything that it says besides weights and tokenizer.

Whatever this package does not compute (another architecture, activation, pooling or module) is
refused by name.
"""

from pathlib import Path

from minifuse.models.folder.behind_encoder import OLD_POOLING_KEYS
from minifuse.models.folder.common import QUANTIZED_WEIGHTS, ModelFolder
from minifuse.models.folder.cross_encoder import is_cross_encoder, read_cross_encoder_folder
from minifuse.models.folder.embedding import read_model_folder
from minifuse.models.folder.sparse import is_sparse_encoder, read_sparse_folder

__all__ = [
    "OLD_POOLING_KEYS",
    "QUANTIZED_WEIGHTS",
    "ModelFolder",
    "is_cross_encoder",
    "is_sparse_encoder",
    "read_cross_encoder_folder",
    "read_folder",
    "read_model_folder",
    "read_sparse_folder",
]


def read_folder(folder: Path) -> tuple[str, ModelFolder]:
    """Read a folder as the class of its model does, and return that class's name, too.

    Raises:
        FileNotFoundError: a file that must be there is missing.
        ValueError: a file is damaged, or asks for what this package does not compute.
    """
    if is_cross_encoder(folder):
        return "CrossEncoder", read_cross_encoder_folder(folder)
    if is_sparse_encoder(folder):
        return "SparseEncoder", read_sparse_folder(folder)
    return "SentenceTransformer", read_model_folder(folder)
