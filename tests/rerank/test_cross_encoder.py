"""CrossEncoder against sentence-transformers' own, on random models of each family with a head."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from itertools import chain

import numpy as np
import pytest
import sentence_transformers
import torch
import transformers
from tokenizers import Tokenizer

import minifuse
from minifuse import CrossEncoder, SentenceTransformer
from minifuse.models.quantization import quantize
from tiny_cross_encoder import FAMILIES, TEXTS, write_cross_encoder

PAIRS = [(a, b) for a in TEXTS for b in TEXTS]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return write_cross_encoder(tmp_path_factory.mktemp("rerank") / "bert", "bert")


@pytest.fixture(scope="module")
def three_labels(tmp_path_factory):
    return write_cross_encoder(tmp_path_factory.mktemp("rerank") / "three", "bert", 3)


@pytest.mark.parametrize("num_labels", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_sentence_transformers(tmp_path, family, num_labels):
    folder = write_cross_encoder(tmp_path / family, family, num_labels)
    ours, theirs = CrossEncoder(folder), sentence_transformers.CrossEncoder(str(folder))
    assert ours.num_labels == theirs.num_labels == num_labels
    assert ours.max_seq_length == theirs.max_seq_length == 48
    features = theirs.preprocess(PAIRS)
    np.testing.assert_array_equal(ours.preprocess(PAIRS)["input_ids"], features["input_ids"])
    tokens = ours.pipeline.tokenize(PAIRS)
    features = theirs.tokenizer(
        *map(list, zip(*PAIRS, strict=True)), truncation=True, max_length=48
    )
    assert tokens.ids.tolist() == [*chain.from_iterable(features["input_ids"])]
    if "token_type_ids" in features:
        assert tokens.types().tolist() == [*chain.from_iterable(features["token_type_ids"])]
    for activation in (torch.nn.Identity(), torch.nn.Sigmoid(), None):
        expected = theirs.predict(PAIRS, activation_fn=activation)
        scores = ours.predict(PAIRS, activation_fn=activation)
        assert scores.dtype == np.float32
        assert scores.shape == expected.shape
        assert np.abs(scores - expected).max() <= 1e-5
    np.testing.assert_allclose(
        ours.predict(PAIRS, apply_softmax=True),
        theirs.predict(PAIRS, apply_softmax=True),
        atol=1e-6,
    )


@pytest.mark.slow
@pytest.mark.parametrize("num_labels", [1, 3])
@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_a_thousand_pairs(tmp_path, family, num_labels):
    """Pairs of 2 to 300 tokens, so that many are cut on one side or on both."""
    rng = np.random.default_rng(0)
    words = " ".join(TEXTS).split()
    texts = [" ".join(rng.choice(words, int(n))) for n in rng.integers(0, 40, 2000)]
    pairs = [*zip(texts[:1000], texts[1000:], strict=True)]
    folder = write_cross_encoder(tmp_path / family, family, num_labels, model_max_length=128)
    ours, theirs = CrossEncoder(folder), sentence_transformers.CrossEncoder(str(folder))
    expected = theirs.predict(pairs, activation_fn=torch.nn.Identity())
    scores = ours.predict(pairs, activation_fn="identity")
    assert scores.shape == expected.shape
    assert np.abs(scores - expected).max() <= 1e-5


def test_a_pair_has_the_same_bits_alone_and_in_any_batch(bert):
    for dtype in ("float32", "bfloat16", "int8"):
        model = CrossEncoder(bert, dtype=dtype)
        scores = model.predict(PAIRS)
        for place, pair in enumerate(PAIRS):
            assert model.predict(pair) == scores[place]
        reordered = model.predict(PAIRS[::-1], batch_size=3, num_threads=2)
        np.testing.assert_array_equal(reordered[::-1], scores)


def test_lower_precision_stays_near(bert):
    scores = CrossEncoder(bert).predict(PAIRS, activation_fn="identity")
    for dtype, bound in (("bfloat16", 0.05), ("int8", 0.1)):
        lower = CrossEncoder(bert, dtype=dtype).predict(PAIRS, activation_fn="identity")
        assert np.abs(lower - scores).max() <= bound * scores.std()


def test_token_types_matter(bert, tmp_path):
    """Without them in the tokenizer's configuration the second text has type 0."""
    names = ["input_ids", "attention_mask"]
    without = write_cross_encoder(tmp_path / "m", "bert", model_input_names=names)
    assert not np.allclose(
        CrossEncoder(bert).predict(PAIRS, activation_fn="identity"),
        CrossEncoder(without).predict(PAIRS, activation_fn="identity"),
    )


