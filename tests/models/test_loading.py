"""Every kind of folder that must load, against sentence-transformers, and every one that must not."""

from __future__ import annotations

import json

import numpy as np
import pytest
import sentence_transformers
import transformers
from safetensors.numpy import load_file

from minifuse import SentenceTransformer
from minifuse.files import safetensors_file
from minifuse.files.safetensors_file import SafetensorsFile
from minifuse.models.folder import read_model_folder
from minifuse.models.weights import new_encoder
from tiny_model import random_weights, write_safetensors, write_tiny_model

TEXTS = ["the sky is blue", "a lazy dog", "", "jumping dogs run over the dog. " * 9, "x"]


def against_theirs(folder, atol=2e-6, **kwargs):
    ours = SentenceTransformer(folder)
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    a, b = ours.encode(TEXTS, **kwargs), theirs.encode(TEXTS, **kwargs)
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, atol=atol)
    assert ours.get_embedding_dimension() == theirs.get_embedding_dimension()
    assert ours.max_seq_length == theirs.max_seq_length
    return ours


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"hidden_size": 32, "num_attention_heads": 2},
        {"hidden_size": 104, "num_attention_heads": 4, "intermediate_size": 37},  # heads of 26
        {"hidden_size": 256, "num_attention_heads": 2, "num_hidden_layers": 1},  # heads of 128
        {"num_hidden_layers": 0},
        {"hidden_act": "relu"},
        {"hidden_act": "gelu_new"},
        {"layer_norm_eps": 1e-5},
        {"prefix": "bert."},
        {"vocab_only": True},
        {"extra_modules": ()},
        {"extra_modules": ("Dense",)},
        {"extra_modules": ("Dense", "Normalize")},
    ],
    ids=str,
)
def test_folders_that_load(tmp_path, shape):
    against_theirs(write_tiny_model(tmp_path / "m", **shape))


@pytest.mark.parametrize(
    "mode",
    [
        "cls_token",
        "mean_tokens",
        "max_tokens",
        "mean_sqrt_len_tokens",
        "weightedmean_tokens",
        "lasttoken",
    ],
)
def test_every_pooling(tmp_path, mode):
    pooling = {"pooling_mode_mean_tokens": False, f"pooling_mode_{mode}": True}
    against_theirs(write_tiny_model(tmp_path / "m", pooling=pooling, extra_modules=()), atol=1e-5)


def test_concatenated_poolings_and_the_new_style(tmp_path):
    pooling = {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}
    model = against_theirs(
        write_tiny_model(tmp_path / "m", pooling=pooling, extra_modules=("Dense",))
    )
    assert model.get_embedding_dimension() == 20
    folder = write_tiny_model(tmp_path / "n", pooling={"pooling_mode": "cls"}, extra_modules=())
    against_theirs(folder)


def test_prompt_outside_the_pooling(tmp_path):
    folder = write_tiny_model(
        tmp_path / "m", pooling={"pooling_mode_weightedmean_tokens": True, "include_prompt": False}
    )
    against_theirs(folder, prompt="the dog: ")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_checkpoints(tmp_path, dtype):
    folder = write_tiny_model(tmp_path / "m", dtype=dtype)
    ours = SentenceTransformer(folder).encode(TEXTS)
    kwargs = {"model_kwargs": {"dtype": "float32"}}
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu", **kwargs)
    np.testing.assert_allclose(ours, theirs.encode(TEXTS), atol=2e-6)


