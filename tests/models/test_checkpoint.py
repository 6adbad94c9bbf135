"""Weights in several files and in torch.save's format: the same vectors, and nothing is executed."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minifuse import SentenceTransformer
from minifuse.files import torch_file
from minifuse.files.safetensors_file import SafetensorsFile
from minifuse.files.torch_file import TorchFile
from minifuse.models.checkpoint import open_checkpoint
from minifuse.models.quantization import quantize
from tiny_model import write_safetensors

TEXTS = ["the sky is blue.", "a dog"]


def tensors_of(folder):
    with SafetensorsFile(folder / "model.safetensors") as file:
        return {
            name: torch.from_numpy(file.read(name))
            for name in file.names()
            if "position_ids" not in name
        }


def without_weights(tiny_folder, folder):
    ignored = shutil.ignore_patterns("model.safetensors")
    shutil.copytree(tiny_folder, folder, ignore=ignored)
    return folder


@pytest.fixture
def torch_folder(tiny_folder, tmp_path):
    folder = without_weights(tiny_folder, tmp_path / "torch")
    torch.save(OrderedDict(tensors_of(tiny_folder)), folder / "pytorch_model.bin")
    return folder


def split(tensors):
    names = sorted(tensors)
    return [{name: tensors[name] for name in names[k::3]} for k in range(3)]


def write_index(folder, name, files):
    index = {
        "metadata": {},
        "weight_map": {key: file for file, keys in files.items() for key in keys},
    }
    (folder / f"{name}.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("kind", ["one file", "torch shards", "safetensors shards", "old module"])
def test_the_same_vectors_from_any_files(tiny, tiny_folder, tmp_path, kind):
    folder = without_weights(tiny_folder, tmp_path / "model")
    tensors = tensors_of(tiny_folder)
    parts = split(tensors)
    if kind == "one file":
        parameters = {name: torch.nn.Parameter(one) for name, one in tensors.items()}
        torch.save(parameters | {"position_ids": torch.arange(3)}, folder / "pytorch_model.bin")
    elif kind == "old module":
        torch.save({"state_dict": tensors, "epoch": 3}, folder / "pytorch_model.bin")
    else:
        is_torch = kind == "torch shards"
        name = "pytorch_model.bin" if is_torch else "model.safetensors"
        stem, suffix = name.split(".")
        files = {f"{stem}-{k + 1:05}-of-00003.{suffix}": part for k, part in enumerate(parts)}
        for file, part in files.items():
            if is_torch:
                torch.save(part, folder / file)
            else:
                write_safetensors(folder / file, {key: one.numpy() for key, one in part.items()})
        write_index(folder, name, files)
    expected = tiny.encode(TEXTS)
    model = SentenceTransformer(folder)
    np.testing.assert_array_equal(model.encode(TEXTS), expected)
    model.save(tmp_path / "saved")
    np.testing.assert_array_equal(SentenceTransformer(tmp_path / "saved").encode(TEXTS), expected)
    quantize(folder, tmp_path / "int8")
    assert not [*(tmp_path / "int8").glob("pytorch_model*"), *(tmp_path / "int8").glob("model-*")]
    np.testing.assert_array_equal(
        SentenceTransformer(tmp_path / "int8").encode(TEXTS),
        SentenceTransformer(tiny_folder, dtype="int8").encode(TEXTS),
    )


def test_safetensors_come_first(tiny, tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "model")
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(b"nonsense")
    model = SentenceTransformer(tmp_path / "model")
    np.testing.assert_array_equal(model.encode(TEXTS), tiny.encode(TEXTS))
    model.save(tmp_path / "saved")
    assert not (tmp_path / "saved" / "pytorch_model.bin").exists()


@pytest.mark.parametrize(
    "one",
    [
        torch.arange(12.0).reshape(3, 4),
        torch.arange(12.0).reshape(3, 4).T,
        torch.arange(12.0).reshape(3, 4)[1:, ::2],
        torch.arange(12.0).half(),
        torch.arange(12.0).bfloat16().reshape(2, 6)[:, 1:],
        torch.arange(12.0).double(),
        torch.tensor(2.5),
        torch.zeros(0, 4),
        torch.zeros(2, 1).expand(2, 5),
    ],
    ids=str,
)
def test_any_view_of_any_float(tmp_path, one):
    torch.save({"x": one, "n": torch.arange(3), "what": "a string"}, tmp_path / "file.bin")
    with TorchFile(tmp_path / "file.bin") as file:
        assert file.names() == ["x", "n"]
        array = file.read("x")
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        np.testing.assert_array_equal(array, one.float().numpy())
        with pytest.raises(ValueError, match="'n' has elements <i8, wanted floats"):
            file.read("n")


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "arguments"),
    [(os.system, ("touch evil",)), (eval, ("1",)), (getattr, ("a", "upper")), (torch.load, ("x",))],
)
def test_nothing_is_executed(tmp_path, monkeypatch, function, arguments):
    monkeypatch.chdir(tmp_path)
    torch.save({"x": torch.ones(2), "y": Evil(function, *arguments)}, tmp_path / "file.bin")
    with pytest.raises(ValueError, match="which is no part of a tensor"):
        TorchFile(tmp_path / "file.bin")
    assert not (tmp_path / "evil").exists()


def archive(path, text, **members):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", text)
        for name, data in members.items():
            file.writestr(f"archive/{name}", data)


def in_a_process(code, path):
    return subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_what_a_pickle_sets_is_gone_with_the_file(tmp_path):
    """It may set attributes of the functions that it is given: of those of one file."""
    text = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x06\x00\x00\x00markedK\x01sb."
    archive(tmp_path / "evil.bin", text)
    with pytest.raises(ValueError, match=r"evil\.bin: holds a function"):
        TorchFile(tmp_path / "evil.bin")
    assert not hasattr(torch_file._rebuild_tensor, "marked")


def test_a_memo_of_any_size_takes_no_memory(tmp_path):
    """The compiled unpickler makes room for every index up to the largest: 16 GB here."""
    archive(tmp_path / "memo.bin", b"\x80\x02}r\xff\xff\xff\x7f.")
    code = (
        "import resource, sys\n"
        "from minifuse.files.torch_file import TorchFile\n"
        "resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))\n"
        "print(TorchFile(sys.argv[1]).names())"
    )
    done = in_a_process(code, tmp_path / "memo.bin")
    assert done.stdout == "[]\n", done.stderr


NESTED = b"\x85" * 200_000  # tuples of one: (((...)))
DOUBLED = b"".join(b"q%cq%ch%ch%c\x86" % (2 * k, 2 * k, 2 * k, 2 * k) for k in range(60))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"})" + NESTED + b"K\x01s.", "key of type tuple"),
        (b"}()" + NESTED + b"K\x01u.", "key of type tuple"),
        (b"})" + DOUBLED + b"K\x01s.", "key of type tuple"),
        (b"ccollections\nOrderedDict\n(](()" + NESTED + b"K\x01lel\x85R.", "data.pkl"),
        (b"}\x8a\x09" + (2**61 - 1).to_bytes(9, "little") + b"K\x01s.", "no number that"),
        (b"}K\x01K\x01K\x02K\x02(K\x03u.", "has no value"),
        (b"(X\x07\x00\x00\x00storage)" + NESTED + b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ.",
         "a storage is damaged"),
    ],
)  # fmt: skip
def test_keys_whose_hash_takes_for_ever(tmp_path, text, message):
    """Python hashes nested tuples by recursion: a crash, or months within one call."""
    archive(tmp_path / "evil.bin", b"\x80\x02" + text)
    code = (
        "import sys\n"
        "from minifuse.files.torch_file import TorchFile\n"
        "try: TorchFile(sys.argv[1])\n"
        "except ValueError as error: print(error)"
    )
    done = in_a_process(code, tmp_path / "evil.bin")
    assert message in done.stdout, (done.returncode, done.stderr[-500:])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b"\x80\x02" + bytes(200)), "before 1.6"),
        (lambda path: archive(path, b"\x80\x02K\x01."), "holds a int, wanted a dictionary"),
        (lambda path: archive(path, b"garbage"), "data.pkl"),
        (lambda path: archive(path, b""), "data.pkl"),
        (lambda path: archive(path, b"\x80\x02}.", byteorder=b"big"), "byte order is b'big'"),
        (lambda path: zipfile.ZipFile(path, "w").close(), "no single data.pkl"),
    ],
)
def test_damaged_files_are_refused(tmp_path, damage, message):
    damage(tmp_path / "file.bin")
    with pytest.raises(ValueError, match=rf"file\.bin: .*{message}"):
        TorchFile(tmp_path / "file.bin")


def test_a_view_that_fills_the_memory_is_refused(tmp_path):
    torch.save({"x": torch.zeros(1).expand(1 << 40)}, tmp_path / "file.bin")
    with pytest.raises(ValueError, match="larger than its storage"):
        TorchFile(tmp_path / "file.bin")


def test_missing_and_compressed_storages_are_refused(tmp_path):
    torch.save({"x": torch.ones(4)}, tmp_path / "file.bin")
    with zipfile.ZipFile(tmp_path / "file.bin") as file:
        members = {name: file.read(name) for name in file.namelist()}
    (data,) = (name for name in members if "/data/" in name)
    for change, message in (
        ("gone", "truncated"),
        ("short", "truncated"),
        ("compressed", "compressed"),
    ):
        with zipfile.ZipFile(tmp_path / f"{change}.bin", "w") as file:
            for name, value in members.items():
                if name == data and change == "gone":
                    continue
                cut = value[:8] if name == data and change == "short" else value
                packing = zipfile.ZIP_DEFLATED if name == data and change == "compressed" else 0
                file.writestr(name, cut, compress_type=packing)
        with (
            TorchFile(tmp_path / f"{change}.bin") as file,
            pytest.raises(ValueError, match=message),
        ):
            file.read("x")


def expect_an_error_or_tensors(path):
    """Reading gives a ValueError that names the file, or goes well."""
    problem = None
    try:
        with TorchFile(path) as file:
            for name in file.names():
                file.read(name)
    except ValueError as error:
        problem = str(error)
    assert problem is None or str(path) in problem


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6))
def test_any_damage_is_an_error_or_harmless(tmp_path, changes):
    buffer = io.BytesIO()
    torch.save({"x": torch.ones(4), "y": torch.ones(2, 3).half()}, buffer)
    data = bytearray(buffer.getvalue())
    for place, value in changes:
        data[place % len(data)] = value
    (tmp_path / "file.bin").write_bytes(data)
    expect_an_error_or_tensors(tmp_path / "file.bin")


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=st.binary(max_size=60))
def test_any_pickle_is_an_error_or_a_dictionary(tmp_path, text):
    archive(tmp_path / "file.bin", b"\x80\x02" + text)
    expect_an_error_or_tensors(tmp_path / "file.bin")


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        ({"weight_map": {"x": "../model.safetensors"}}, ValueError, "files beside it"),
        ({"weight_map": {"x": "other.bin"}}, ValueError, "files beside it"),
        ({"weight_map": ["x"]}, ValueError, "files beside it"),
        ({}, ValueError, "files beside it"),
        ({"weight_map": {"x": "model-00009.safetensors"}}, FileNotFoundError, "model-00009.safetensors is missing"),
    ],
)  # fmt: skip
def test_indexes_that_are_refused(tmp_path, index, error, message):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    with pytest.raises(error, match=message):
        open_checkpoint(path)


def test_a_tensor_that_the_index_promises_is_missed(tmp_path):
    write_safetensors(tmp_path / "model-1.safetensors", {"x": np.ones(2, np.float32)})
    write_index(tmp_path, "model.safetensors", {"model-1.safetensors": ["x", "y"]})
    with open_checkpoint(tmp_path / "model.safetensors.index.json") as file:
        assert file.read("x").tolist() == [1, 1]
        with pytest.raises(
            ValueError, match=r"lacks 'y', which model\.safetensors\.index\.json says"
        ):
            file.read("y")


def test_pickles_of_every_protocol(tmp_path):
    """torch.save writes protocol 2 unless it is told another."""
    for protocol in range(2, 6):
        torch.save({"x": torch.ones(2, 3)}, tmp_path / "file.bin", pickle_protocol=protocol)
        with TorchFile(tmp_path / "file.bin") as file:
            assert file.read("x").tolist() == [[1] * 3] * 2


@pytest.mark.parametrize("size", [1 << 34, 1 << 62])
def test_room_is_made_for_no_more_than_there_is(tmp_path, size):
    """The instruction BYTEARRAY8 is followed by a size, for which Python makes room at once."""
    archive(tmp_path / "file.bin", b"\x80\x05\x96" + size.to_bytes(8, "little") + b".")
    with pytest.raises(ValueError, match="has the instruction 0x96, which torch"):
        TorchFile(tmp_path / "file.bin")
