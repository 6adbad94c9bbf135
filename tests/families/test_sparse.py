"""SparseEncoder against sentence-transformers' own, on random masked language models."""

import copy
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse
import sentence_transformers
import torch
import transformers
from safetensors.torch import load_file, save_file
from sentence_transformers.base.modules import Router
from sentence_transformers.sparse_encoder.modules import (
    MLMTransformer,
    SparseStaticEmbedding,
    SpladePooling,
)

from family import BERT_SIZES, TEXTS, byte_tokenizer, write_folder
from minifuse import SparseEncoder, sparse_encoder
from minifuse.models.quantization import quantize
from minifuse.native import core

SIZES = BERT_SIZES | {"max_position_embeddings": 130}
FAMILIES = {
    "Bert": SIZES,
    "Roberta": SIZES | {"pad_token_id": 1, "type_vocab_size": 1},
    "DistilBert": {
        "dim": 32,
        "hidden_dim": 48,
        "n_layers": 2,
        "n_heads": 4,
        "max_position_embeddings": 130,
    },
    "MPNet": SIZES | {"pad_token_id": 1},
    "ModernBert": {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "local_attention": 12,
        "max_position_embeddings": 130,
        "pad_token_id": 0,
    },
}


def write(tmp_path, name="Bert", activation="relu", **changes):
    """A folder as sentence-transformers saves a sparse encoder. changes: of the configuration."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    if FAMILIES[name].get("pad_token_id") == 1:
        special[:2] = special[1::-1]
    tokenizer = byte_tokenizer("[CLS]", "[SEP]", special)
    config = getattr(transformers, f"{name}Config")(
        **{"vocab_size": tokenizer.get_vocab_size(), **FAMILIES[name], **changes}
    )
    model = getattr(transformers, f"{name}ForMaskedLM")(config)
    plain = write_folder(tmp_path / "plain", model, tokenizer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(plain / "tokenizer.json"),
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=120,
        model_input_names=["input_ids", "attention_mask"],
    )
    fast.save_pretrained(plain)
    modules = [MLMTransformer(str(plain)), SpladePooling(activation_function=activation)]
    theirs = sentence_transformers.SparseEncoder(modules=modules, device="cpu")
    theirs.save(str(tmp_path / "sparse"))
    return tmp_path / "sparse"


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path)


def both(folder):
    return SparseEncoder(folder), sentence_transformers.SparseEncoder(str(folder), device="cpu")


@pytest.mark.parametrize("name", FAMILIES)
def test_weights(tmp_path, name):
    ours, theirs = both(write(tmp_path, name))
    expected = theirs.encode(TEXTS).to_dense()
    found = ours.encode(TEXTS)
    assert found.is_sparse
    assert found.shape == expected.shape
    assert torch.abs(found.to_dense() - expected).max() <= 1e-5
    assert bool((expected > 1e-5).any())
    for place, text in enumerate(TEXTS):  # alone: the same bits
        assert torch.equal(ours.encode(text).to_dense(), found.to_dense()[place])
    for dtype, bound in (("bfloat16", 0.999), ("int8", 0.99)):
        other = SparseEncoder(folder := ours.name, dtype=dtype).encode(TEXTS).to_dense()
        cosine = torch.nn.functional.cosine_similarity(other, expected)
        assert cosine.min() > bound, (dtype, folder)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory in KiB")
def test_memory_does_not_grow_with_tokens_times_vocabulary(tmp_path):
    """64 texts of 120 tokens: scores of 40,000 words for all tokens at once would take 1.2 GB."""
    folder = write(tmp_path, vocab_size=40_000)
    script = f"""
import resource
import scipy.sparse
from minifuse import SparseEncoder, sparse_encoder
sparse_encoder._torch_or_none = lambda: None
model = SparseEncoder({str(folder)!r}, num_threads=2)
model.encode(["a"] * 64)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = model.encode(["a b " * 60] * 64)
assert rows.nnz > 64 * 10_000
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 150  # MiB


