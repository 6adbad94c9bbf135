"""No input that Python can give crashes the native core, hangs it or lets it read a wrong byte.

Each call that once ended the process runs in a process of its own, so that one failure is one failed
test. tests/native/test_sizes.cpp computes every buffer's size for the shapes of real models.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from minifuse import hardware, ops
from minifuse.models.description import ModelDescription
from minifuse.native import core
from tiny_model import write_tiny_model


def run(script: str, *arguments: object, timeout: float = 120) -> str:
    """The standard output of a Python process, which must end with status 0."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"status {done.returncode}: {done.stderr[-2000:]}"
    return done.stdout


RESIDENT = """
from pathlib import Path
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
"""


def resident_growth(script: str, *arguments: object) -> float:
    """The MiB that a script prints, which may call resident()."""
    if sys.platform != "linux":
        pytest.skip("resident memory is read from /proc, which only Linux has")
    if "MINIFUSE_SANITIZED" in os.environ:
        pytest.skip("the sanitizer keeps freed memory for a while, to see late uses of it")
    return float(run(RESIDENT + script, *arguments))


SAME_BITS = """
import sys
import numpy as np
from minifuse import SentenceTransformer
from minifuse.native import core
folder, dtype, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
model = SentenceTransformer(folder, dtype=dtype, num_threads=threads)
words = "word " * 512
pairs = ((248, 148), (101, 100), (254, 128), (214, 128), (152, 151), (203, 202, 30))
rounds = 3
if core.isa() == "scalar":  # it would take minutes
    pairs, rounds = pairs[:2], 1
for lengths in pairs:
    texts = [words[: 5 * length] for length in lengths]
    for _ in range(rounds):
        together = model.encode(texts)
        assert np.isfinite(together).all()
        for text, vector in zip(texts, together, strict=True):
            assert np.array_equal(model.encode(text), vector), lengths
"""


