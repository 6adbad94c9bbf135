"""Programs written for sentence-transformers find what they ask of a model beside its vectors."""

from __future__ import annotations

import copy
import importlib
import logging
import sys
import types

import numpy as np
import pytest
import sentence_transformers
import torch
from sentence_transformers.sentence_transformer import evaluation

import minifuse
from minifuse import SentenceTransformer, util

TEXTS = ["the sky is blue.", "a dog runs", "lazy dogs jump over the sky", "the dog"]


@pytest.fixture
def model(tiny_folder):
    return SentenceTransformer(tiny_folder, prompts={"query": "a ", "passage": "the "})


@pytest.fixture(scope="module")
def theirs(tiny_folder):
    return sentence_transformers.SentenceTransformer(
        str(tiny_folder), prompts={"query": "a ", "passage": "the "}
    )


def test_arguments_of_queries_and_documents_go_by_position(model, theirs):
    for name in ("encode_query", "encode_document"):
        ours, reference = getattr(model, name), getattr(theirs, name)
        for arguments in (
            (TEXTS,),
            (TEXTS, "query"),
            (TEXTS, None, "the "),
            (TEXTS, None, None, 2),
        ):
            np.testing.assert_allclose(ours(*arguments), reference(*arguments), atol=2e-6)
    assert model.encode_query(TEXTS, convert_to_tensor=True).shape == (4, 48)
    assert not np.allclose(model.encode_query(TEXTS), model.encode_document(TEXTS))


@pytest.mark.parametrize("kind", ["query", "document"])
def test_a_task_passes_everything_on_by_name(model, monkeypatch, kind):
    """As programs that replace encode expect it."""
    calls = []
    monkeypatch.setattr(model, "encode", lambda *args, **kwargs: calls.append((args, kwargs)))
    ask = getattr(model, f"encode_{kind}")
    ask(sentences=TEXTS, batch_size=4, own=1)
    ask(TEXTS, None, "x ", 8, False)
    assert calls == [
        ((), {"inputs": TEXTS, "prompt_name": kind, "prompt": None, "batch_size": 4,
              "own": 1, "task": kind}),
        ((), {"inputs": TEXTS, "prompt_name": None, "prompt": "x ", "batch_size": 8,
              "show_progress_bar": False, "task": kind}),
    ]  # fmt: skip


def test_the_length_of_a_prompt(model, theirs):
    for prompt in ("the ", ""):
        ours, other = (
            one.encode(TEXTS[:2], prompt=prompt, output_value=None)[0] for one in (model, theirs)
        )
        assert set(ours) == set(other)
        assert ours["modality"] == other["modality"]
        if prompt:
            assert int(ours["prompt_length"]) == int(other["prompt_length"])


def test_devices_and_dtypes_are_those_of_tensors(model):
    tensor = model.encode(TEXTS, convert_to_tensor=True)
    assert tensor.device == model.device
    assert model.device == "cpu"
    assert model.device != torch.device("cuda:0")
    assert model.dtype == torch.float32 == model.dtype
    assert model.dtype == "float32" != torch.float16
    assert model.dtype != torch.float16
    assert {model.device: 1}["cpu"] == {model.dtype: 1}["float32"] == 1


def test_pools_are_accepted_and_threads_do_the_work(model):
    pool = model.start_multi_process_pool(["cpu"] * 4)
    expected = model.encode(TEXTS)
    for vectors in (
        model.encode(TEXTS, pool=pool, chunk_size=2),
        model.encode_multi_process(TEXTS, pool),
        model.encode_multi_process(sentences=TEXTS, pool=pool, chunk_size=3),
        model.encode(TEXTS, device=["cpu", "cpu"]),
    ):
        np.testing.assert_array_equal(vectors, expected)
    model.stop_multi_process_pool(pool)


def test_modalities(model, theirs):
    assert model.modalities == theirs.modalities == ["text"]
    for kind in ("text", "image", ("text", "image")):
        assert model.supports(kind) == theirs.supports(kind)
    for inputs in ("a", ["a"], [], [["a", "b"]], np.array(["a"])):
        assert model.is_singular_input(inputs) == theirs.is_singular_input(inputs), inputs


def test_max_seq_length_none_is_the_models_own(model):
    model.max_seq_length = 5
    model.max_seq_length = None
    assert model.max_seq_length == model.pipeline.folder.description.max_position_embeddings


