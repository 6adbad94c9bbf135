"""Static models against sentence-transformers: a table, and model2vec's rows with weights."""

import json

import numpy as np
import pytest
import sentence_transformers
from safetensors.numpy import save_file
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding

from family import byte_tokenizer
from minifuse import SentenceTransformer
from minifuse.models.quantization import quantize

TEXTS = ["The sky is blue.", "", "dogs " * 30_000, "Zwölf Boxkämpfer jagen Viktor.", "a"]
WIDTH = 37


@pytest.fixture
def tokenizer():
    return byte_tokenizer("[CLS]", "[SEP]", ["[PAD]", "[UNK]", "[CLS]", "[SEP]"])


@pytest.fixture
def table(tokenizer, rng):
    return rng.normal(size=(tokenizer.get_vocab_size(), WIDTH)).astype(np.float32)


@pytest.fixture
def folder(tmp_path, tokenizer, table):
    modules = [StaticEmbedding(tokenizer, embedding_weights=table), Normalize()]
    theirs = sentence_transformers.SentenceTransformer(modules=modules, device="cpu")
    theirs.save(str(tmp_path / "model"))
    return tmp_path / "model"


def test_a_folder_of_sentence_transformers(folder):
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    ours = SentenceTransformer(folder)
    vectors = ours.encode(TEXTS)
    np.testing.assert_allclose(vectors, theirs.encode(TEXTS), atol=2e-6)
    assert ours.get_sentence_embedding_dimension() == WIDTH
    for place, text in enumerate(TEXTS):  # a text alone has the same bits
        np.testing.assert_array_equal(ours.encode(text), vectors[place])
    for dtype in ("bfloat16", "int8"):  # nothing is rounded
        np.testing.assert_array_equal(
            SentenceTransformer(folder, dtype=dtype).encode(TEXTS), vectors
        )
    prompted = theirs.encode(TEXTS, prompt="query: ")
    np.testing.assert_allclose(ours.encode(TEXTS, prompt="query: "), prompted, atol=2e-6)


def test_rows_and_saving(folder, table, tmp_path):
    ours = SentenceTransformer(folder)
    ids = ours.preprocess(["a"])["input_ids"][0]
    (rows,) = ours.encode(["a"], output_value="token_embeddings")
    np.testing.assert_array_equal(rows, table[np.array(ids)])
    ours.save(tmp_path / "copy")
    again = sentence_transformers.SentenceTransformer(str(tmp_path / "copy"), device="cpu")
    np.testing.assert_allclose(again.encode(TEXTS), ours.encode(TEXTS), atol=2e-6)


def test_its_length_is_saved(folder, tmp_path):
    ours = SentenceTransformer(folder)
    ours.max_seq_length = 3
    ours.save(tmp_path / "short")
    again = SentenceTransformer(tmp_path / "short")
    assert again.max_seq_length == 3
    np.testing.assert_array_equal(again.encode(TEXTS), ours.encode(TEXTS))


def test_a_length_that_is_no_limit(folder):
    (path,) = folder.rglob("tokenizer.json")
    state = json.loads(path.read_text())
    state["truncation"] = {
        "max_length": 2**63, "stride": 0, "strategy": "LongestFirst", "direction": "Right"
    }  # fmt: skip
    path.write_text(json.dumps(state))
    expected = SentenceTransformer(folder).encode(TEXTS)
    assert np.isfinite(expected).all()
    assert SentenceTransformer(folder).max_seq_length is not None


@pytest.mark.parametrize("has_modules", [True, False])
def test_model2vec(tmp_path, tokenizer, table, rng, has_modules):
    """Tokens share rows and have weights; config.json alone may say that it is model2vec's."""
    mapping = rng.integers(0, 20, len(table))
    weights = rng.random(len(table))
    tensors = {"embeddings": table[:20].astype(np.float16), "mapping": mapping, "weights": weights}
    save_file(tensors, tmp_path / "model.safetensors")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "model2vec", "normalize": True})
    )
    if has_modules:
        kinds = ["StaticEmbedding", "Normalize"]
        names = [f"sentence_transformers.models.{kind}" for kind in kinds]
        modules = [
            {"idx": place, "name": str(place), "path": path, "type": name}
            for place, (name, path) in enumerate(zip(names, (".", "1_Normalize"), strict=True))
        ]
        (tmp_path / "modules.json").write_text(json.dumps(modules))
    ids = tokenizer.encode("The sky is blue.", add_special_tokens=False).ids
    rows = tensors["embeddings"].astype(np.float64)[mapping[ids]] * weights[ids, None]
    expected = rows.mean(0) / np.linalg.norm(rows.mean(0))
    vector = SentenceTransformer(tmp_path).encode("The sky is blue.")
    np.testing.assert_allclose(vector, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"other": np.ones((3, 2))}, "lacks the tensor 'embedding.weight' or 'embeddings'"),
        ({"embedding.weight": np.ones(3)}, r"has shape \[3\], wanted a table"),
        ({"embeddings": np.ones((3, 2)), "weights": np.ones(2)}, r"'weights' has shape \[2\]"),
        ({"embeddings": np.ones((3, 2)), "mapping": np.array([3])}, "'mapping' does not name"),
        ({"embedding.weight": np.ones((3, 2))}, "the tokenizer has ids up to"),
    ],
)
def test_damage_is_named(folder, tensors, message):
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        SentenceTransformer(folder)


def test_what_needs_an_encoder_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="a static model has no matrices to quantise"):
        quantize(folder, tmp_path / "int8")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json is missing"):
        SentenceTransformer(folder)
