"""The system says no at every call that an operation makes: no thread, no memory, a full disk, a
failing disk, no file descriptor, no map. Each time the process lives, the error is one of Python's own
kinds, no partial file looks complete, and the next call gives the right result.

tests/native/faults.cpp is preloaded into a process of its own and fails the n-th call, for every n.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="preloads a library, as Linux does it"),
    pytest.mark.skipif(
        "MINIFUSE_SANITIZED" in os.environ,
        reason="the sanitizers' own library must be the first that is loaded",
    ),
]

SCRIPT = """
import ctypes, os, shutil, sys
from pathlib import Path
import numpy as np
import minifuse
import minifuse.native
from minifuse import Index, SentenceTransformer, ops
from minifuse.files.vectors import open_writer
from minifuse.files.safetensors_file import SafetensorsFile
from minifuse.files.whole import replacing

faults = ctypes.CDLL(None)
operation, kind, most = sys.argv[1], sys.argv[2], int(sys.argv[3])
folder, work = Path(sys.argv[4]), Path(sys.argv[5])
model = SentenceTransformer(folder, num_threads=1)
texts = ["the sky is blue " * 8, "a dog", "jump over the lazy dog " * 4] * 40
vectors = model.encode(texts)
x = np.ones((300, 256), np.float32)
product = ops.linear(x, x)
fresh = Index(vectors.shape[1])
fresh.add(vectors, texts)
saved = work / "saved.index"
fresh.save(saved)
whole = Index.load(saved)


def encode():
    assert np.array_equal(model.encode(texts, num_threads=3), vectors)


def load():
    assert np.array_equal(SentenceTransformer(folder, num_threads=1).encode(texts[:3]), vectors[:3])


def linear():
    assert np.array_equal(ops.linear(x, x), product)


def search():
    scores, ids = whole.search(vectors[:5], 3, num_threads=3)
    assert ids.shape == (5, 3) and (ids >= 0).all()


def save_new():
    path = work / "new.index"
    path.unlink(missing_ok=True)
    index = Index(vectors.shape[1])
    index.add(vectors[:3], texts[:3])
    try:
        index.save(path)
    except BaseException:
        assert not path.exists() or len(Index.load(path, verify=True)) == 3
        raise
    assert len(Index.load(path, verify=True)) == 3


def append():
    path = work / "appended.index"
    shutil.copyfile(saved, path)
    index = Index.load(path)
    index.add(vectors[:3], texts[:3])
    before = len(whole)
    try:
        index.save(path)
    except BaseException:
        count = len(Index.load(path, verify=True))
        assert count in (before, before + 3), count
        # The same index tries again what failed, and only what was missing is added.
        try:
            index.save(path)
        except Exception as error:
            raise AssertionError(f"the next save fails: {error}") from error
        assert len(Index.load(path, verify=True)) == before + 3
        raise
    assert len(Index.load(path, verify=True)) == before + 3


def load_index():
    index = Index.load(saved)
    assert index.text(1) == texts[1]


def write():
    for ending in ("npy", "jsonl"):
        path = work / f"out.{ending}"
        before = path.read_bytes() if path.exists() else None
        try:
            with open_writer(path) as writer:
                writer.write(texts, vectors)
        except BaseException:
            after = path.read_bytes() if path.exists() else None
            assert after == before or len(after) > vectors.nbytes  # whole: it failed after the rename
            raise
    np.testing.assert_array_equal(np.load(work / "out.npy"), vectors)


def save_model():
    target = work / "model"
    shutil.rmtree(target, ignore_errors=True)
    try:
        model.save_pretrained(target)
    except BaseException:
        assert not target.exists() or np.array_equal(
            SentenceTransformer(target).encode(texts[1]), vectors[1]
        )
        raise
    assert np.array_equal(SentenceTransformer(target).encode(texts[1]), vectors[1])


def read_weights():
    with SafetensorsFile(folder / "model.safetensors") as file:
        for name in file.names():
            if name != "embeddings.position_ids":  # of integers
                file.read(name)


operation = globals()[operation]


def run():
    if kind == "thread":
        minifuse.native.core.shutdown_threads()  # so that they must be started again
    operation()


run()  # imports and caches are filled
faults.faults_arm(kind.encode(), 0)
run()
total = faults.faults_disarm()
failed = 0
for n in range(1, total + 1, -(-total // most) or 1):
    faults.faults_arm(kind.encode(), n)
    try:
        run()
    except (OSError, MemoryError, ValueError, RuntimeError, ImportError) as error:
        failed += 1
        assert str(error) or isinstance(error, MemoryError), repr(error)
    finally:
        faults.faults_disarm()
    left = [p.name for p in work.iterdir() if "partial" in p.name]
    assert not left, left
    run()
print(total, failed)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("faults") / "faults.so"
    source = Path(__file__).parents[1] / "native" / "faults.cpp"
    compiler = os.environ.get("CXX", "c++")
    subprocess.run(
        [compiler, "-std=c++20", "-O1", "-shared", "-fPIC", str(source), "-o", str(output), "-ldl"],
        check=True,
    )
    return output


def inject(library: Path, operation: str, kind: str, folder: Path, work: Path, most: int) -> tuple:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, operation, kind, str(most), str(folder), str(work)],
        env=os.environ | {"LD_PRELOAD": str(library), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, f"status {done.returncode}: {done.stderr[-3000:]}"
    total, failed = map(int, done.stdout.split())
    print(f"{operation} {kind}: {total} calls, {failed} of them fail the operation")
    return total, failed


CASES = [
    ("encode", "thread"), ("encode", "memory"),
    ("linear", "memory"), ("search", "memory"), ("search", "thread"),
    ("load", "memory"), ("load", "open"), ("load", "mmap"),
    ("read_weights", "mmap"), ("read_weights", "open"),
    ("save_new", "open"), ("save_new", "write"), ("save_new", "fsync"), ("save_new", "rename"),
    ("append", "open"), ("append", "write"), ("append", "fsync"), ("append", "mmap"),
    ("load_index", "open"), ("load_index", "mmap"),
    ("write", "open"), ("write", "write"), ("write", "fsync"), ("write", "rename"),
    ("save_model", "open"), ("save_model", "write"), ("save_model", "fsync"), ("save_model", "rename"),
]  # fmt: skip


@pytest.mark.parametrize(("operation", "kind"), CASES)
def test_every_call_may_fail(library, tiny_folder, tmp_path, operation, kind):
    # All allocations of loading: one in two hundred, the last of an object's construction, once
    # freed the object twice. Of the others sixty, evenly spread.
    most = 10**6 if (operation, kind) == ("load", "memory") else 60
    total, failed = inject(library, operation, kind, tiny_folder, tmp_path, most)
    # Fewer threads do the work, and a rename serves where a link fails.
    if kind != "thread" and (operation, kind) != ("save_new", "rename"):
        assert total > 0
        assert failed > 0


@pytest.mark.slow
@pytest.mark.parametrize(("operation", "kind"), CASES)
def test_every_single_call_may_fail(library, tiny_folder, tmp_path, operation, kind):
    inject(library, operation, kind, tiny_folder, tmp_path, most=10**6)