def evaluators():
    scores = [0.1, 0.9, 0.4]
    triples = TEXTS[:3], TEXTS[1:], [TEXTS[3], TEXTS[0], TEXTS[0]]
    yield evaluation.EmbeddingSimilarityEvaluator(TEXTS[:3], TEXTS[1:], scores)
    yield evaluation.BinaryClassificationEvaluator(TEXTS[:3], TEXTS[1:], [0, 1, 1])
    yield evaluation.TripletEvaluator(*triples)
    yield evaluation.InformationRetrievalEvaluator(
        {"q": TEXTS[0]}, {str(i): text for i, text in enumerate(TEXTS)}, {"q": {"2"}}
    )
    yield evaluation.ParaphraseMiningEvaluator(
        {str(i): text for i, text in enumerate(TEXTS)}, [("0", "2")]
    )


@pytest.mark.parametrize("place", range(5))
def test_evaluators_of_sentence_transformers(model, theirs, tmp_path, place):
    evaluator = list(evaluators())[place]
    expected = theirs.evaluate(evaluator)
    results = model.evaluate(evaluator, str(tmp_path / "results"))
    assert (tmp_path / "results").is_dir()
    assert results.keys() == expected.keys()
    for name, value in results.items():
        assert abs(value - expected[name]) <= 1e-5, name
    assert [metrics for _, metrics, _, _ in model.model_card_data.metrics] == [results]


def test_saving_replaces_and_keeps(model, tmp_path):
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    (folder / "pytorch_model.bin").write_text("other weights")
    (folder / "more").mkdir()
    (folder / "more" / "a.txt").write_text("a")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "mine.txt").write_text("b")
    (folder / "model notes").write_text("c")
    (folder / "config.json").write_text("old")
    model.save(folder, "name", True, None, False)
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "more" / "a.txt").read_text() == "a"
    assert (folder / "1_Pooling" / "mine.txt").read_text() == "b"
    assert (folder / "model notes").read_text() == "c"
    assert not (folder / "pytorch_model.bin").exists()
    assert "# name" in (folder / "README.md").read_text()
    again = SentenceTransformer(folder)
    np.testing.assert_array_equal(again.encode(TEXTS), model.encode(TEXTS))
    again.max_seq_length = 7
    again.save(folder)  # onto the folder that it came from
    assert SentenceTransformer(folder).max_seq_length == 7
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    again.save(tmp_path / "without", create_model_card=False)
    assert not (tmp_path / "without" / "README.md").exists()
    assert (
        '"model_type": "SentenceTransformer"'
        in (tmp_path / "without" / "config_sentence_transformers.json").read_text()
    )
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError):
        again.save(tmp_path / "file")