def test_rank_is_that_of_sentence_transformers(bert):
    ours, theirs = CrossEncoder(bert), sentence_transformers.CrossEncoder(str(bert))
    for options in ({}, {"top_k": 2}, {"return_documents": True}, {"prompt": "query: "}):
        got = ours.rank(TEXTS[0], TEXTS[1:], **options)
        expected = theirs.rank(TEXTS[0], TEXTS[1:], **options)
        assert [list(one) for one in got] == [list(one) for one in expected]
        for a, b in zip(got, expected, strict=True):
            assert a["corpus_id"] == b["corpus_id"]
            assert a.get("text") == b.get("text")
            assert isinstance(a["score"], float)
            assert abs(a["score"] - b["score"]) <= 1e-5


def test_ties_keep_their_order(bert):
    assert [one["corpus_id"] for one in CrossEncoder(bert).rank("a", ["b"] * 5)] == [0, 1, 2, 3, 4]


def test_shapes_of_inputs_and_outputs(bert, three_labels):
    model, several = CrossEncoder(bert), CrossEncoder(three_labels)
    pair = TEXTS[:2]
    one = model.predict(pair)
    assert one.shape == ()
    assert several.predict(pair).shape == (3,)
    assert model.predict(tuple(pair)) == model.predict(np.array(pair)) == one
    assert model.predict([pair]).tolist() == model.predict(np.array([pair])).tolist() == [one]
    assert model.predict([]).shape == (0,)
    assert several.predict([]).shape == (0, 3)
    assert several.predict([], apply_softmax=True).shape == (0, 3)
    assert model.rank("a", []) == []
    tensor = model.predict([pair], convert_to_tensor=True)
    assert isinstance(tensor, torch.Tensor)
    assert tensor.tolist() == [one]
    assert isinstance(model.predict([pair], convert_to_numpy=False), list)
    assert model.predict(sentences=[pair]).tolist() == [one]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"inputs": None}, TypeError, "inputs is None"),
        ({"inputs": "one text"}, TypeError, "wanted a pair of strings"),
        ({"inputs": [["a", "b"], ["a"]]}, TypeError, r"inputs\[1\] is \['a'\]"),
        ({"inputs": [["a", 3]]}, TypeError, "wanted a string or a pair"),
        ({"inputs": [["a", "\ud800"]]}, ValueError, "lone surrogate"),
        ({"inputs": [], "batch_size": 0}, ValueError, "batch_size must be a positive integer"),
        ({"inputs": [], "batch_size": float("nan")}, ValueError, "batch_size must be a positive"),
        ({"inputs": [], "device": "cuda"}, ValueError, "device"),
        ({"inputs": [["a b " * 50, "c"]], "truncation": "error"}, ValueError, "more than"),
        ({"inputs": [], "truncation": "left"}, ValueError, "truncation is 'left'"),
    ],
)
def test_refusals(bert, arguments, error, message):
    with pytest.raises(error, match=message):
        CrossEncoder(bert).predict(**arguments)


def test_refusals_of_models(bert, three_labels, tiny_folder):
    with pytest.raises(ValueError, match=r"num_labels is 2, but the head of .* gives 1"):
        CrossEncoder(bert, num_labels=2)
    with pytest.raises(ValueError, match=r"only works for models with num_labels=1"):
        CrossEncoder(three_labels).rank("a", ["b"])
    with pytest.raises(ValueError, match=r"ends with Normalize, wanted a Dense that gives scores"):
        CrossEncoder(tiny_folder)
    with pytest.raises(ValueError, match="activation_fn is 'softplus'"):
        CrossEncoder(bert, activation_fn="softplus")
    with pytest.raises(TypeError, match="activation_fn is a int"):
        CrossEncoder(bert, activation_fn=3)


