"""minifuse bench --device: on the emulator, with CPU tensors in the place of a device's."""

from __future__ import annotations

import json

import numpy as np
import pytest

from minifuse import SentenceTransformer, native
from minifuse.bench import device as bench_device
from minifuse.bench import ops as op_cases
from minifuse.bench.sample_text import SENTENCES
from minifuse.cli import main
from minifuse.native import cuda_ops
from minifuse.native.devices import Device

torch = pytest.importorskip("torch", reason="compares with PyTorch")


@pytest.fixture
def device(cuda_device, monkeypatch):
    monkeypatch.setattr(bench_device, "synchronize", lambda: None)
    monkeypatch.setattr(bench_device, "_PEAK_SIZE", 64)
    monkeypatch.setattr(bench_device, "_QUERY_ROUNDS", 1)


def test_encodes(device, cuda_folder, tmp_path, capsys):
    """Ours in three dtypes with their accuracy; what PyTorch could not do is named."""
    lines, written = tmp_path / "lines.txt", tmp_path / "bench.json"
    lines.write_text("\n".join(SENTENCES[:5]))
    command = ["bench", "--device", "cuda", "--rounds", "1", "--model", str(cuda_folder),
               "--json", str(written), f"x={lines}"]  # fmt: skip
    assert main(command) == 0
    result = json.loads(written.read_text())
    rows = result["workloads"]["x"]["rows"]
    assert [(row["engine"], row["dtype"]) for row in rows] == [
        ("minifuse", dtype) for dtype in ("float32", "bfloat16", "float16")
    ]
    for row in rows:
        assert row["cosine_min"] >= 0.9999
        assert row["encode_tokens_per_second"] > 0
        assert row["encoder_tokens_per_second"] > 0
    assert [row["dtype"] for row in result["query"]] == ["float32", "bfloat16", "float16"]
    assert set(result["absent"]) >= {"peak, float32", "sentence-transformers", "torch.compile"}
    assert result["machine"]["device"] == "emulator"
    out = capsys.readouterr().out
    assert "encoder tokens/s" in out
    assert "sentence-transformers: " in out


def test_a_peer_gives_our_vectors(device, cuda_folder):
    pytest.importorskip("sentence_transformers", reason="is the peer")
    texts = list(SENTENCES[:5])
    run = bench_device._peer(cuda_folder, "cpu", texts, "sentence-transformers")
    run.encoder()
    assert run.batch_size in bench_device.PEER_BATCH_SIZES
    wanted = SentenceTransformer(cuda_folder).encode(texts, normalize_embeddings=True)
    assert (run.encode() * wanted).sum(1).min() >= 0.9999


def test_ops(device, monkeypatch):
    """Every case runs on tensors, ours and PyTorch's agreeing."""
    monkeypatch.setattr(native, "is_cuda_tensor", native.is_tensor)
    monkeypatch.setattr(cuda_ops, "_current_stream", lambda device: 0)
    monkeypatch.setattr(bench_device, "resolve_device", lambda name: Device("cpu"))
    for name, size in (("_HIDDEN", 64), ("_INNER", 64), ("_HEADS", 2)):
        monkeypatch.setattr(op_cases, name, size)
    cuda_ops._ops.cache_clear()
    rows = bench_device.bench_device_ops("cuda", "float16", 1, (16,), compiles=False)
    assert [row["op"] for row in rows] == [
        case.name for case in op_cases.op_cases(16, placement=placement())
    ]
    for row in rows:
        assert row["compiled_us"] is None
        assert row["speedup"] == row["torch_us"] / row["ours_us"]
    for case in op_cases.op_cases(16, placement=placement()):
        if "attention" not in case.name:  # whose rows PyTorch pads
            np.testing.assert_allclose(case.packed(), case.torch(), atol=5e-3)
    cuda_ops._ops.cache_clear()


def placement():
    tensor = torch.from_numpy
    convert = lambda a: tensor(a).half() if a.dtype == np.float32 else tensor(a)  # noqa: E731
    return op_cases.Placement(ours=convert, theirs=convert)


def test_what_does_not_go_together(capsys):
    assert main(["bench", "--device", "cuda", "--profile"]) == 2
    assert "--device goes with --ops, --rounds and --json only" in capsys.readouterr().err