def test_a_failed_save_leaves_the_folder_as_it_was(model, tmp_path, monkeypatch):
    model.save(tmp_path / "saved")
    before = {path: path.read_bytes() for path in (tmp_path / "saved").rglob("*") if path.is_file()}
    monkeypatch.setattr(model, "_write_settings", lambda *paths: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.save(tmp_path / "saved")
    after = {path: path.read_bytes() for path in (tmp_path / "saved").rglob("*") if path.is_file()}
    assert after == before
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_names_at_the_top_level():
    for name in ("quantize_embeddings", "SimilarityFunction", "InputExample", "LoggingHandler"):
        assert getattr(minifuse, name) is not None
        assert hasattr(sentence_transformers, name)
    ours, theirs = minifuse.SimilarityFunction, sentence_transformers.SimilarityFunction
    assert set(ours.possible_values()) <= set(theirs.possible_values())
    x, y = np.eye(3, 4), np.ones((3, 4))
    for name in ours.possible_values():
        for function in ("to_similarity_fn", "to_similarity_pairwise_fn"):
            np.testing.assert_allclose(
                getattr(ours, function)(name)(x, y),
                getattr(theirs, function)(name)(x, y),
                atol=1e-6,
            )
    example = minifuse.InputExample(texts=["a", "b"], label=1)
    assert str(example) == "<InputExample> label: 1, texts: a; b"


def test_names_of_util(rng):
    from sentence_transformers import util as reference

    assert util.pytorch_cos_sim is util.cos_sim
    assert util.information_retrieval is util.semantic_search
    for width in (6, 7):
        x, y = rng.standard_normal((2, 5, width)).astype(np.float32)
        np.testing.assert_allclose(
            util.pairwise_angle_sim(x, y), reference.pairwise_angle_sim(x, y), atol=1e-6
        )
    moved = util.batch_to_device({"x": torch.ones(2), "n": 3}, "cpu")
    assert moved["n"] == 3


def test_logging_handler(capsys):
    logger = logging.getLogger("a logger of this test")
    logger.addHandler(util.LoggingHandler())
    logger.error("a line")
    assert "a line" in "".join(capsys.readouterr())


def test_distance_to_itself_is_nothing(rng):
    x = (rng.standard_normal((50, 384)) * 1e-2).astype(np.float32)
    assert np.abs(np.diag(util.euclidean_sim(x, x))).max() <= 1e-7
    assert util.euclidean_sim(x, x).dtype == np.float32


def test_copies_keep_the_card(model):
    model.model_card_data.set_evaluation_metrics(None, {"a": 1.0}, epoch=2)
    assert copy.deepcopy(model).model_card_data.metrics == [(None, {"a": 1.0}, 2, 0)]


def test_a_length_for_one_call(model, theirs):
    long = ["a dog runs over lazy dogs and jumps over the blue sky", "the dog"]
    wish = {"text": {"max_length": 5, "truncation": True}}
    expected = theirs.encode(long, processing_kwargs=wish)
    np.testing.assert_allclose(model.encode(long, processing_kwargs=wish), expected, atol=2e-6)
    with pytest.raises(ValueError, match=r"sentences\[0\] has more than max_length=5 tokens"):
        model.encode(long, processing_kwargs=wish, truncation="error")
    alone = model.encode(long[0], processing_kwargs={"common": {"max_length": 5}})
    np.testing.assert_array_equal(alone, model.encode(long, processing_kwargs=wish)[0])
    assert model.preprocess(long, processing_kwargs=wish)["input_ids"].shape == (2, 5)
    most = {"text": {"max_length": 10**6}}  # no more positions than the model has
    assert model.preprocess(["a " * 300], processing_kwargs=most)["input_ids"].shape[1] == (
        model.pipeline.folder.description.max_position_embeddings
    )


def test_a_prompts_tokens_are_counted(model, theirs):
    np.testing.assert_array_equal(
        model.preprocess(TEXTS[0])["input_ids"], model.preprocess(TEXTS[:1])["input_ids"]
    )
    for prompt in ("a dog ", "the "):
        features = theirs.preprocess(TEXTS, prompt=prompt)
        assert model.preprocess(TEXTS, prompt=prompt)["prompt_length"] == features["prompt_length"]


def test_a_similarity_of_another_class_is_named(model):
    with pytest.raises(ValueError, match="MultiVectorEncoder"):
        model.similarity_fn_name = "maxsim"


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "model").write_text("no folder")
    with pytest.raises(NotADirectoryError, match="is a file, not a directory"):
        SentenceTransformer(tmp_path / "model")


def test_the_parts_of_a_model(model, theirs):
    assert len(model) == len(theirs)
    names = [type(part).__name__.removesuffix("Module") for part in model]
    assert names == [type(part).__name__ for part in theirs]
    assert [name for name, _ in model.named_children()] == [n for n, _ in theirs.named_children()]
    assert len(list(model.children())) == len(model)
    ours, other = model[0], theirs[0]
    assert ours.get_embedding_dimension() == other.get_embedding_dimension()
    assert ours.max_seq_length == model.max_seq_length
    assert ours.config.hidden_size == other.config.hidden_size == model.config.hidden_size
    assert model[-1] is not None
    ours, other = model[1], theirs[1]
    assert ours.get_embedding_dimension() == other.get_embedding_dimension()
    assert ours.pooling_mode == other.pooling_mode == ours.get_pooling_mode_str()
    assert ours.include_prompt == other.include_prompt
    assert ours.pooling_mode_mean_tokens
    assert not ours.pooling_mode_cls_token


