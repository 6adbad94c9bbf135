"""Encode thousands of texts of every length and compare each with its encoding alone, bit for bit.

Texts have 1 to 512 tokens, as long as real ones usually are (most are short, some are long), in
batches of 1 to 12 that are drawn at random; models are all-MiniLM-L6-v2 and random ones of 512, 768
and 1,024 columns; dtypes int8 and bfloat16; one and two threads. Meant for a module under
sanitizers (`make sanitize-python-encodes`), where a buffer that is too small ends the run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from minifuse.models.folder import read_model_folder
from minifuse.models.quantization import load_quantized_encoder
from minifuse.models.resolve import resolve_model
from minifuse.models.weights import load_encoder
from minifuse.native import core
from minifuse.tokens.tokenization import TextTokenizer

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from tiny_model import write_tiny_model


def lengths(rng: np.random.Generator, count: int) -> np.ndarray:
    """Token counts: log-normal around 25 as in mixed text, and a tenth anywhere in 1..512."""
    usual = np.exp(rng.normal(np.log(25), 0.8, count)).astype(int)
    return np.clip(np.where(rng.random(count) < 0.1, rng.integers(1, 513, count), usual), 1, 512)


def encode(encoder: core.Encoder, ids: list[np.ndarray], num_threads: int) -> np.ndarray:
    """float32 [texts, H]"""
    offsets = np.cumsum([0, *map(len, ids)]).astype(np.int32)
    return encoder.encode(
        np.concatenate(ids).astype(np.int32), offsets, poolings=["mean"], pool_from=0,
        batch_size=32, num_threads=num_threads,
    )  # fmt: skip


def check(name: str, dtype: str, encoder: core.Encoder, vocab: int, texts: int, seed: int) -> None:
    """Encode `texts` texts in batches, on one and two threads in turn, and each alone."""
    rng = np.random.default_rng(seed)
    start, done, tokens, threads = time.perf_counter(), 0, 0, 1
    while done < texts:
        counts = lengths(rng, min(int(rng.integers(1, 13)), texts - done))
        ids = [rng.integers(0, vocab, count) for count in counts]
        threads = 3 - threads
        together = encode(encoder, ids, threads)
        for place, text in enumerate(ids):
            alone = encode(encoder, [text], 1)[0]
            if not (np.isfinite(alone).all() and np.array_equal(alone, together[place])):
                sys.exit(f"{name} {dtype}: text {place} of lengths {counts.tolist()} differs alone "
                         f"and on {threads} threads")  # fmt: skip
        done, tokens = done + len(counts), tokens + int(counts.sum())
    seconds = time.perf_counter() - start
    print(f"{name:20s} {dtype:8s} {core.isa_of(dtype):12s} {done:6d} texts {tokens:8d} tokens "
          f"{seconds:7.1f} s: same bits", flush=True)  # fmt: skip


def main() -> None:
    """Run every model in every dtype."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=10000)
    parser.add_argument("--models", default="minilm,512,768,1024")
    parser.add_argument("--dtypes", default="int8,bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for model in arguments.models.split(","):
        with tempfile.TemporaryDirectory() as scratch:
            if model == "minilm":
                folder = read_model_folder(resolve_model("all-MiniLM-L6-v2"))
            else:
                H = int(model)
                path = write_tiny_model(
                    Path(scratch) / "model", hidden_size=H, num_attention_heads=H // 64,
                    intermediate_size=4 * H, num_hidden_layers=1, max_position_embeddings=512,
                )  # fmt: skip
                folder = read_model_folder(path)
            for dtype in arguments.dtypes.split(","):
                if dtype == "int8":
                    tokenizer = TextTokenizer.from_folder(folder.transformer_path)
                    encoder = load_quantized_encoder(folder, tokenizer, 2)
                else:
                    encoder = load_encoder(folder, dtype)
                name = model if model == "minilm" else f"{model} columns"
                check(name, dtype, encoder, folder.description.vocab_size, arguments.texts,
                      arguments.seed)  # fmt: skip


if __name__ == "__main__":
    main()
