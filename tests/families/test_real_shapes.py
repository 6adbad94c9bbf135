"""Each family at the sizes of a checkpoint that people use: two layers of random weights on texts of
1 to 512 tokens, and on one of 8,192 where the checkpoint takes that.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers

from family import byte_tokenizer
from minifuse import SentenceTransformer
from minifuse.native import core

pytestmark = pytest.mark.slow

LONG = 8192


class Shape(NamedTuple):
    """A class of transformers, the arguments of its configuration, and the tokens it takes."""

    name: str
    sizes: dict[str, Any]
    positions: int = 512


def of_bert(hidden: int, heads: int, inner: int) -> dict[str, Any]:
    return {"hidden_size": hidden, "num_attention_heads": heads, "intermediate_size": inner}


BASE = of_bert(768, 12, 3072)
FROM_TWO = {"pad_token_id": 1, "max_position_embeddings": 514}
SHAPES = {
    "multilingual-e5-small": Shape("Bert", of_bert(384, 12, 1536)),
    "bge-base": Shape("Bert", BASE),
    "bge-large": Shape("Bert", of_bert(1024, 16, 4096)),
    "multilingual-e5-base": Shape("XLMRoberta", BASE | FROM_TWO | {"type_vocab_size": 1}),
    "distilbert": Shape("DistilBert", {"dim": 768, "n_heads": 12, "hidden_dim": 3072}),
    "electra-base": Shape("Electra", BASE | {"embedding_size": 768}),
    "all-mpnet-base": Shape("MPNet", BASE | FROM_TWO),
    "nomic-embed-v1.5": Shape("NomicBert", BASE, LONG),
    "gte-multilingual-base": Shape("Gte", BASE | {"type_vocab_size": 0}, LONG),
    "gte-modernbert-base": Shape("ModernBert", of_bert(768, 12, 1152), LONG),
    "Qwen3-Embedding-0.6B": Shape(
        "Qwen3", of_bert(1024, 16, 3072) | {"num_key_value_heads": 8, "head_dim": 128}, LONG
    ),
    "EmbeddingGemma": Shape(
        "Gemma3Text",
        of_bert(768, 3, 1152)
        | {"num_key_value_heads": 1, "head_dim": 256, "query_pre_attn_scalar": 256,
           "sliding_window": 512, "layer_types": ["sliding_attention", "full_attention"],
           "use_bidirectional_attention": True},
        2048,
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=SHAPES)
def made(request, tmp_path_factory) -> tuple[Path, Any, Shape]:
    """The folder of a random model, the model itself, and what it is."""
    shape = SHAPES[request.param]
    tokenizer = byte_tokenizer("[CLS]", "[SEP]", ["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    layers = {"n_layers": 2} if "n_layers" in shape.sizes or "dim" in shape.sizes else {
        "num_hidden_layers": 2
    }  # fmt: skip
    config = getattr(transformers, f"{shape.name}Config")(
        **{"vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": shape.positions,
           **special, **layers, **shape.sizes}
    )  # fmt: skip
    model = getattr(transformers, f"{shape.name}Model")(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases as random as the matrices
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    folder = tmp_path_factory.mktemp("model")
    model.eval().save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 10**30}))
    return folder, model, shape


def letters(lengths: list[int], rng: np.random.Generator) -> list[str]:
    """Texts of so many tokens each, special ones included."""
    return ["".join(rng.choice(list("bcdfghjkmnpqrstvwxz"), max(0, n - 2))) for n in lengths]


def pooled(model: Any, ids: list[list[int]]) -> np.ndarray:
    """The mean of the rows of each sentence by transformers, sentences of a length together."""
    found = np.empty((len(ids), model.config.hidden_size), np.float32)
    order = sorted(range(len(ids)), key=lambda place: len(ids[place]))
    for begin in range(0, len(order), 8):
        places = order[begin : begin + 8]
        longest = max(len(ids[place]) for place in places)
        mask = torch.tensor([[1] * len(ids[i]) + [0] * (longest - len(ids[i])) for i in places])
        pad = model.config.pad_token_id
        rows = torch.tensor([ids[i] + [pad] * (longest - len(ids[i])) for i in places])
        with torch.inference_mode():
            states = model(input_ids=rows, attention_mask=mask).last_hidden_state
        kept = mask[..., None].to(states.dtype)
        found[places] = ((states * kept).sum(1) / kept.sum(1)).numpy()
    return found


def tokens_of(model: SentenceTransformer, texts: list[str]) -> list[list[int]]:
    tokens = model.pipeline.tokenize(texts)
    return [part.tolist() for part in np.split(tokens.ids, tokens.cu_seqlens()[1:-1])]


def distances(vectors: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """The largest difference of each vector, of its length."""
    return np.abs(vectors - expected).max(axis=1) / np.linalg.norm(expected, axis=1)


def test_vectors(made):
    folder, reference, _ = made
    rng = np.random.default_rng(0)
    texts = letters(rng.integers(1, 513, 200).tolist(), rng)
    model = SentenceTransformer(folder)
    expected = pooled(reference, tokens_of(model, texts))
    vectors = model.encode(texts)
    assert distances(vectors, expected).max() <= 5e-6
    for place in range(0, 200, 20):  # alone: the same bits
        np.testing.assert_array_equal(model.encode(texts[place]), vectors[place])
    for isa in core.supported_isas():
        assert_same_bits(isa, folder, texts[:4], vectors[:4])
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    for dtype, least, mean in (("bfloat16", 0.9999, 0.9999), ("int8", 0.99, 0.999)):
        other = SentenceTransformer(folder, dtype=dtype)
        rounded = other.encode(texts, normalize_embeddings=True)
        cosines = (rounded * unit).sum(1)
        assert cosines.min() >= least, dtype
        assert cosines.mean() >= mean, dtype
        alone = other.encode(texts[7], normalize_embeddings=True)
        np.testing.assert_array_equal(alone, rounded[7])


def assert_same_bits(isa: str, folder: Path, texts: list[str], expected: np.ndarray) -> None:
    before = core.isa()
    core.select_isa(isa)
    try:
        np.testing.assert_array_equal(SentenceTransformer(folder).encode(texts), expected)
    finally:
        core.select_isa(before)


def test_a_text_of_all_positions(made):
    folder, reference, shape = made
    (text,) = letters([2 * shape.positions], np.random.default_rng(1))  # which is cut
    model = SentenceTransformer(folder)
    ids = tokens_of(model, [text])
    assert len(ids[0]) == shape.positions
    vector = model.encode([text])
    assert distances(vector, pooled(reference, ids)).max() <= 5e-6
    np.testing.assert_array_equal(model.encode([text, "short"])[:1], vector)
