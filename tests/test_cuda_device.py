"""SentenceTransformer(device="cuda"): the module _cuda with the emulator in place of a device."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import sysconfig

import numpy as np
import pytest

import minifuse
from cuda_library import ROOT
from minifuse import SentenceTransformer, hardware, inputs, sentence_transformer
from minifuse.cli import main
from minifuse.sample_text import SENTENCES
from tiny_model import write_tiny_model

SOURCES = ("bindings/cuda.cpp", "bindings/names.cpp", "cuda/emulator/device.cpp",
           "cuda/emulator/runtime.cpp", "encoder/batch.cpp", "encoder/cuda_encoder.cpp",
           "encoder/quantize.cpp", "encoder/weights.cpp")  # fmt: skip


@pytest.fixture(scope="module")
def emulated_module(tmp_path_factory):
    import pybind11

    path = tmp_path_factory.mktemp("cuda") / (
        "_cuda_emulated" + sysconfig.get_config_var("EXT_SUFFIX")
    )
    command = ["g++", "-std=c++20", "-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall",
               "-Wno-unknown-pragmas", "-DMINIFUSE_CUDA_MODULE=_cuda_emulated", "-ffp-contract=off", f"-I{ROOT / 'csrc'}",
               f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}",
               *(str(ROOT / "csrc" / source) for source in SOURCES), "-o", str(path)]  # fmt: skip
    subprocess.run(command, check=True)
    spec = importlib.util.spec_from_file_location("minifuse._cuda_emulated", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def device(emulated_module, monkeypatch):
    monkeypatch.setitem(sys.modules, "minifuse._cuda", emulated_module)
    monkeypatch.setattr(minifuse, "_cuda", emulated_module, raising=False)


def test_encode_agrees_with_the_cpu(device, cuda_folder):
    texts = [*SENTENCES[:9], ""]
    wanted = SentenceTransformer(cuda_folder).encode(texts)
    model = SentenceTransformer(cuda_folder, device="cuda")
    assert model.device == "cuda:0"
    assert model.device.type == "cuda"
    assert model.device.index == 0
    assert model.isa == "cuda"
    assert np.abs(model.encode(texts) - wanted).max() <= 1e-5
    for dtype, least in (("float16", 0.99999), ("bfloat16", 0.9999), ("auto", 0.9999)):
        fast = SentenceTransformer(cuda_folder, device="cuda:0", dtype=dtype)
        assert (fast.encode(texts) * wanted).sum(1).min() >= least
    rows = model.encode(texts[:2], output_value="token_embeddings")
    assert [len(one) for one in rows] == model.encode(texts[:2], return_info=True)[
        1
    ].num_tokens.tolist()


def test_one_text_and_no_text(device, cuda_folder):
    model = SentenceTransformer(cuda_folder, device="cuda")
    assert np.array_equal(model.encode(SENTENCES[0]), model.encode(SENTENCES[:3])[0])
    assert model.encode([]).shape == (0, 64)


def test_windows_are_tokenised_ahead_and_come_back_in_order(device, cuda_folder, monkeypatch):
    texts = list(SENTENCES[:9])
    model = SentenceTransformer(cuda_folder, device="cuda")
    whole = model.encode(texts)
    monkeypatch.setattr(inputs, "WINDOW_TEXTS", 2)
    monkeypatch.setattr(sentence_transformer, "_DEVICE_WINDOW", 1)
    assert np.array_equal(model.encode(texts), whole)
    with pytest.raises(ValueError, match=r"sentences\[\d\] has more than max_seq_length"):
        model.encode([*texts, "a dog " * 50], truncation="error")


def test_one_ahead_gives_all_in_order_and_passes_errors_on():
    def numbers():
        yield from range(5)
        raise KeyError("behind the last")

    seen = []
    with pytest.raises(KeyError, match="behind the last"):
        seen.extend(inputs.one_ahead(numbers()))
    assert seen == [0, 1, 2, 3, 4]
    assert list(inputs.one_ahead(iter([]))) == []


def test_devices_are_told(device, cuda_folder):
    assert hardware.describe()["devices"] == ["cpu", "cuda:0"]
    with pytest.raises(ValueError, match=r"there is no cuda:3, wanted cuda:0\.\.0"):
        SentenceTransformer(cuda_folder, device="cuda:3")
    model = SentenceTransformer(cuda_folder, device="cuda")
    assert model.to("cuda") is model
    with pytest.raises(ValueError, match="device is 'cpu', but the model is on cuda:0"):
        model.encode("a dog", device="cpu")
    with pytest.raises(
        ValueError, match="dtype is 'int8', wanted one of float32, bfloat16, float16"
    ):
        SentenceTransformer(cuda_folder, device="cuda", dtype="int8")


def test_what_its_kernels_do_not_take(device, tmp_path):
    narrow = write_tiny_model(tmp_path / "narrow")
    with pytest.raises(ValueError, match="heads of 16, wanted 32 or 64; use device='cpu'"):
        SentenceTransformer(narrow, device="cuda")


def test_a_build_without_the_part_says_how_to_get_it(cuda_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "minifuse._cuda", None)
    monkeypatch.delattr(minifuse, "_cuda", raising=False)
    with pytest.raises(ValueError, match="this build of minifuse has no CUDA part"):
        SentenceTransformer(cuda_folder, device="cuda")
    assert hardware.describe()["devices"] == ["cpu"]


@pytest.mark.parametrize("device", ["cuda:x", "tpu", "cpu:1"])
def test_unknown_devices(cuda_folder, device):
    with pytest.raises(ValueError, match="wanted 'cpu', 'cuda' or 'cuda:N'"):
        SentenceTransformer(cuda_folder, device=device)


def test_the_command_line_takes_a_device(device, cuda_folder, capsys):
    arguments = ["similarity", "a dog", "the sky", "--json", "--model", str(cuda_folder)]
    assert main(arguments) == 0
    wanted = json.loads(capsys.readouterr().out)["similarity"]
    assert main([*arguments, "--device", "cuda", "--dtype", "float16"]) == 0
    actual = json.loads(capsys.readouterr().out)["similarity"]
    np.testing.assert_allclose(actual, wanted, atol=2e-3)
    assert main([*arguments, "--device", "tpu"]) == 2
    assert "device is 'tpu', wanted 'cpu', 'cuda' or 'cuda:N'" in capsys.readouterr().err
