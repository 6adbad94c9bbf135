"""The file of an index: comes back, is refused where it is not whole, outlasts a killed writer."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from minifuse import Index


@pytest.fixture
def saved(tmp_path, rng):
    index = Index(16)
    index.add(rng.standard_normal((100, 16)), [f"text {i}" for i in range(100)])
    path = tmp_path / "some.index"
    index.save(path)
    index.add(rng.standard_normal((50, 16)), [f"text {i}" for i in range(100, 150)])
    index.save(path)
    return path


def test_a_file_comes_back(saved):
    index = Index.load(saved)
    assert (len(index), index.dim, index.dtype, index.metric) == (150, 16, "float32", "cosine")
    assert index.text(149) == "text 149"
    assert index.is_mapped
    read = Index.load(saved, mmap=False)
    assert not read.is_mapped
    np.testing.assert_array_equal(read.reconstruct(range(150)), index.reconstruct(range(150)))


def test_a_truncated_file_is_refused(saved):
    whole = saved.read_bytes()
    # A file that ends between two appends is whole: of 0 or of 100 vectors.
    first = 4096
    second = whole.index(b"vectors\0", first + 1)
    whole_at = {first: 0, second: 100, len(whole): 150}
    for size in sorted({*range(0, len(whole), 97), *whole_at, second - 1, second + 1}):
        saved.write_bytes(whole[:size])
        if size in whole_at:
            assert len(Index.load(saved)) == whole_at[size]
        else:
            with pytest.raises(
                ValueError, match=r"some\.index: (truncated|not an index|the header)"
            ):
                Index.load(saved)


def test_a_damaged_file_is_refused(saved):
    whole = bytearray(saved.read_bytes())
    for place in range(0, len(whole), 211):
        damaged = bytearray(whole)
        damaged[place] ^= 0x5A
        saved.write_bytes(damaged)
        try:
            index = Index.load(saved, verify=True)
        except ValueError as error:
            assert str(saved) in str(error)  # noqa: PT017
        else:  # only bytes that mean nothing: the header's and heads' padding
            assert whole[place] == 0
            assert len(index) == 150


def test_a_foreign_file_is_refused(tmp_path):
    path = tmp_path / "x.index"
    for content in (b"", b"PK\3\4" * 100, b"minifuse index\0\7" + bytes(5000)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.index: (not an index|version 7)"):
            Index.load(path)
    with pytest.raises(FileNotFoundError):
        Index.load(tmp_path / "none.index")
    with pytest.raises(FileNotFoundError, match="the folder does not exist"):
        Index(4).save(tmp_path / "nowhere" / "x.index")


def test_a_file_that_shrinks_under_a_mapped_index(saved):
    index = Index.load(saved)
    os.truncate(saved, 5000)
    with pytest.raises(ValueError, match="shorter since it was opened"):
        index.search(np.ones(16), 1)


def test_two_writers(saved):
    one, other = Index.load(saved), Index.load(saved)
    one.add(np.ones((1, 16)), ["one"])
    one.save(saved)
    other.add(np.ones((1, 16)), ["other"])
    with pytest.raises(ValueError, match="another writer has appended"):
        other.save(saved)
    script = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'r+b'); fcntl.flock(f, fcntl.LOCK_EX)\n"
        "print('locked', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(saved)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "locked\n"
        one.add(np.ones((1, 16)), ["two"])
        with pytest.raises(BlockingIOError, match="another process is writing"):
            one.save(saved)
    finally:
        holder.kill()
        holder.communicate()
    one.save(saved)
    assert len(Index.load(saved)) == 152


def test_binding_a_saved_index_does_not_undo_another_writer(saved, rng):
    class Model:
        name = "some model"

        def encode(self, text):
            return np.ones(16)

    one, other = Index.load(saved), Index.load(saved)
    one.add(np.ones((1, 16)), ["one"])
    one.save(saved)
    other.bind(Model())  # another header: the whole file would be written anew
    with pytest.raises(ValueError, match="another writer has appended"):
        other.save(saved)
    assert Index.load(saved).text(150) == "one"
    one.bind(Model())
    one.save(saved)
    index = Index.load(saved, verify=True)
    assert (len(index), index.model_name, index.text(150)) == (151, "some model", "one")


def test_any_string_comes_back():
    index = Index(2)
    texts = ["", "\0", "\ud800 alone", "🦊"]
    index.add(np.eye(2)[[0, 1, 0, 1]], texts)
    assert [index.text(i) for i in range(4)] == texts


def test_a_full_disk_loses_nothing(saved, monkeypatch):
    from minifuse.search import index_file

    index = Index.load(saved)
    index.add(np.ones((1000, 16)), ["x"] * 1000)
    before = saved.read_bytes()
    write = index_file._write_all

    def full(file, data, checksum=0):
        write(file, memoryview(data)[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(index_file, "_write_all", full)
    with pytest.raises(OSError, match="No space left"):
        index.save(saved)
    with pytest.raises(OSError, match="No space left"):
        index.save(saved.with_name("new.index"))
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]
    assert saved.read_bytes() == before
    monkeypatch.undo()
    index.save(saved)
    assert len(Index.load(saved, verify=True)) == 1150


def _write_forever(path, pipe):
    index = Index.load(path)
    rng = np.random.default_rng(1)
    while True:
        count = int(rng.integers(1, 200))
        first = len(index)
        index.add(np.full((count, 16), 1.0) + np.arange(first, first + count)[:, None] % 7)
        index.save(path)
        pipe.send(len(index))  # saved, and said so


@pytest.mark.parametrize("rounds", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_a_killed_writer_loses_nothing_that_was_saved(tmp_path, rounds):
    path = tmp_path / "killed.index"
    Index(16, metric="dot").save(path)
    context = multiprocessing.get_context("fork")
    rng = np.random.default_rng(0)
    saved = 0
    for _ in range(rounds):
        receiver, sender = context.Pipe(duplex=False)
        writer = context.Process(target=_write_forever, args=(path, sender))
        writer.start()
        sender.close()
        time.sleep(rng.uniform(0.0, 0.1))
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        while True:
            try:
                saved = receiver.recv()
            except EOFError:
                break
        index = Index.load(path, verify=True)
        assert len(index) >= saved
        saved = len(index)
        if saved:
            vectors = index.reconstruct(range(saved))
            np.testing.assert_array_equal(vectors[:, 0], 1.0 + np.arange(saved) % 7)
    assert saved > 0


def test_texts_that_are_all_empty(tmp_path):
    """They take no bytes, and what is added behind them takes some."""
    index = Index(4)
    index.add(np.eye(1, 4, dtype=np.float32), texts=[""])
    index.save(tmp_path / "index")
    loaded = copy.copy(Index.load(tmp_path / "index"))
    loaded.add(np.eye(1, 4, dtype=np.float32), texts=["hello"])
    loaded.add(np.eye(1, 4, dtype=np.float32), texts=[""])
    assert [loaded.text(i) for i in range(3)] == ["", "hello", ""]
    loaded.save(tmp_path / "other")
    again = pickle.loads(pickle.dumps(Index.load(tmp_path / "other", verify=True)))
    again.add(np.eye(1, 4, dtype=np.float32), texts=["x"])
    assert [again.text(i) for i in range(4)] == ["", "hello", "", "x"]


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_small_integers_of_numpy(kind):
    index = Index(4, dtype="int8", rescore=True)
    index.add(np.random.default_rng(0).standard_normal((40, 4)))
    query = np.ones(4, np.float32)
    for k, oversample in ((30, 5), (5, 60)):
        scores, ids = index.search(query, kind(k), oversample=oversample)
        wanted = index.search(query, k, oversample=oversample)
        assert np.array_equal(scores, wanted[0])
        assert np.array_equal(ids, wanted[1])
    with pytest.raises(IndexError, match="no 64-bit number"):
        index.reconstruct([2**63])
