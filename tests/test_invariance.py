"""The same bits alone, in any batch, order, number of threads, and on any instruction set."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from minifuse import SentenceTransformer, sample_text
from minifuse.native import core


def same_bits(a, b):
    a, b = np.asarray(a).view(np.uint32), np.asarray(b).view(np.uint32)
    assert a.shape == b.shape
    different = np.argwhere(a != b)
    assert not len(different), f"{len(different)} differ, the first at {tuple(different[0])}"


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(5)
    picked = [*list(sample_text.sentences(120)), "", "a", "word " * 400]
    return [picked[i] for i in rng.permutation(len(picked))]


@pytest.fixture(scope="module")
def expected(minilm, texts):
    return minilm.encode(texts)


def test_alone_as_in_a_batch(minilm, texts, expected):
    for i in range(0, len(texts), 7):
        same_bits(minilm.encode(texts[i]), expected[i])


def test_any_order(minilm, texts, expected):
    order = np.random.default_rng(1).permutation(len(texts))
    same_bits(minilm.encode([texts[i] for i in order]), expected[order])


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_any_batch_size(minilm, texts, expected, batch_size):
    same_bits(minilm.encode(texts, batch_size=batch_size), expected)


@pytest.mark.parametrize("num_threads", [1, 2, 3, 7])
def test_any_number_of_threads(minilm, texts, expected, num_threads):
    same_bits(minilm.encode(texts, num_threads=num_threads), expected)
    for i in (0, 50, texts.index("word " * 400)):  # one text: the latency schedule
        same_bits(minilm.encode(texts[i], num_threads=num_threads), expected[i])


def test_instruction_sets(minilm_folder, texts, expected):
    active = core.isa()
    try:
        for isa in core.supported_isas():
            core.select_isa(isa)
            model = SentenceTransformer(minilm_folder)
            assert model.isa == isa
            part = texts[:6] if isa == "scalar" else texts
            same_bits(model.encode(part), expected[: len(part)])
    finally:
        core.select_isa(active)


def test_forced_by_the_environment(minilm_folder, expected, texts):
    script = (
        "import sys, hashlib; from minifuse import SentenceTransformer, hardware\n"
        "m = SentenceTransformer(sys.argv[1]); print(m.isa, hardware.describe()['isa']['float32'])\n"
        "print(hashlib.sha256(m.encode(sys.argv[2:]).tobytes()).hexdigest())"
    )
    import hashlib

    wanted = hashlib.sha256(expected[:2].tobytes()).hexdigest()
    for isa in core.supported_isas():
        run = subprocess.run(
            [sys.executable, "-c", script, str(minilm_folder), *texts[:2]],
            env={**os.environ, "MINIFUSE_ISA": isa},
            capture_output=True,
            text=True,
            check=True,
        )
        assert run.stdout.split() == [isa, isa, wanted]


@pytest.mark.parametrize("isa", ["avx9000", "amx", "AVX2 "])
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


def test_eight_python_threads_at_once(minilm, texts, expected):
    failures = []

    def work(seed):
        try:
            order = np.random.default_rng(seed).permutation(len(texts))[:40]
            for _ in range(3):
                same_bits(minilm.encode([texts[i] for i in order]), expected[order])
                same_bits(minilm.encode(texts[order[0]]), expected[order[0]])
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
def test_after_a_fork(minilm, texts, expected):
    minilm.encode(texts[:4])  # the parent has worker threads now
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(minilm, texts[:20], sender))
    child.start()
    assert receiver.poll(60), "the child hangs"
    same_bits(receiver.recv(), expected[:20])
    child.join(20)
    assert child.exitcode == 0
    same_bits(minilm.encode(texts[:20]), expected[:20])


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