def test_an_encoder_without_a_head_is_refused(tmp_path, bert):
    folder = tmp_path / "model"
    base = transformers.AutoModel.from_pretrained(bert)
    base.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((bert / "tokenizer.json").read_bytes())
    with pytest.raises(
        ValueError, match=r"lacks the tensor .classifier\.weight.: not a cross-encoder"
    ):
        CrossEncoder(folder)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("torch.nn.modules.linear.Identity", "identity"),
        ("torch.nn.modules.activation.Tanh", "tanh"),
        ("os.system", "sigmoid"),
        (None, "sigmoid"),
    ],
)
@pytest.mark.parametrize("place", ["settings", "config", "old config"])
def test_activation_is_read_by_name(tmp_path, path, name, place, caplog):
    folder = write_cross_encoder(tmp_path / "model", "bert")
    config_path = folder / "config.json"
    config = json.loads(config_path.read_text())
    if place == "settings":
        config_path = folder / "config_sentence_transformers.json"
        config = {"activation_fn": path}
    elif place == "config":
        config["sentence_transformers"] = {"activation_fn": path}
    else:
        config["sbert_ce_default_activation_function"] = path
    config_path.write_text(json.dumps(config))
    with caplog.at_level(logging.WARNING):
        assert CrossEncoder(folder).activation_fn == name
    assert ("is not trusted" in caplog.text) == (path == "os.system")


def test_an_unknown_activation_is_refused(tmp_path):
    folder = write_cross_encoder(tmp_path / "model", "bert")
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps({"activation_fn": "torch.nn.modules.activation.Hardswish"}))
    with pytest.raises(ValueError, match="Hardswish': pass activation_fn="):
        CrossEncoder(folder)


def test_a_function_of_ones_own(bert):
    model = CrossEncoder(bert, activation_fn=lambda x: 2 * x)
    scores = model.predict(PAIRS)
    np.testing.assert_array_equal(scores, 2 * model.predict(PAIRS, activation_fn="identity"))


def test_a_length_for_one_call(bert):
    model, theirs = CrossEncoder(bert), sentence_transformers.CrossEncoder(str(bert))
    wish = {"text": {"max_length": 9, "truncation": True}}
    scores = model.predict(PAIRS, processing_kwargs=wish)
    np.testing.assert_allclose(scores, theirs.predict(PAIRS, processing_kwargs=wish), atol=1e-5)
    ids, expected = (
        one.preprocess(PAIRS[:3], processing_kwargs=wish)["input_ids"] for one in (model, theirs)
    )
    np.testing.assert_array_equal(ids, expected)
    with pytest.raises(ValueError, match=r"CrossEncoder\.predict\(\) has been called with"):
        model.predict(PAIRS, nonsense=1)


def test_activations_are_pytorchs_where_tensors_are_preferred(bert):
    model = CrossEncoder(bert, activation_fn="tanh")
    minifuse.prefer_tensors()
    try:
        assert isinstance(model.activation_fn, torch.nn.Tanh)
    finally:
        minifuse.prefer_tensors(False)
    assert model.activation_fn == "tanh"


def test_copies(bert):
    model = CrossEncoder(bert, dtype="int8", max_length=20, activation_fn="tanh")
    assert model.max_length == 20
    for copied in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert (copied.dtype, copied.max_length, copied.activation_fn) == ("int8", 20, "tanh")
        np.testing.assert_array_equal(copied.predict(PAIRS), model.predict(PAIRS))


def test_a_tokenizer_that_is_set_keeps_the_token_types(bert):
    model = CrossEncoder(bert, activation_fn="identity")
    scores = model.predict(PAIRS)
    model.tokenizer = Tokenizer.from_str(model.tokenizer.to_str())
    np.testing.assert_array_equal(model.predict(PAIRS), scores)
    model.tokenizer.enable_truncation(400)  # another than the folder's, so that it travels
    copied = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(copied.predict(PAIRS), scores)