def test_the_logarithm_twice(tmp_path):
    ours, theirs = both(write(tmp_path, activation="log1p_relu"))
    difference = ours.encode(TEXTS).to_dense() - theirs.encode(TEXTS).to_dense()
    assert torch.abs(difference).max() <= 1e-5


def test_what_encode_gives(folder, monkeypatch):
    ours, theirs = both(folder)
    dense = ours.encode(TEXTS, convert_to_sparse_tensor=False)
    assert not dense.is_sparse
    rows = ours.encode(TEXTS, convert_to_tensor=False)
    assert isinstance(rows, list)
    assert rows[0].shape == (ours.get_embedding_dimension(),)
    few, other = (model.encode(TEXTS, max_active_dims=7) for model in (ours, theirs))
    assert ours.sparsity(few) == theirs.sparsity(other)
    assert torch.abs(few.to_dense() - other.to_dense()).max() <= 1e-5
    assert ours.encode([]).shape == (0, ours.get_embedding_dimension())
    monkeypatch.setattr(sparse_encoder, "_torch_or_none", lambda: None)
    matrix = ours.encode(TEXTS)
    assert isinstance(matrix, scipy.sparse.csr_matrix)
    np.testing.assert_array_equal(matrix.toarray(), dense.numpy())
    assert ours.decode(matrix) == ours.decode(dense)
    np.testing.assert_allclose(
        ours.similarity(matrix, matrix), ours.similarity(dense, dense), rtol=1e-6
    )


# sentence-transformers' own sparse tensors.
@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
def test_words_and_similarities(folder):
    ours, theirs = both(folder)
    vectors = theirs.encode(TEXTS)
    for top_k in (None, 3):
        for one, other in zip(
            ours.decode(vectors, top_k), theirs.decode(vectors, top_k), strict=True
        ):
            assert [weight for _, weight in one] == [weight for _, weight in other]
            assert {word for word, _ in one[:2]} == {word for word, _ in other[:2]}
    assert ours.decode(vectors[0], 2) == theirs.decode(vectors[0], 2)
    assert ours.sparsity(vectors) == pytest.approx(theirs.sparsity(vectors))
    for name in ("dot", "cosine"):
        ours.similarity_fn_name = theirs.similarity_fn_name = name
        expected = theirs.similarity(vectors, vectors)
        np.testing.assert_allclose(ours.similarity(vectors, vectors), expected, rtol=1e-5)
        pairs = theirs.similarity_pairwise(vectors, vectors)
        np.testing.assert_allclose(ours.similarity_pairwise(vectors, vectors), pairs, rtol=1e-5)
    with pytest.raises(ValueError, match="top_k must be a positive integer, got 0"):
        ours.decode(vectors, 0)
    with pytest.raises(TypeError, match=r"wanted a torch\.Tensor or a csr_matrix"):
        ours.decode([1.0])


def test_settings_travel(folder, tmp_path):
    ours = SparseEncoder(folder, max_active_dims=5, prompts={"query": "q: "})
    again = copy.deepcopy(ours)
    ours.save(tmp_path / "copy")
    saved, theirs = both(tmp_path / "copy")
    expected = ours.encode_query(TEXTS).to_dense()
    for model in (again, saved, theirs):
        assert model.max_active_dims == 5
        assert torch.abs(model.encode_query(TEXTS).to_dense() - expected).max() <= 1e-5
    assert torch.equal(ours.encode(TEXTS, prompt="q: ").to_dense(), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling_strategy": "sum"}, "pooling_strategy is 'sum', wanted 'max'"),
        ({"activation_function": "gelu"}, "activation_function is 'gelu', wanted relu"),
    ],
)
def test_what_is_not_computed_is_refused(folder, changes, message):
    path = folder / "1_SpladePooling" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        SparseEncoder(folder)