@pytest.mark.parametrize("num_threads", [1, 2, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_long_pairs_keep_their_bits(minilm_folder, dtype, num_threads):
    run(SAME_BITS, minilm_folder, dtype, num_threads)


@pytest.mark.parametrize("isa", ["amx", "avx512_bf16", "avx512_vnni", "avx2_vnni", "avx2"])
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_long_pairs_keep_their_bits_on_every_set(minilm_folder, dtype, isa, monkeypatch):
    if isa not in core.supported_isas():
        pytest.skip(f"this CPU lacks {isa}: it has {', '.join(core.supported_isas())}")
    monkeypatch.setenv("MINIFUSE_ISA", isa)
    run(SAME_BITS, minilm_folder, dtype, 2)


@pytest.mark.parametrize(("hidden", "lengths"), [(768, (103, 102)), (512, (154, 153))])
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_wider_models_on_one_thread(tmp_path, hidden, lengths, dtype):
    folder = write_tiny_model(
        tmp_path / "wide",
        hidden_size=hidden,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
        num_hidden_layers=1,
        max_position_embeddings=512,
    )
    script = """
import sys
import numpy as np
from minifuse import SentenceTransformer
model = SentenceTransformer(sys.argv[1], dtype=sys.argv[2], num_threads=1)
texts = ["a " * (int(n) - 2) for n in sys.argv[3:]]
together = model.encode(texts)
assert np.isfinite(together).all()
for text, vector in zip(texts, together, strict=True):
    assert np.array_equal(model.encode(text), vector)
"""
    run(script, folder, dtype, *lengths)


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("rows", [0, 1, 200])
@pytest.mark.parametrize(("n", "k"), [(0, 0), (0, 5), (5, 0), (1, 1)])
def test_linear_layers_of_no_width(dtype, rows, n, k):
    x, w = zeros(rows, k), ops.pack_linear(zeros(n, k), dtype=dtype)
    bias = np.arange(n, dtype=np.float32)
    y = ops.linear(x, w, bias)
    assert y.shape == (rows, n)
    np.testing.assert_array_equal(y, np.broadcast_to(bias, (rows, n)))
    assert ops.linear_residual_layer_norm(x, w, bias, zeros(rows, n), zeros(n), zeros(n)).shape == (
        rows,
        n,
    )
    assert ops.gelu_ffn(x, w, bias, zeros(3, n), zeros(3)).shape == (rows, 3)


HUGE = 1 << 40


def test_empty_arrays_with_huge_sides_answer_at_once():
    start = time.perf_counter()
    with pytest.raises(ValueError, match="at most"):
        ops.pack_linear(zeros(HUGE, 0))
    with pytest.raises(ValueError, match="at most"):
        ops.pack_linear(zeros(0, HUGE), dtype="int8")
    assert ops.linear(zeros(HUGE, 0), zeros(0, 0)).shape == (HUGE, 0)
    assert ops.layer_norm(zeros(HUGE, 0), zeros(0), zeros(0)).shape == (HUGE, 0)
    assert ops.masked_mean_pool(zeros(0, HUGE, 4), np.zeros((0, HUGE), bool)).shape == (0, 4)
    assert ops.attention(
        zeros(0, HUGE, 3, 8), zeros(0, HUGE, 3, 8), zeros(0, HUGE, 3, 8)
    ).shape == (0, HUGE, 3, 8)
    assert core.l2_normalize(zeros(HUGE, 0)).shape == (HUGE, 0)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("function", ["peak", "tile_rate"])
def test_a_measurement_of_no_time(function):
    script = f"from minifuse import hardware; print(hardware.{function}(1, 1e-9))"
    assert run(script).strip()
    with pytest.raises(ValueError, match="seconds"):
        getattr(hardware, function)(1, 0)


UNFINISHED = """
import numpy as np
from minifuse.models.description import ModelDescription
from minifuse.native import core
description = ModelDescription(vocab_size=10, max_position_embeddings=8, hidden_size=8,
    num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, layer_norm_eps=1e-12,
    activation="gelu")
encoder = core.Encoder(description, "{dtype}")
ids, cu_seqlens = np.array([1, 2], np.int32), np.array([0, 2], np.int32)
calls = [
    lambda: encoder.encode(ids, cu_seqlens, poolings=["mean"], pool_from=0, batch_size=1,
        num_threads=1),
    lambda: encoder.profile(ids, cu_seqlens, batch_size=1, num_threads=1),
    lambda: encoder.hidden_states(ids, cu_seqlens, num_threads=1),
    lambda: encoder.token_embeddings(ids, cu_seqlens, batch_size=1, num_threads=1),
    lambda: encoder.matrix_inputs(ids, cu_seqlens, num_threads=1),
]
for call in calls:
    try:
        call()
    except ValueError as error:
        print(error)
"""


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_an_encoder_without_weights_refuses(dtype):
    lines = run(UNFINISHED.replace("{dtype}", dtype)).splitlines()
    assert len(lines) == 5
    assert all("finish_weights" in line for line in lines)


def test_arrays_that_another_thread_changes(tiny):
    """The array that is checked and the array that is read are one copy."""
    encoder = tiny.pipeline.encoder
    ids, cu_seqlens = np.full(40, 7, np.int32), np.array([0, 20, 40], np.int32)
    expected = encoder.encode(
        ids, cu_seqlens, poolings=["mean"], pool_from=0, batch_size=8, num_threads=1
    )
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            cu_seqlens[:] = (0, 1 << 20, 1 << 21)
            ids[:] = 1 << 30
            ids[:] = 7
            cu_seqlens[:] = (0, 20, 40)

    changer = threading.Thread(target=change)
    changer.start()
    try:
        for _ in range(2000):
            try:
                vectors = encoder.encode(
                    ids, cu_seqlens, poolings=["mean"], pool_from=0, batch_size=8, num_threads=2
                )
            except ValueError:
                continue
            np.testing.assert_array_equal(vectors, expected)
    finally:
        stop.set()
        changer.join()


def test_codes_with_a_stride_that_kernels_cannot_read():
    codes, scale = np.zeros((40, 5), np.uint8), zeros(40, 2)
    with pytest.raises(ValueError, match="stride is 5, wanted a multiple of 4"):
        core.search([(codes, scale)], "int8", 5, 5, zeros(20, 5), 1, 1)


def test_search_memory_does_not_grow_with_k():
    """1,024 queries for all of 200,000 vectors would have taken 3.3 GB a thread at once."""
    script = """
import resource
import numpy as np
from minifuse.models.description import ModelDescription
from minifuse.native import core
vectors = np.ones((200_000, 1), np.float32)
queries = np.ones((64, 1), np.float32)
core.search([(vectors, None)], "float32", 1, 1, queries[:1], 1, 2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
scores, ids = core.search([(vectors, None)], "float32", 1, 1, queries, 200_000, 2)
results = (scores.nbytes + ids.nbytes) / 1024
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before - results) / 1024)
"""
    assert float(run(script)) < 150  # MiB


def test_scratch_memory_is_given_back():
    script = """
import numpy as np
from minifuse import ops
q = np.ones((1, 1, 4, 64), np.float32)
ops.attention(q, q, q)
before = resident()
k = np.ones((1, 1, 100_000, 64), np.float32)
ops.attention(q, k, k)
del k
print(resident() - before)
"""
    assert resident_growth(script) < 8  # MiB


def test_callers_that_wait_for_their_turn_hold_no_memory(tmp_path):
    # One sentence of 250 tokens is shared by two threads, in a workspace of 4 MiB. Sixteen callers
    # take turns, so that a few workspaces serve them all; every one that waited once held its own.
    folder = write_tiny_model(
        tmp_path / "model",
        hidden_size=384,
        num_attention_heads=12,
        intermediate_size=1536,
        max_position_embeddings=512,
    )
    script = """
import sys, threading
from minifuse import SentenceTransformer
model = SentenceTransformer(sys.argv[1], num_threads=2)
model.max_seq_length = 250
text = "a dog " * 300
model.encode(text)
before = resident()
barrier = threading.Barrier(16)
def work():
    for _ in range(3):
        barrier.wait()
        model.encode(text)
threads = [threading.Thread(target=work) for _ in range(16)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(resident() - before)
"""
    assert resident_growth(script, folder) < 24  # MiB


def test_views_without_strides_have_any_length():
    script = """
import numpy as np
from minifuse import ops
for length in (376464164769582688, 1 << 40, (1 << 62) // 16):
    k = np.broadcast_to(np.zeros((1, 1, 1, 2), "f4"), (1, 1, length, 2))[..., :1]
    for call in (lambda: ops.attention(np.zeros((1, 1, 1, 1), "f4"), k, k),
                 lambda: ops.attention(k[:, :, :1], k, k)):
        try:
            call()
        except (ValueError, MemoryError) as error:
            print(type(error).__name__)
"""
    assert len(run(script).split()) == 6


def test_training_functions_on_nothing():
    numbers = np.zeros(1, np.int64)
    offsets = np.zeros(2, np.int32)
    qkv = zeros(0, 3 * HUGE)
    arguments = {"num_heads": HUGE, "dropout": 0.0, "seed": 1}
    assert core.attention_forward(qkv, offsets, numbers, **arguments).shape == (0, HUGE)
    out = zeros(0, HUGE)
    assert core.attention_backward(qkv, out, out, offsets, numbers, **arguments).shape == qkv.shape
    with pytest.raises(ValueError, match="b has"):
        core.contrastive_loss(zeros(0, 0), zeros(1 << 38, 0), 1.0, 1.0)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_weight_that_was_refused_has_not_come(dtype):
    description = ModelDescription(
        vocab_size=10, max_position_embeddings=8, hidden_size=8, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=8, layer_norm_eps=1e-12, activation="gelu",
    )  # fmt: skip
    encoder = core.Encoder(description, dtype)
    name = "layers.0.ffn_input.weight"
    if dtype == "int8":
        codes, ones = np.full((8, 8), -128, np.int8), np.ones(8, "f4")
        with pytest.raises(ValueError, match="beyond what int8 kernels"):
            encoder.set_quantized_weight(name, codes, ones[None], ones)
        encoder.set_quantized_weight(name, np.zeros_like(codes), ones[None], ones)
    else:
        with pytest.raises(ValueError, match="shape"):
            encoder.set_weight(name, zeros(3, 3))
        encoder.set_weight(name, zeros(8, 8))
    with pytest.raises(ValueError, match="is missing"):
        encoder.finish_weights()


def test_absurd_numbers_of_threads_in_measurements(tiny):
    script = """
import numpy as np
from minifuse.models.description import ModelDescription
from minifuse.native import core
core.measure_peak("float32", 2**31 - 1, 1e-3)
core.measure_tile("float32", 2**31 - 1, 1e-3)
"""
    run(script)
    lengths = np.arange(0, 400, 4, dtype=np.int32)
    assert tiny.pipeline.encoder.plan(lengths, batch_size=1, num_threads=2**31 - 1)