def test_saved_folder_loads_in_both(tmp_path, tiny_folder):
    model = SentenceTransformer(tiny_folder, prompts={"query": "q: "}, similarity_fn_name="dot")
    model.max_seq_length = 16
    model.save_pretrained(tmp_path / "saved")
    for kind in (SentenceTransformer, sentence_transformers.SentenceTransformer):
        again = kind(str(tmp_path / "saved"), device="cpu")
        assert again.max_seq_length == 16
        assert again.prompts["query"] == "q: "
        assert again.similarity_fn_name == "dot"
        np.testing.assert_allclose(again.encode(TEXTS), model.encode(TEXTS), atol=2e-6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["saved"]


def test_a_plain_transformers_folder_gets_mean_pooling(tmp_path):
    folder = write_tiny_model(tmp_path / "m", extra_modules=())
    expected = SentenceTransformer(folder).encode(TEXTS)
    for name in ("modules.json", "sentence_bert_config.json"):
        (folder / name).unlink()
    model = SentenceTransformer(folder)
    assert model.max_seq_length == 64
    np.testing.assert_array_equal(model.encode(TEXTS[:3]), expected[:3])


def edit(path, **changes):
    value = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**value, **changes}))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'; minifuse runs bert"),
        ({"model_type": None}, "model_type is None"),
        ({"hidden_act": "quick_gelu"}, "hidden_act is 'quick_gelu', wanted one of gelu"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"is_decoder": True}, "a decoder"),
        ({"hidden_size": "48"}, "hidden_size is '48', wanted an integer"),
        ({"hidden_size": -48}, "hidden_size is -48"),
        ({"hidden_size": 0}, "hidden_size=0"),
        ({"hidden_size": 10**12}, "hidden_size=1000000000000, wanted 1..65536"),
        ({"num_attention_heads": 5}, "hidden_size=48 is not a multiple of num_attention_heads=5"),
        ({"num_attention_heads": 0}, "num_attention_heads=0"),
        ({"num_hidden_layers": 3}, "the checkpoint lacks 'encoder.layer.2"),
        ({"vocab_size": 10}, "the tokenizer has ids"),
        ({"intermediate_size": 81}, r"'encoder.layer.0.intermediate.dense.weight' has shape \[80, 48\], wanted \[81, 48\]"),
        ({"layer_norm_eps": "x"}, "layer_norm_eps is 'x'"),
        ({"layer_norm_eps": -1}, "layer_norm_eps=-1"),
    ],
)  # fmt: skip
def test_configs_that_are_refused(tmp_path, changes, text):
    folder = write_tiny_model(tmp_path / "m")
    edit(folder / "config.json", **changes)
    with pytest.raises(ValueError, match=text):
        SentenceTransformer(folder)


@pytest.mark.parametrize(
    ("name", "content", "error", "text"),
    [
        ("config.json", None, FileNotFoundError, "config.json is missing"),
        ("config.json", "{", ValueError, "config.json: not JSON"),
        ("config.json", "[]", ValueError, "wanted an object"),
        ("model.safetensors", None, FileNotFoundError, "model.safetensors is missing"),
        ("modules.json", "{}", ValueError, "wanted a list of objects"),
        ("modules.json", "[]", ValueError, "must begin with Transformer"),
        ("tokenizer.json", "{}", ValueError, "not a tokenizer"),
        ("1_Pooling/config.json", "{}", ValueError, "no pooling mode is switched on"),
        ("1_Pooling/config.json", '{"pooling_mode": "median"}', ValueError, "pooling 'median'"),
        ("1_Pooling/config.json", '{"pooling_mode_odd": true}', ValueError, "pooling_mode_odd"),
        (
            "sentence_bert_config.json",
            '{"max_seq_length": "x"}',
            ValueError,
            "max_seq_length is 'x'",
        ),
    ],
)
def test_files_that_are_missing_or_damaged(tmp_path, name, content, error, text):
    folder = write_tiny_model(tmp_path / "m")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(error, match=text):
        SentenceTransformer(folder)