def test_a_setting_of_a_part_is_the_models(model):
    whole = model.encode(TEXTS[2])
    model[0].max_seq_length = 4
    assert model.max_seq_length == model.tokenizer.model_max_length == 4
    assert not np.array_equal(model.encode(TEXTS[2]), whole)
    model[1].include_prompt = False
    assert not model.pipeline.include_prompt
    for part in (model[0], model[1]):
        with pytest.raises(AttributeError):
            part.anything = 1
    with pytest.raises(AttributeError, match="no PyTorch module"):
        _ = model[0].auto_model


def test_a_program_can_prefer_tensors(model, theirs):
    a = model.encode(TEXTS)
    assert isinstance(model.similarity(a, a), np.ndarray)
    minifuse.prefer_tensors()
    try:
        for result in (
            model.similarity(a, a),
            model.similarity_pairwise(a, a),
            util.cos_sim(a, a),
            util.pairwise_dot_score(a, a),
            *model.tokenize(TEXTS).values(),
            *model.encode(TEXTS, output_value="token_embeddings"),
            *(
                model.encode(TEXTS, output_value=None)[0][name]
                for name in (
                    "input_ids",
                    "attention_mask",
                    "token_embeddings",
                    "sentence_embedding",
                )
            ),
        ):
            assert isinstance(result, torch.Tensor)
        assert isinstance(model.encode(TEXTS), np.ndarray)
        expected = theirs.encode(TEXTS, output_value=None)
        for ours, other in zip(model.encode(TEXTS, output_value=None), expected, strict=True):
            torch.testing.assert_close(
                ours["sentence_embedding"], other["sentence_embedding"], atol=2e-6, rtol=0
            )
    finally:
        minifuse.prefer_tensors(False)
    assert isinstance(model.similarity(a, a), np.ndarray)


def test_a_model_is_uploaded(model, monkeypatch):
    from types import SimpleNamespace

    import huggingface_hub

    calls = []

    class Hub:
        def __init__(self, token=None):
            calls.append(("hub", token))

        def create_repo(self, **arguments):
            calls.append(("repo", arguments["repo_id"], arguments["exist_ok"]))
            return SimpleNamespace(repo_id="me/tiny")

        def create_branch(self, **arguments):
            calls.append(("branch", arguments["branch"]))

        def upload_folder(self, **arguments):
            again = SentenceTransformer(arguments["folder_path"])
            np.testing.assert_array_equal(again.encode(TEXTS), model.encode(TEXTS))
            assert "me/tiny" in (again.pipeline.folder.path / "README.md").read_text()
            calls.append(("upload", arguments["revision"], arguments["create_pr"]))
            return SimpleNamespace(commit_url="of the commit", pr_url="of the request")

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert model.push_to_hub("tiny", token="secret") == "of the commit"
    assert calls == [("hub", "secret"), ("repo", "tiny", False), ("upload", None, False)]
    calls.clear()
    assert model.push_to_hub("tiny", revision="new", create_pr=True) == "of the request"
    assert calls == [
        ("hub", None), ("repo", "tiny", True), ("branch", "new"), ("upload", "new", True)
    ]  # fmt: skip


@pytest.mark.parametrize("library", ["bertopic", "keybert"])
def test_libraries_that_ask_for_their_own_embedder(model, library, monkeypatch):
    """With the class that both libraries have in the library's place; tests/clients asks them."""

    class BaseEmbedder:
        def __init__(self, embedding_model=None, word_embedding_model=None):
            self.embedding_model = embedding_model

        def embed(self, documents, verbose=False):
            return None

        def embed_words(self, words, verbose=False):
            return self.embed(words, verbose)

    backend = types.ModuleType(f"{library}.backend")
    backend.BaseEmbedder = BaseEmbedder
    monkeypatch.setitem(sys.modules, library, types.ModuleType(library))
    monkeypatch.setitem(sys.modules, f"{library}.backend", backend)
    monkeypatch.delitem(sys.modules, f"minifuse.integrations.{library}", raising=False)
    ours = importlib.import_module(f"minifuse.integrations.{library}")
    monkeypatch.delitem(sys.modules, f"minifuse.integrations.{library}")
    embedder = ours.MinifuseBackend(model, normalize_embeddings=True)
    assert isinstance(embedder, BaseEmbedder)
    assert embedder.embedding_model is model
    expected = model.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_array_equal(embedder.embed(np.array(TEXTS)), expected)
    np.testing.assert_array_equal(embedder.embed_words(TEXTS), expected)
