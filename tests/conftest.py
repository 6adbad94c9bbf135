"""Fixtures: the instruction sets, the data folder, a tiny random model and the real one."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import numpy as np
import pytest

import minifuse
from cuda_library import build_emulated, build_emulated_module
from minifuse import SentenceTransformer
from minifuse.models.resolve import resolve_model
from minifuse.native import core
from second_model import fetch_graph, write_second_model
from tiny_model import write_tiny_model

ROOT = Path(__file__).parent.parent
MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def _forced(name, dtype):
    """Force an instruction set, prove that it multiplies this dtype, and put the old one back."""
    if name not in core.supported_isas():
        # No test can add the hardware; tests/native/emulate_vnni.h stands in for VNNI alone, and the
        # native tests run the source of avx512_bf16 and of amx on plain floats.
        assert name != "scalar", "any CPU runs the scalar build"
        has = ", ".join(core.supported_isas())
        pytest.skip(f"executes {name} instructions, which this CPU lacks: it has {has}")
    before = core.isa()
    core.select_isa(name)
    assert core.isa() == core.isa_of(dtype) == name
    yield name
    core.select_isa(before)


@pytest.fixture(params=["scalar", "avx2", "avx512"])
def isa(request):
    """Each instruction set with float32 kernels of its own in turn."""
    yield from _forced(request.param, "float32")


@pytest.fixture(params=["scalar", "avx2", "avx2_vnni", "avx512", "avx512_vnni", "amx"])
def int8_isa(request):
    """Each instruction set with int8 kernels of its own in turn."""
    yield from _forced(request.param, "int8")


@pytest.fixture(params=["avx512_bf16", "amx"])
def bfloat16_dot_isa(request):
    """Each instruction set that multiplies bfloat16 in pairs in turn."""
    yield from _forced(request.param, "bfloat16")


@pytest.fixture(scope="session")
def cuda_library(tmp_path_factory) -> ctypes.CDLL:
    """The CUDA kernels and their encoder on the emulator, or the library of a real device.

    tools/mutate_cuda.py plants faults in the sources and names objects that have none;
    tools/gpu_check.py names a library.
    """
    if path := os.environ.get("MINIFUSE_CUDA_LIBRARY"):
        return ctypes.CDLL(path)
    sources = Path(os.environ.get("MINIFUSE_CUDA_SOURCES", ROOT))
    known = sorted(Path(os.environ.get("MINIFUSE_CUDA_OBJECTS", "/nowhere")).glob("*.o"))
    output = tmp_path_factory.mktemp("cuda") / "emulated.so"
    return ctypes.CDLL(str(build_emulated(sources, output, known)))


@pytest.fixture(scope="session")
def emulated_module(tmp_path_factory):
    """The module minifuse._cuda with the emulator in place of a device."""
    return build_emulated_module(tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def cuda_device(emulated_module, monkeypatch):
    """The emulator is the machine's device."""
    monkeypatch.setitem(sys.modules, "minifuse._cuda", emulated_module)
    monkeypatch.setattr(minifuse, "_cuda", emulated_module, raising=False)


@pytest.fixture(scope="session")
def cuda_folder(tmp_path_factory) -> Path:
    """A tiny model whose heads and widths a device's kernels take."""
    return write_tiny_model(
        tmp_path_factory.mktemp("cuda") / "model",
        hidden_size=64,
        num_attention_heads=2,
        intermediate_size=128,
    )


@pytest.fixture(scope="session")
def is_emulated() -> bool:
    """Return whether cuda_library runs on the emulator."""
    return "MINIFUSE_CUDA_LIBRARY" not in os.environ


@pytest.fixture
def rng():
    return np.random.default_rng(20261124)


@pytest.fixture(scope="session")
def data() -> Path:
    folder = Path(os.environ.get("MINIFUSE_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(
            "the public evaluation sets may not be redistributed, so the repository has none; "
            f"there are none at {folder} (set MINIFUSE_DATA)"
        )
    return folder


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    try:
        return resolve_model(MINILM)
    except FileNotFoundError as error:
        pytest.skip(f"no cached copy of the 90 MB model, and no network to fetch it: {error}")


@pytest.fixture(scope="session")
def minilm(minilm_folder) -> SentenceTransformer:
    return SentenceTransformer(minilm_folder)


@pytest.fixture(scope="session")
def second_graph() -> Path:
    try:
        return fetch_graph()
    except FileNotFoundError as error:
        pytest.skip(f"no cached copy of the 69 MB model, and no network to fetch it: {error}")


@pytest.fixture(scope="session")
def second_folder(second_graph, minilm_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("second") / "paraphrase-MiniLM-L3-v2"
    return write_second_model(folder, second_graph, minilm_folder)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny(tiny_folder) -> SentenceTransformer:
    return SentenceTransformer(tiny_folder)
