"""The same bits alone, in any batch, order, number of threads, and on any instruction set."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from minifuse import SentenceTransformer, hardware
from minifuse.bench import sample_text
from minifuse.native import core


def same_bits(a, b):
    a, b = np.asarray(a).view(np.uint32), np.asarray(b).view(np.uint32)
    assert a.shape == b.shape
    different = np.argwhere(a != b)
    assert not len(different), f"{len(different)} differ, the first at {tuple(different[0])}"


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(5)
    count = 20 if core.isa() == "scalar" else 120  # it takes twenty times as long for each
    picked = [*list(sample_text.sentences(count)), "", "a", "word " * 400]
    return [picked[i] for i in rng.permutation(len(picked))]


@pytest.fixture(scope="module", params=hardware.DTYPES)
def model(request, minilm_folder):
    return SentenceTransformer(minilm_folder, dtype=request.param)


@pytest.fixture(scope="module")
def expected(model, texts):
    return model.encode(texts)


def test_alone_as_in_a_batch(model, texts, expected):
    for i in range(0, len(texts), 7):
        same_bits(model.encode(texts[i]), expected[i])


def test_any_order(model, texts, expected):
    order = np.random.default_rng(1).permutation(len(texts))
    same_bits(model.encode([texts[i] for i in order]), expected[order])


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_any_batch_size(model, texts, expected, batch_size):
    same_bits(model.encode(texts, batch_size=batch_size), expected)


@pytest.mark.parametrize("num_threads", [1, 2, 3, 7])
def test_any_number_of_threads(model, texts, expected, num_threads):
    same_bits(model.encode(texts, num_threads=num_threads), expected)
    for i in (0, len(texts) // 2, texts.index("word " * 400)):  # one text: the latency schedule
        same_bits(model.encode(texts[i], num_threads=num_threads), expected[i])


MULTIPLY_PAIRS = {"avx512_bf16", "amx"}  # of bfloat16


def rounds_in_its_own_way(dtype, *isas):
    return dtype == "bfloat16" and not MULTIPLY_PAIRS.isdisjoint(isas)


def kernels_of(isa, dtype):
    """The instruction set whose kernels another one uses for a dtype."""
    if dtype == "int8":
        return isa.replace("_bf16", "_vnni")
    if dtype == "bfloat16" and isa in MULTIPLY_PAIRS:
        return isa
    return "avx512" if isa == "amx" else isa.removesuffix("_vnni").removesuffix("_bf16")


def test_instruction_sets(model, minilm_folder, texts, expected):
    active = core.isa()
    try:
        for isa in core.supported_isas():
            core.select_isa(isa)
            other = SentenceTransformer(minilm_folder, dtype=model.dtype)
            assert other.isa == core.isa_of(model.dtype)
            if other.isa != model.isa and rounds_in_its_own_way(model.dtype, other.isa, model.isa):
                continue
            part = texts[:6] if isa == "scalar" else texts
            same_bits(other.encode(part), expected[: len(part)])
    finally:
        core.select_isa(active)


def test_forced_by_the_environment(model, minilm_folder, expected, texts):
    script = (
        "import sys, hashlib; from minifuse import SentenceTransformer, hardware\n"
        "m = SentenceTransformer(sys.argv[1], dtype=sys.argv[2])\n"
        "print(m.isa, hardware.describe()['isa'][m.dtype])\n"
        "print(hashlib.sha256(m.encode(sys.argv[3:]).tobytes()).hexdigest())"
    )
    wanted = hashlib.sha256(expected[:2].tobytes()).hexdigest()
    for isa in core.supported_isas():
        run = subprocess.run(
            [sys.executable, "-c", script, str(minilm_folder), model.dtype, *texts[:2]],
            env={**os.environ, "MINIFUSE_ISA": isa},
            capture_output=True,
            text=True,
            check=True,
        )
        name = kernels_of(isa, model.dtype)
        *names, digest = run.stdout.split()
        assert names == [name, name]
        if name == model.isa or not rounds_in_its_own_way(model.dtype, name, model.isa):
            assert digest == wanted


@pytest.mark.parametrize("isa", ["avx9000", "amx2", "AVX2 "])
def test_an_unknown_instruction_set_raises_with_the_list(isa):
    run = subprocess.run(
        [sys.executable, "-c", "import minifuse; minifuse.hardware.describe()"],
        env={**os.environ, "MINIFUSE_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert f"MINIFUSE_ISA={isa} is not known; supported here: " in run.stderr
    assert "scalar" in run.stderr


def test_eight_python_threads_at_once(model, texts, expected):
    failures = []

    def work(seed):
        try:
            order = np.random.default_rng(seed).permutation(len(texts))[: len(texts) // 3]
            for _ in range(3):
                same_bits(model.encode([texts[i] for i in order]), expected[order])
                same_bits(model.encode(texts[order[0]]), expected[order[0]])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def _child(model, texts, connection):
    connection.send(model.encode(texts))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_after_a_fork(model, texts, expected):
    model.encode(texts[:4])  # the parent has worker threads now
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(model, texts[:20], sender))
    child.start()
    assert receiver.poll(60), "the child hangs"
    same_bits(receiver.recv(), expected[:20])
    child.join(20)
    assert child.exitcode == 0
    same_bits(model.encode(texts[:20]), expected[:20])


@pytest.mark.slow
def test_memory_stays_flat_over_ten_thousand_encodes(tiny):
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for i in range(2000):
        tiny.encode(["the sky is blue"] * (i % 7 + 1))
    before = resident()
    for i in range(10_000):
        tiny.encode(["the sky is blue"] * (i % 7 + 1))
    assert resident() - before < 4 << 20
