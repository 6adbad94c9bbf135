"""encode and its kin by sentence-transformers' names, meanings, return types and errors."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import sentence_transformers
import torch

import minifuse
from minifuse import SentenceTransformer, util

TEXTS = ["the sky is blue", "a lazy dog", "", "jumping dogs run over"]


@pytest.fixture(scope="module")
def theirs(tiny_folder):
    return sentence_transformers.SentenceTransformer(str(tiny_folder), device="cpu")


def test_every_argument_of_theirs_is_ours_with_the_same_default():
    for name in ("encode", "encode_query", "encode_document"):
        other = inspect.signature(
            getattr(sentence_transformers.SentenceTransformer, name)
        ).parameters
        ours = inspect.signature(SentenceTransformer.encode).parameters
        for key, parameter in other.items():
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD and key != "inputs":
                assert ours[key].default == parameter.default, key
    other = inspect.signature(sentence_transformers.SentenceTransformer.__init__).parameters
    ours = inspect.signature(SentenceTransformer.__init__).parameters
    for key, parameter in other.items():
        assert key in ours, key
        assert ours[key].default == parameter.default, key


def test_shapes_and_types(tiny):
    width = tiny.get_embedding_dimension()
    batch = tiny.encode(TEXTS)
    assert (batch.shape, batch.dtype) == ((4, width), np.float32)
    assert tiny.encode("a dog").shape == (width,)
    empty = tiny.encode([])
    assert (empty.shape, empty.dtype) == ((0, width), np.float32)


@pytest.mark.parametrize(
    "kind",
    [
        tuple,
        np.array,
        pd.Series,
        iter,
        lambda t: np.array(t, object),
        lambda t: dict.fromkeys(t).keys(),
    ],
)
def test_every_kind_of_batch(tiny, kind):
    np.testing.assert_array_equal(tiny.encode(kind(TEXTS)), tiny.encode(TEXTS))


def test_old_and_new_names(tiny, tiny_folder):
    np.testing.assert_array_equal(tiny.encode(sentences=TEXTS), tiny.encode(inputs=TEXTS))
    with pytest.raises(ValueError, match="both inputs and sentences"):
        tiny.encode(TEXTS, sentences=TEXTS)
    for key in ("tokenizer_kwargs", "processor_kwargs"):
        model = SentenceTransformer(tiny_folder, **{key: {"model_max_length": 8}})
        assert model.max_seq_length == 8
    assert tiny.get_sentence_embedding_dimension() == tiny.get_embedding_dimension()


def test_tensors(tiny):
    expected = tiny.encode(TEXTS)
    tensor = tiny.encode(TEXTS, convert_to_tensor=True)
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_array_equal(tensor.numpy(), expected)
    listed = tiny.encode(TEXTS, convert_to_numpy=False)
    assert isinstance(listed, list)
    assert torch.equal(torch.stack(listed), tensor)
    assert tiny.encode("a dog", convert_to_tensor=True).shape == (48,)


def test_without_torch_the_extra_is_named(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert tiny.encode(TEXTS).shape == (4, 48)
    for arguments in ({"convert_to_tensor": True}, {"convert_to_numpy": False}):
        with pytest.raises(ImportError, match=r"minifuse\[torch\]"):
            tiny.encode(TEXTS, **arguments)


def test_output_values(tiny, theirs):
    tokens = tiny.encode(TEXTS, output_value="token_embeddings")
    others = theirs.encode(TEXTS, output_value="token_embeddings")
    for ours, other in zip(tokens, others, strict=True):
        np.testing.assert_allclose(ours, other.numpy(), atol=1e-5)
    everything = tiny.encode(TEXTS, output_value=None)
    reference = theirs.encode(TEXTS, output_value=None)
    for ours, other in zip(everything, reference, strict=True):
        length = len(ours["input_ids"])
        assert ours["input_ids"].tolist() == other["input_ids"][:length].tolist()
        np.testing.assert_allclose(
            ours["sentence_embedding"], other["sentence_embedding"].numpy(), atol=1e-5
        )
    one = tiny.encode(TEXTS[0], output_value=None)
    assert set(one) >= {"input_ids", "attention_mask", "token_embeddings", "sentence_embedding"}
    assert isinstance(
        tiny.encode(TEXTS, output_value="token_embeddings", convert_to_tensor=True)[0], torch.Tensor
    )


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_precisions(tiny, theirs, precision):
    texts = TEXTS * 30 + ["a", "b", "run"]
    ours, other = tiny.encode(texts, precision=precision), theirs.encode(texts, precision=precision)
    assert ours.dtype == other.dtype
    assert ours.shape == other.shape
    # A value on the border of a bucket may fall to either side of it.
    if precision in ("int8", "uint8"):
        assert np.abs(ours.astype(int) - other.astype(int)).max() <= 1
    else:
        assert np.mean(ours != other) < 0.02
    floats = theirs.encode(texts)
    exact = sentence_transformers.util.quantize_embeddings(floats, precision)
    np.testing.assert_array_equal(util.quantize_embeddings(floats, precision), exact)


def test_normalise_and_truncate(tiny_folder, theirs):
    model = SentenceTransformer(tiny_folder, truncate_dim=10)
    assert model.encode(TEXTS).shape == (4, 10)
    assert model.get_embedding_dimension() == 10
    ours = model.encode(TEXTS, truncate_dim=20, normalize_embeddings=True)
    np.testing.assert_allclose(
        ours, theirs.encode(TEXTS, truncate_dim=20, normalize_embeddings=True), atol=2e-6
    )
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)
    with model.truncate_embeddings(5):
        assert model.encode("a").shape == (5,)
    assert model.encode("a").shape == (10,)


def test_prompts(tiny_folder):
    prompts = {"query": "dog ", "passage": "sky "}
    model = SentenceTransformer(tiny_folder, prompts=prompts)
    other = sentence_transformers.SentenceTransformer(
        str(tiny_folder), device="cpu", prompts=prompts
    )
    assert model.prompts == other.prompts
    for name in ("encode", "encode_query", "encode_document"):
        np.testing.assert_allclose(
            getattr(model, name)(TEXTS), getattr(other, name)(TEXTS), atol=2e-6
        )
    plain = model.encode(["dog a", "dog b"])
    np.testing.assert_array_equal(model.encode(["a", "b"], prompt_name="query"), plain)
    np.testing.assert_array_equal(model.encode(["a", "b"], prompt="dog "), plain)
    np.testing.assert_array_equal(
        model.encode(["a", "b"], prompt="dog ", prompt_name="passage"), plain
    )
    default = SentenceTransformer(tiny_folder, prompts=prompts, default_prompt_name="query")
    np.testing.assert_array_equal(default.encode(["a", "b"]), plain)
    with pytest.raises(ValueError, match="Default prompt name 'x' not found"):
        SentenceTransformer(tiny_folder, default_prompt_name="x")


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"prompt_name": "nope"}, ValueError, "Prompt name 'nope' not found"),
        ({"batch_size": 0}, ValueError, "batch_size must be a positive integer, got 0"),
        (
            {"batch_size": float("inf")},
            ValueError,
            "batch_size must be a positive integer, got inf",
        ),
        ({"batch_size": 2.5}, ValueError, "batch_size must be a positive integer, got 2.5"),
        ({"batch_size": "8"}, ValueError, "batch_size must be a positive integer, got '8'"),
        ({"precision": "int4"}, ValueError, "Precision 'int4' is not supported"),
        ({"nonsense": 1}, ValueError, "additional keyword arguments"),
        ({"output_value": "x"}, ValueError, "output_value is 'x'"),
        ({"device": "cuda"}, ValueError, "device is 'cuda', but the model is on cpu"),
        ({"device": ["cpu", "cuda:0"]}, ValueError, "device is a list"),
        ({"truncate_dim": 0}, ValueError, "truncate_dim is 0"),
        ({"num_threads": 0}, ValueError, "num_threads is 0"),
        ({"num_threads": 1.5}, TypeError, "num_threads is 1.5"),
        ({"truncation": "x"}, ValueError, "truncation is 'x'"),
        ({"processing_kwargs": {"image": {"a": 1}}}, ValueError, "processing_kwargs is {'image'"),
        ({"processing_kwargs": {"text": {"stride": 1}}}, ValueError, "wanted a length"),
        ({"processing_kwargs": {"text": {"max_length": 0}}}, ValueError, "max_length is 0"),
        ({"processing_kwargs": {"text": {"truncation": False}}}, ValueError, "wanted a length"),
    ],
)
def test_wrong_arguments(tiny, arguments, error, text):
    with pytest.raises(error, match=text):
        tiny.encode(TEXTS, **arguments)


@pytest.mark.parametrize(
    ("inputs", "error", "text"),
    [
        (None, TypeError, "inputs is None"),
        (b"bytes", TypeError, "inputs is a bytes"),
        (3, TypeError, "inputs is a int"),
        (["a", None], TypeError, r"sentences\[1\] is a NoneType"),
        (["a", b"b"], TypeError, r"sentences\[1\] is a bytes"),
        ([["a"]], TypeError, r"sentences\[0\] is a list"),
        (np.zeros(3), TypeError, "array of dtype float64"),
        (np.array([["a"]]), TypeError, "one dimension of strings"),
        (["a", "\ud800"], ValueError, "lone surrogate"),
        ("\ud800", ValueError, "lone surrogate"),
        (["a", float("nan")], TypeError, r"sentences\[1\] is a float"),
    ],
)
def test_wrong_inputs(tiny, inputs, error, text):
    with pytest.raises(error, match=text):
        tiny.encode(inputs)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"dtype": "int4"}, "dtype is 'int4', wanted one of float32, bfloat16, int8, auto"),
        ({"model_kwargs": {"torch_dtype": torch.float16}}, "dtype is 'float16'"),
        ({"model_kwargs": {"provider": "x"}}, r"model_kwargs\['provider'\]"),
        ({"backend": "onnx"}, "backend is 'onnx'"),
        ({"modules": []}, "modules"),
        ({"similarity_fn_name": "maxsim"}, "similarity_fn_name is 'maxsim'"),
        ({"num_threads": -1}, "num_threads is -1"),
        ({"processor_kwargs": {"truncation_side": "left"}}, "truncation_side"),
        ({"config_kwargs": {"hidden_size": 3}}, "hidden_size"),
    ],
)
def test_wrong_constructor_arguments(tiny_folder, arguments, text):
    with pytest.raises(ValueError, match=text):
        SentenceTransformer(tiny_folder, **arguments)


def test_harmless_constructor_arguments(tiny_folder):
    model = SentenceTransformer(
        tiny_folder,
        device="cpu",
        trust_remote_code=True,
        model_kwargs={
            "attn_implementation": "sdpa",
            "dtype": torch.float32,
            "low_cpu_mem_usage": True,
        },
        processor_kwargs={"padding_side": "left", "use_fast": True},
        backend="torch",
        local_files_only=True,
    )
    assert model.to("cpu").eval().cpu() is model
    assert (model.device, model.device.type, model.device.index) == ("cpu", "cpu", None)
    assert "dtype='float32'" in repr(model)
    with pytest.warns(FutureWarning, match="use_auth_token"):
        SentenceTransformer(tiny_folder, use_auth_token="x")


def test_info_and_refusing_to_cut(tiny):
    texts = ["a dog", "the sky is blue " * 40]
    embeddings, info = tiny.encode(texts, return_info=True)
    assert embeddings.shape == (2, 48)
    assert info.num_tokens.tolist() == [4, 32]
    assert info.truncated.tolist() == [False, True]
    with pytest.raises(ValueError, match=r"sentences\[1\] has more than max_seq_length=32"):
        tiny.encode(texts, truncation="error")
    vector, info = tiny.encode(texts[1], return_info=True)
    assert vector.shape == (48,)
    assert info.truncated.tolist() == [True]
    assert info.num_tokens.tolist() == [32]
    for alone in (texts[1], texts[1:]):  # one text goes a way of its own
        with pytest.raises(ValueError, match=r"sentences\[0\] has more than max_seq_length=32"):
            tiny.encode(alone, truncation="error")
    np.testing.assert_array_equal(tiny.encode(texts[0], truncation="error"), embeddings[0])


def test_encode_iter_is_lazy_and_equal(tiny):
    taken = []

    def source():
        for i in range(50):
            taken.append(i)
            yield f"dog {i}"

    stream = tiny.encode_iter(source(), window=8)
    first = next(stream)
    assert len(taken) == 8
    rest = list(stream)
    np.testing.assert_array_equal(
        np.stack([first, *rest]), tiny.encode([f"dog {i}" for i in range(50)])
    )
    with pytest.raises(ValueError, match="window is 0"):
        next(tiny.encode_iter(TEXTS, window=0))


def test_progress_bar(tiny, capsys):
    tiny.encode(TEXTS, show_progress_bar=True)
    assert "4/4" in capsys.readouterr().err
    tiny.encode(TEXTS)
    assert capsys.readouterr().err == ""


def test_max_seq_length(tiny_folder):
    model = SentenceTransformer(tiny_folder)
    model.max_seq_length = 5
    assert model.encode("a b c d e f", return_info=True)[1].num_tokens.tolist() == [5]
    for value, error in ((0, ValueError), (65, ValueError), ("x", TypeError)):
        with pytest.raises(error, match="max_seq_length"):
            model.max_seq_length = value


def test_preprocess(tiny, theirs):
    ours, other = tiny.preprocess(TEXTS), theirs.preprocess(TEXTS)
    for key in ("input_ids", "attention_mask", "token_type_ids"):
        np.testing.assert_array_equal(ours[key], other[key].numpy())
    assert tiny.preprocess([]) == {}
    np.testing.assert_array_equal(tiny.tokenize(TEXTS)["input_ids"], ours["input_ids"])


def test_tokenizer_can_be_replaced(tiny_folder, minilm_folder):
    model = SentenceTransformer(tiny_folder)
    before = model.encode(TEXTS)
    model.tokenizer = model.tokenizer
    np.testing.assert_array_equal(model.encode(TEXTS), before)
    from tokenizers import Tokenizer

    with pytest.raises(ValueError, match="different models"):
        model.tokenizer = Tokenizer.from_file(str(minilm_folder / "tokenizer.json"))
    np.testing.assert_array_equal(model.encode(TEXTS), before)


def test_pickle(tiny):
    again = pickle.loads(pickle.dumps(tiny))
    np.testing.assert_array_equal(again.encode(TEXTS), tiny.encode(TEXTS))


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarities(tiny_folder, rng, name):
    model = SentenceTransformer(tiny_folder, similarity_fn_name=name)
    other = sentence_transformers.SentenceTransformer(
        str(tiny_folder), device="cpu", similarity_fn_name=name
    )
    a, b = (rng.standard_normal((n, 16)).astype(np.float32) for n in (5, 5))
    for method in ("similarity", "similarity_pairwise"):
        ours, theirs = getattr(model, method)(a, b), getattr(other, method)(a, b)
        assert isinstance(ours, np.ndarray)
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)
        tensors = getattr(model, method)(torch.from_numpy(a), torch.from_numpy(b))
        assert isinstance(tensors, torch.Tensor)
    assert model.similarity(a[0], b).shape == (1, 5)


def test_semantic_search(rng):
    queries, corpus = (rng.standard_normal((n, 12)).astype(np.float32) for n in (7, 300))
    ours = util.semantic_search(queries, corpus, top_k=5, corpus_chunk_size=64, query_chunk_size=3)
    theirs = sentence_transformers.util.semantic_search(queries, corpus, top_k=5)
    for a, b in zip(ours, theirs, strict=True):
        assert [h["corpus_id"] for h in a] == [h["corpus_id"] for h in b]
        np.testing.assert_allclose([h["score"] for h in a], [h["score"] for h in b], atol=1e-6)
    ties = util.semantic_search(np.ones(3), np.ones((6, 3)), top_k=4, corpus_chunk_size=2)
    assert [hit["corpus_id"] for hit in ties[0]] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="top_k is 0"):
        util.semantic_search(queries, corpus, top_k=0)
    with pytest.raises(ValueError, match="12 dimensions"):
        util.semantic_search(queries, corpus[:, :5])


def test_util_errors_and_zero_vectors():
    assert util.cos_sim([1.0, 0.0], [[0.0, 0.0]]).tolist() == [[0.0]]
    np.testing.assert_allclose(util.normalize_embeddings([[3.0, 4.0]]), [[0.6, 0.8]])
    with pytest.raises(ValueError, match="wanted the same number"):
        util.pairwise_cos_sim(np.ones((2, 3)), np.ones((3, 3)))
    with pytest.raises(ValueError, match="one vector"):
        util.quantize_embeddings(np.ones((1, 8)), "int8")


def test_hundred_thousand_empty_strings(tiny):
    embeddings = tiny.encode([""] * 100_000)
    assert embeddings.shape == (100_000, 48)
    assert (embeddings == embeddings[0]).all()


def test_ten_megabytes(minilm):
    text = "The quick brown fox, 7 times. " * 350_000
    start = time.perf_counter()
    wanted = minilm.encode(text[:20_000])
    usual = time.perf_counter() - start  # seconds on the scalar build
    start = time.perf_counter()
    vector, info = minilm.encode(text, return_info=True)
    assert time.perf_counter() - start < 2 + 2 * usual
    assert info.truncated.all()
    np.testing.assert_array_equal(vector, wanted)


def test_nul_and_controls(tiny):
    np.testing.assert_array_equal(tiny.encode("a\0 dog"), tiny.encode("a dog"))


def test_ctrl_c_stops_within_a_second(minilm_folder):
    script = (
        "import signal, sys; from minifuse import SentenceTransformer\n"
        # A shell starts what it puts into the background with SIGINT ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "m = SentenceTransformer(sys.argv[1]); texts = ['the quick brown fox ' * 40] * 200000\n"
        "print('go', flush=True)\n"
        "m.encode(texts, num_threads=1)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(minilm_folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "go\n"
        time.sleep(2.0)
        start = time.perf_counter()
        process.send_signal(signal.SIGINT)
        try:
            _, errors = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()  # or leaving the block would wait for it
            raise
        assert time.perf_counter() - start < 1.5  # the process's own exit included
        assert "KeyboardInterrupt" in errors


def test_hardware(monkeypatch):
    about = minifuse.hardware.describe()
    assert about["isa"]["float32"] in about["supported_isas"]
    assert about["num_threads"] >= 1
    assert minifuse.hardware.peak(1, 0.05)["float32"] > 1e9
    for dtype in minifuse.hardware.DTYPES:
        assert minifuse.hardware.tile_rate(1, 0.05, dtype) > 1e8
    with pytest.raises(ValueError, match="num_threads is 0"):
        minifuse.hardware.peak(0)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert minifuse.hardware.describe()["num_threads"] == 1


@pytest.mark.parametrize("prompt", [None, "query: "])
def test_the_text_with_a_lone_surrogate_is_named(tiny, prompt):
    """By its place in the list and in the text, whatever is encoded with it and before it."""
    texts = ["a", "b", "c d e f g h \udc80 long", "much longer " * 9]
    with pytest.raises(ValueError, match=r"sentences\[2\] holds a lone surrogate at character 12"):
        tiny.encode(texts, prompt=prompt)
    with pytest.raises(ValueError, match=r"sentences\[1\] holds a lone surrogate at character 2"):
        tiny.encode([("a", "b"), ("long text", "xy\ud800")], prompt=prompt)
    with pytest.raises(ValueError, match="the prompt holds a lone surrogate"):
        tiny.encode(["a"], prompt="\ud800")


def test_affinity_limits_the_threads():
    script = "from minifuse import hardware; print(hardware.describe()['num_threads'])"
    cpu = min(os.sched_getaffinity(0))
    run = subprocess.run(
        [sys.executable, "-c", f"import os; os.sched_setaffinity(0, [{cpu}])\n{script}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "1"


@pytest.mark.parametrize("module", ["", "0_Transformer"])
def test_a_cached_name_opens_no_socket(tiny_folder, tmp_path, monkeypatch, module):
    """Wherever in the folder the first module lies."""
    repo = tmp_path / "models--me--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("a" * 40)
    folder = repo / "snapshots" / ("a" * 40)
    shutil.copytree(tiny_folder, folder)
    if module:
        (folder / module).mkdir()
        for path in list(folder.iterdir()):
            if path.is_file() and "modules" not in path.name:
                path.rename(folder / module / path.name)
        kinds = [("sentence_transformers.models.Transformer", module),
                 ("sentence_transformers.models.Normalize", "2_Normalize")]  # fmt: skip
        pooling = {"pooling_mode_mean_tokens": True}
        (folder / "1_Pooling").mkdir(exist_ok=True)
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
        kinds.insert(1, ("sentence_transformers.models.Pooling", "1_Pooling"))
        (folder / "modules.json").write_text(
            json.dumps([{"type": kind, "path": path} for kind, path in kinds])
        )
    monkeypatch.setattr("socket.socket", None)
    model = SentenceTransformer("me/tiny", cache_folder=tmp_path, local_files_only=True)
    assert model.encode(TEXTS).shape == (len(TEXTS), 48)