@pytest.mark.parametrize(
    ("activation", "saved"),
    [
        (torch.nn.Sigmoid(), "torch.nn.modules.activation.Sigmoid"),
        (torch.nn.Identity(), "torch.nn.modules.linear.Identity"),
        (torch.nn.GELU(), "torch.nn.modules.activation.GELU"),
        (torch.nn.GELU(approximate="tanh"), None),
        (torch.sin, None),
        ("tanh", "torch.nn.modules.activation.Tanh"),
    ],
)
def test_an_activation_is_saved_by_the_name_of_its_class(bert, tmp_path, activation, saved):
    model = CrossEncoder(bert, activation_fn=activation)
    model.save_pretrained(tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "config_sentence_transformers.json").read_text())
    assert settings.get("activation_fn") == saved
    if saved is not None:
        again = CrossEncoder(tmp_path / "out")
        np.testing.assert_allclose(again.predict(PAIRS), model.predict(PAIRS), atol=1e-6)


def test_arguments_of_earlier_versions(bert, caplog):
    with caplog.at_level(logging.WARNING):
        model = CrossEncoder(
            bert, automodel_args={"torch_dtype": torch.bfloat16}, tokenizer_args={}
        )
    assert model.dtype == "bfloat16"
    for name in ("automodel_args", "tokenizer_args"):
        assert f"`{name}` argument was renamed" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        ranks = model.rank("a", ["b", "c"], convert_to_tensor=True)
    assert "convert_to_tensor" in caplog.text
    assert {type(one["score"]) for one in ranks} == {float}


def test_saved_folder_loads_everywhere(bert, tmp_path):
    model = CrossEncoder(bert, max_length=20, activation_fn="tanh", prompts={"query": "q: "})
    model.save_pretrained(tmp_path / "saved")
    again = CrossEncoder(tmp_path / "saved")
    theirs = sentence_transformers.CrossEncoder(str(tmp_path / "saved"))
    assert again.prompts == theirs.prompts == {"query": "q: "}
    assert (again.max_length, theirs.max_seq_length) == (20, 20)
    scores = model.predict(PAIRS, prompt_name="query")
    np.testing.assert_array_equal(again.predict(PAIRS, prompt_name="query"), scores)
    assert np.abs(theirs.predict(PAIRS, prompt_name="query") - scores).max() <= 1e-5


def test_folders_that_sentence_transformers_saved(bert, tmp_path):
    theirs = sentence_transformers.CrossEncoder(str(bert), activation_fn=torch.nn.Tanh())
    theirs.save_pretrained(str(tmp_path / "theirs"))
    model = CrossEncoder(tmp_path / "theirs")
    assert model.activation_fn == "tanh"
    assert np.abs(model.predict(PAIRS) - theirs.predict(PAIRS)).max() <= 1e-5
    model.save_pretrained(tmp_path / "ours")
    again = sentence_transformers.CrossEncoder(str(tmp_path / "ours"))
    assert np.abs(model.predict(PAIRS) - again.predict(PAIRS)).max() <= 1e-5


def test_quantized_folder(bert, tmp_path):
    quantize(bert, tmp_path / "int8")
    model = CrossEncoder(tmp_path / "int8")
    assert (model.dtype, model.is_quantized) == ("int8", True)
    expected = CrossEncoder(bert, dtype="int8").predict(PAIRS)
    np.testing.assert_array_equal(model.predict(PAIRS), expected)


def test_sentence_transformer_says_what_to_use(bert, tmp_path):
    theirs = sentence_transformers.CrossEncoder(str(bert))
    theirs.save_pretrained(str(tmp_path / "theirs"))
    with pytest.raises(ValueError, match="for a reranker use CrossEncoder"):
        SentenceTransformer(tmp_path / "theirs")


def test_embeddings_of_pairs(tiny_folder):
    """sentence-transformers embeds a pair as one text, too."""
    ours = SentenceTransformer(tiny_folder)
    theirs = sentence_transformers.SentenceTransformer(str(tiny_folder))
    pairs = [["the sky", "is blue"], ["a dog", "runs"]]
    np.testing.assert_allclose(ours.encode(pairs), theirs.encode(pairs), atol=2e-6)