def test_arguments_are_checked(folder, tiny_folder):
    ours = SparseEncoder(folder)
    with pytest.raises(ValueError, match="max_active_dims is -1, wanted >= 1"):
        SparseEncoder(folder, max_active_dims=-1)
    with pytest.raises(ValueError, match="max_active_dims is 0, wanted >= 1"):
        ours.max_active_dims = 0
    with pytest.raises(ValueError, match="batch_size must be a positive integer"):
        ours.encode("a", batch_size=0)
    with pytest.raises(ValueError, match="batch_size must be a positive integer, got inf"):
        ours.encode("a", batch_size=float("inf"))
    assert ours.encode("a", batch_size=1 << 70) is not None
    with pytest.raises(ValueError, match="task is 'x'"):
        ours.encode("a", task="x")
    with pytest.raises(TypeError, match="inputs is None"):
        ours.encode()
    with pytest.raises(ValueError, match=r"modules.json lists Transformer, Pooling"):
        SparseEncoder(tiny_folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({k: v for k, v in tensors.items() if "transform.dense" not in k}, path)
    with pytest.raises(ValueError, match=r"lacks the tensor .* not a masked language model"):
        SparseEncoder(folder)


@pytest.mark.parametrize("twice", [False, True])
def test_logarithms_are_exact(rng, twice):
    """The nearest float32 but for ties, over all magnitudes."""
    scores = np.exp(rng.uniform(-40, 20, 3000)).astype(np.float32)
    weight = core.pack_linear(scores[:, None], "float32")
    ones, offsets = np.ones((1, 1), np.float32), np.array([0, 1], np.int32)
    (found,) = core.splade_weights(ones, offsets, weight, np.zeros(3000, np.float32), twice)
    exact = np.log1p(scores.astype(np.float64))
    exact = np.log1p(exact) if twice else exact
    np.testing.assert_allclose(found, exact, rtol=2.0**-24 * 1.001)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_of_words(isa, rng, dtype):
    """Blocks of rows end within sentences, and slices of words within panels."""
    lengths = [0, 1, 190, 5, 0, 300, 2]
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    x = rng.normal(size=(sum(lengths), 24)).astype(np.float32)
    w, bias = rng.normal(size=(1111, 24)).astype(np.float32), rng.normal(size=1111)
    packed = core.pack_linear(w, dtype)
    found = core.splade_weights(x, cu_seqlens, packed, bias.astype(np.float32), False)
    scores = core.linear(x, packed, bias.astype(np.float32), "none")
    for place, (begin, end) in enumerate(itertools.pairwise(cu_seqlens)):
        highest = scores[begin:end].max(axis=0, initial=0).astype(np.float64)
        np.testing.assert_allclose(found[place], np.log1p(highest), rtol=1e-6)
    for value in (np.nan, np.inf):  # in the middle of a sentence
        odd = bias.astype(np.float32)
        odd[7] = value
        (found,) = core.splade_weights(x[1:9], np.array([0, 8], np.int32), packed, odd, False)
        np.testing.assert_array_equal(found[7], value)
        assert np.isfinite(np.delete(found, 7)).all()
    for bad, message in (([0, 3], "to the number of rows"), ([0, 9, 3, 498], "ascend")):
        offsets = np.array(bad, np.int32)
        with pytest.raises(ValueError, match=message):
            core.splade_weights(x, offsets, packed, bias.astype(np.float32), False)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # of sentence-transformers
def test_intersection_and_preprocess(folder, monkeypatch):
    ours, theirs = both(folder)
    queries, documents = ours.encode(TEXTS[2:4]), ours.encode([TEXTS[0], TEXTS[2]])
    for first, second in ((queries[0], documents), (queries[0], queries[1])):
        found, expected = (m.intersection(first, second).to_dense() for m in (ours, theirs))
        assert torch.equal(found, expected)
        assert bool((found > 0).any())
    found = ours.intersection(queries, documents).to_dense()  # row by row
    assert torch.equal(found, queries.to_dense() * documents.to_dense())
    with pytest.raises(ValueError, match="2 texts and 5"):
        ours.intersection(queries, ours.encode(TEXTS))
    with pytest.raises(ValueError, match=r"does not use: \['normalize'\]"):
        ours.encode(TEXTS, normalize=True)
    expected = theirs.preprocess(TEXTS)
    for name, value in ours.preprocess(TEXTS, task="document").items():
        if name in expected:
            np.testing.assert_array_equal(value, expected[name].numpy())
    monkeypatch.setattr(sparse_encoder, "_torch_or_none", lambda: None)
    one, several = ours.encode(TEXTS[2]), ours.encode(TEXTS[2:4])
    expected = one.toarray() * several.toarray()
    np.testing.assert_array_equal(ours.intersection(one, several).toarray(), expected)
    np.testing.assert_array_equal(ours.intersection(several, one).toarray(), expected)


@pytest.fixture(params=["tensor", "json"])
def routed(request, folder, tmp_path):
    """A model whose queries are weighed by a table, as sentence-transformers saves it."""
    fast = transformers.AutoTokenizer.from_pretrained(folder)
    table = SparseStaticEmbedding(tokenizer=fast)
    with torch.no_grad():
        table.weight.copy_(
            torch.rand(len(table.weight), generator=torch.Generator().manual_seed(0))
        )
        table.weight[::5] = 0
    router = Router.for_query_document(
        query_modules=[table],
        document_modules=[MLMTransformer(str(folder)), SpladePooling()],
    )
    theirs = sentence_transformers.SparseEncoder(modules=[router], device="cpu")
    path = tmp_path / "routed"
    theirs.save(str(path))
    if request.param == "json":
        place = path / "query_0_SparseStaticEmbedding"
        words = {fast.convert_ids_to_tokens(i): w for i, w in enumerate(table.weight.tolist()) if w}
        (place / "idf.json").write_text(json.dumps(words))
        (place / "config.json").write_text('{"frozen": false, "path": "idf.json"}')
        (place / "model.safetensors").unlink()
    return path, theirs


def test_queries_are_weighed_without_the_encoder(routed, tmp_path):
    path, theirs = routed
    ours = SparseEncoder(path)
    queries = [text for text in TEXTS if text] + ["a b a b"]
    for prompt in (None, "find: "):
        found = ours.encode_query(queries, prompt=prompt).to_dense()
        expected = theirs.encode_query(queries, prompt=prompt).to_dense()
        assert torch.equal(found, expected)
        assert bool((found > 0).any())
    expected = theirs.encode_document(TEXTS).to_dense()
    assert torch.abs(ours.encode_document(TEXTS).to_dense() - expected).max() <= 1e-5
    assert torch.equal(ours.encode(TEXTS).to_dense(), ours.encode_document(TEXTS).to_dense())
    assert ours.encode_query("").to_dense().sum() == 0
    for again in (copy.deepcopy(ours), SparseEncoder(saved(ours, tmp_path / "again"))):
        assert torch.equal(again.encode_query(queries).to_dense(),
                           ours.encode_query(queries).to_dense())  # fmt: skip
    with pytest.raises(TypeError, match=r"inputs\[1\]"):
        ours.encode_query(["a", 3])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_in_int8_gives_the_bits_of_int8(tmp_path, name):
    folder = write(tmp_path, name)
    ours = SparseEncoder(quantize(folder, tmp_path / "int8"))
    assert (ours.dtype, ours.is_quantized) == ("int8", True)
    expected = SparseEncoder(folder, dtype="int8").encode(TEXTS)
    assert torch.equal(ours.encode(TEXTS).to_dense(), expected.to_dense())


def test_a_routed_folder_in_int8(routed, tmp_path):
    path, _ = routed
    ours, whole = (
        SparseEncoder(quantize(path, tmp_path / "int8")),
        SparseEncoder(path, dtype="int8"),
    )
    for encode in ("encode_query", "encode_document"):
        found, expected = (getattr(one, encode)(TEXTS).to_dense() for one in (ours, whole))
        assert torch.equal(found, expected)


def saved(model, path):
    model.save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("router_config.json", {"structure": {"query": []}}, "query and document"),
        ("router_config.json", {"types": 3}, "wanted types"),
        ("router_config.json", {"parameters": {"default_route": "x"}}, "default_route"),
        ("query_0_SparseStaticEmbedding/config.json", {"path": "no.json"}, "no.json"),
    ],
)
def test_a_damaged_router_is_named(routed, file, changes, message):
    path, _ = routed
    config = json.loads((path / file).read_text())
    (path / file).write_text(json.dumps(config | changes))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        SparseEncoder(path)