def test_neither_tokenizer_file(tmp_path):
    folder = write_tiny_model(tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither tokenizer.json nor vocab.txt"):
        SentenceTransformer(folder)


def test_unknown_module_and_dense_activation(tmp_path):
    folder = write_tiny_model(tmp_path / "m", extra_modules=("LSTM",))
    with pytest.raises(ValueError, match="module 'LSTM' is not supported behind the pooling"):
        SentenceTransformer(folder)
    folder = write_tiny_model(tmp_path / "n", extra_modules=("Dense",))
    edit(folder / "2_Dense" / "config.json", activation_function="torch.nn.Mish")
    with pytest.raises(ValueError, match=r"Dense activation 'torch.nn.Mish'"):
        SentenceTransformer(folder)


def test_missing_and_misshapen_tensors_are_named(tmp_path):
    folder = write_tiny_model(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    weights = random_weights(config)
    del weights["encoder.layer.1.output.dense.bias"]
    write_safetensors(folder / "model.safetensors", weights)
    with pytest.raises(
        ValueError, match=r"lacks 'encoder.layer.1.output.dense.bias', shape \[48\]"
    ):
        SentenceTransformer(folder)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_table_comes_in_pieces(tmp_path, monkeypatch, dtype):
    folder = write_tiny_model(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    if dtype == "float16":
        tensors = {name: array.astype(np.float16) for name, array in tensors.items()}
    write_safetensors(folder / "model.safetensors", tensors, bfloat16=dtype == "bfloat16")
    expected = SentenceTransformer(folder).encode(TEXTS)
    monkeypatch.setattr(safetensors_file, "_PIECE_FLOATS", 100)  # two rows
    np.testing.assert_array_equal(SentenceTransformer(folder).encode(TEXTS), expected)
    name = "embeddings.word_embeddings.weight"
    for extra in (-1, 1):
        table = np.resize(tensors[name], (len(tensors[name]) + extra, tensors[name].shape[1]))
        write_safetensors(folder / "model.safetensors", tensors | {name: table})
        with pytest.raises(ValueError, match=rf"{name}' has shape \[{len(table)}, "):
            SentenceTransformer(folder)


def test_rows_of_a_slot_come_in_their_order(tiny_folder):
    encoder = new_encoder(read_model_folder(tiny_folder).description, "float32")
    table = np.zeros(encoder.weight_slots()["embeddings.word"], np.float32)
    encoder.set_weight_rows("embeddings.word", table[:3], 0)
    for rows, first, message in (
        (table[:3], 0, "3 rows of 'embeddings.word' from 0 on, wanted those from 3 on"),
        (table[:3], 4, "wanted those from 3 on"),
        (table[:3], -(2**63), "wanted those from 3 on"),
        (table, 3, f"{len(table)} in all"),
        (table[:3, :-1].copy(), 3, "has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            encoder.set_weight_rows("embeddings.word", rows, first)
    with pytest.raises(ValueError, match="came in part already"):
        encoder.set_weight("embeddings.word", table)
    matrix = next(name for name in encoder.weight_slots() if name.endswith("ffn_input.weight"))
    with pytest.raises(ValueError, match="a matrix of a layer, which comes whole"):
        encoder.set_weight_rows(matrix, np.zeros((1, 48), np.float32), 0)
    with pytest.raises(ValueError, match="no slot 'x'"):
        encoder.set_weight_rows("x", table, 0)
    encoder.set_weight_rows("embeddings.word", table[3:], 3)
    with pytest.raises(ValueError, match="given twice"):
        encoder.set_weight_rows("embeddings.word", table[3:], 3)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("sentence_bert_config.json", {"query_length": 8}, "query_length is 8, wanted None"),
        ("sentence_bert_config.json", {"query_expansion": {"length": 3}}, "query_expansion is"),
        ("sentence_bert_config.json", {"config_args": {"num_hidden_layers": 1}},
         "config_args holds 'num_hidden_layers'"),
        ("sentence_bert_config.json", {"processor_kwargs": {"add_bos": 1}}, "holds 'add_bos'"),
        ("sentence_bert_config.json", {"model_args": 3}, "model_args is 3, wanted an object"),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"stride": 3}}},
         "processing_kwargs"),
        ("sentence_bert_config.json", {"modality_config": {"message": {}}}, "chat template"),
        ("sentence_bert_config.json",
         {"modality_config": {"text": {"method_output_name": ["hidden_states", -2]}}},
         "wanted the last hidden states"),
        ("tokenizer_config.json", {"truncation_side": "left"}, "truncation_side is 'left'"),
        ("tokenizer_config.json", {"split_special_tokens": True}, "split_special_tokens is True"),
        ("tokenizer.json", {"truncation": {"direction": "Left", "max_length": 4,
                                           "strategy": "LongestFirst", "stride": 0}},
         "truncation.direction is 'Left'"),
        ("2_Normalize/config.json", {"module_input_name": "token_embeddings"},
         "module_input_name is 'token_embeddings'"),
    ],
)  # fmt: skip
def test_settings_that_would_change_a_vector_are_refused(tmp_path, file, values, message):
    path = write_tiny_model(tmp_path / "m") / file
    path.parent.mkdir(exist_ok=True)
    own = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(own | values))
    with pytest.raises(ValueError, match=message):
        SentenceTransformer(tmp_path / "m")


@pytest.mark.parametrize(
    "name", ["sentence_xlm-roberta_config.json", "sentence_camembert_config.json"]
)
def test_older_names_of_settings(tmp_path, name):
    folder = write_tiny_model(tmp_path / "m")
    (folder / "sentence_bert_config.json").write_text("{}")
    (folder / name).write_text(json.dumps({"max_seq_length": 5}))
    assert against_theirs(folder).max_seq_length == 5


