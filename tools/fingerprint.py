"""Print SHA-256 of what minifuse computes, to show that a change of the code keeps every bit.

    python tools/fingerprint.py stsb_test.tsv > before.txt     # columns sentence1 and sentence2

Lines: the vectors of the sentences in each dtype under each instruction set of this machine, the
vectors of a small random model by the CUDA kernels on the emulator, and the weights after two steps
of fine-tuning. The lines of one machine agree with those of another where both print them, except
the training's, which depends on PyTorch.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from minifuse import SentenceTransformer
from minifuse.files.texts import read_rows
from minifuse.native import core

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def digest(array: Any) -> str:
    """Return the SHA-256 of an array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def of_sentences(path: Path) -> None:
    """Print a line for each dtype and each instruction set that multiplies it."""
    texts = [text for _, pair in read_rows(path, ["sentence1", "sentence2"]) for text in pair]
    before = core.isa()
    for dtype in ("float32", "bfloat16", "int8"):
        for isa in core.supported_isas():
            core.select_isa(isa)
            if core.isa_of(dtype) == isa:
                vectors = SentenceTransformer(MODEL, dtype=dtype).encode(texts)
                print(f"{len(texts)} sentences, {dtype}, {isa}: {digest(vectors)}", flush=True)
    core.select_isa(before)


def of_emulated_device(folder: Path) -> None:
    """Print a line for each element type and each kind of CUDA kernels."""
    from cuda_library import ELEMENTS, DeviceEncoder, build_emulated
    from tiny_model import write_tiny_model

    shape = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128}
    model = write_tiny_model(folder / "device", **shape)
    library = ctypes.CDLL(str(build_emulated(Path(__file__).parent.parent, folder / "cuda.so")))
    lengths = [1, 2, 17, 40, 33, 64, 5]
    ids = np.arange(sum(lengths), dtype=np.int32) % 40
    offsets = np.cumsum([0, *lengths]).astype(np.int32)
    for isa in ("sm_80", "sm_90a"):
        os.environ["MINIFUSE_CUDA_ISA"] = isa
        for element in ELEMENTS:
            vectors = DeviceEncoder(library, model, element).encode(ids, offsets)
            print(f"emulator, {element}, {isa}: {digest(vectors)}", flush=True)


def of_training(folder: Path) -> None:
    """Print a line for two steps of fine-tuning."""
    from minifuse.training import TrainingConfig, TrainingPairs, finetune
    from tiny_model import WORDS, write_tiny_model

    words = [word for word in WORDS if not word.startswith("#")]
    anchors = [f"{a} {b}" for a in words for b in words][:32]
    pairs = TrainingPairs(anchors, [text.replace("the", "a") for text in anchors])
    finetune(
        write_tiny_model(folder / "source"), pairs, folder / "trained",
        TrainingConfig(batch_size=16, num_threads=1),
    )  # fmt: skip
    weights = (folder / "trained" / "model.safetensors").read_bytes()
    print(f"two steps of fine-tuning: {hashlib.sha256(weights).hexdigest()}", flush=True)


def main() -> int:
    """Print every line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="a .tsv or .csv with sentence1 and sentence2")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        of_emulated_device(Path(name))
        of_training(Path(name))
    of_sentences(arguments.file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