def test_a_length_for_all_calls(tmp_path):
    folder = write_tiny_model(tmp_path / "m")
    settings = {"processing_kwargs": {"text": {"max_length": 6}}, "max_seq_length": 32}
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    ours = SentenceTransformer(folder)
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    np.testing.assert_allclose(ours.encode(TEXTS), theirs.encode(TEXTS), atol=2e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"do_lower_case": False},
        {"do_lower_case": True, "strip_accents": False},
        {"do_lower_case": True, "tokenize_chinese_chars": False},
    ],
)
def test_the_normalizer_is_what_tokenizer_config_says(tmp_path, settings):
    folder = write_tiny_model(tmp_path / "m")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "BertTokenizer"} | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    texts = ["The Sky IS blue", "th\u00e9 \u5929 dog", "A \u5929\u5730 b"]
    ours = SentenceTransformer(folder)
    for text in texts:
        assert ours.preprocess([text])["input_ids"][0].tolist() == theirs(text)["input_ids"]


def test_nan_in_any_token_is_in_the_highest(tmp_path):
    folder = write_tiny_model(tmp_path / "m", num_hidden_layers=0)
    config = json.loads((folder / "1_Pooling" / "config.json").read_text())
    config |= {"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    positions = tensors["embeddings.position_embeddings.weight"].copy()
    positions[3] = np.nan
    tensors["embeddings.position_embeddings.weight"] = positions
    write_safetensors(folder / "model.safetensors", tensors)
    with pytest.warns(RuntimeWarning, match="holds NaN"):
        model = SentenceTransformer(folder)
    first, second = model.encode(["sky", "the sky is blue"])
    assert np.isfinite(first).all()
    assert np.isnan(second).all()


def test_nan_weights_load_and_warn(tmp_path):
    folder = write_tiny_model(tmp_path / "m")
    weights = random_weights(json.loads((folder / "config.json").read_text()))
    weights["encoder.layer.0.output.dense.bias"][3] = np.nan
    write_safetensors(folder / "model.safetensors", weights)
    with pytest.warns(RuntimeWarning, match=r"'encoder.layer.0.output.dense.bias' holds NaN"):
        model = SentenceTransformer(folder)
    assert np.isnan(model.encode("a dog")).all()


def header_of(tensors):
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "too short"),
        (b"1234567", "too short"),
        ((2**63).to_bytes(8, "little") + b"{}", "truncated"),
        ((2).to_bytes(8, "little") + b"{]", "not JSON"),
        ((2).to_bytes(8, "little") + b"[]", "wanted an object"),
        (header_of({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}) + b"1234", "truncated"),
        (header_of({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}) + b"12345678", "takes 12 bytes"),
        (header_of({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}) + b"12345678", "not integers >= 0"),
        (header_of({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}) + b"12345678", "lies at 8..0"),
        (header_of({"a": {"dtype": "F32"}}), "lacks dtype, shape or data_offsets"),
        (header_of({"a": 3}), "lacks dtype, shape or data_offsets"),
        (header_of({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 0]}}), "takes"),
    ],
)  # fmt: skip
def test_lying_safetensors(tmp_path, content, text):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=text):
        SafetensorsFile(path)


def test_a_file_that_shrinks_after_loading_changes_nothing(tmp_path):
    folder = write_tiny_model(tmp_path / "m")
    model = SentenceTransformer(folder)
    before = model.encode(TEXTS)
    with open(folder / "model.safetensors", "r+b") as file:
        file.truncate(100)
    np.testing.assert_array_equal(model.encode(TEXTS), before)
    with pytest.raises(ValueError, match="truncated"):
        SentenceTransformer(folder)


def test_a_file_that_shrinks_while_open_is_noticed(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": np.zeros(100_000, np.float32)})
    with SafetensorsFile(path) as file:
        assert file.shape("a") == (100_000,)
        with open(path, "r+b") as other:
            other.truncate(1000)
        with pytest.raises(ValueError, match="shrunk"):
            file.read("a")


def test_an_error_while_a_tensor_is_copied_is_not_lost(tmp_path):
    """Ctrl-C there keeps a frame alive, and with it what lies in the mapped file."""
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": np.zeros(8, np.float32)})
    with pytest.raises(TypeError, match="no dtype"), SafetensorsFile(path) as file:
        file._copy("a", ("F32",), "no dtype")


def test_names_that_lead_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        SentenceTransformer(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="offline"):
        SentenceTransformer("nobody/nothing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError, match="is a file"):
        SentenceTransformer(tmp_path / "file")
    with pytest.raises(FileNotFoundError, match="no Hugging Face name"):
        SentenceTransformer("not a name!")
    with pytest.raises(ValueError, match="model_name_or_path is None"):
        SentenceTransformer()


def test_a_folder_opens_no_socket(tiny_folder, monkeypatch):
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    SentenceTransformer(tiny_folder).encode(TEXTS)
