"""An index loses nothing in silence: other writers, damage, failures in the middle, threads, forks."""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import random
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from minifuse import Index
from minifuse.cli import main
from minifuse.search.index_file import _SECTOR


@pytest.fixture
def saved(tmp_path, rng):
    index = Index(16)
    path = tmp_path / "some.index"
    for first in range(0, 150, 50):
        index.add(rng.standard_normal((50, 16)), [f"text {i}" for i in range(first, first + 50)])
        index.save(path)
    return path


class Model:
    name = "some model"

    def encode(self, text):
        return np.ones(16)


def test_a_file_that_another_writer_has_replaced(saved):
    one, other = Index.load(saved), Index.load(saved)
    one.bind(Model())
    one.add(np.ones((1, 16)), ["one"])
    one.save(saved)  # another header: another file under the name
    other.add(np.ones((1, 16)), ["other"])
    with pytest.raises(ValueError, match="another writer has replaced it"):
        other.save(saved)
    assert Index.load(saved).text(150) == "one"
    saved.unlink()  # rebuilt by somebody, perhaps with the same inode
    fresh = Index(16)
    fresh.add(np.ones((1, 16)), ["fresh"])
    fresh.save(saved)
    with pytest.raises(ValueError, match=r"another writer has (replaced|appended)"):
        one.save(saved)
    assert Index.load(saved).text(0) == "fresh"


def test_a_file_that_is_replaced_between_opening_and_locking(saved, monkeypatch):
    import fcntl

    index = Index.load(saved)
    index.add(np.ones((1, 16)), ["lost?"])
    flock = fcntl.flock

    def replaced(file, how):
        rebuilt = Index(16)
        rebuilt.add(np.ones((1, 16)), ["rebuilt"])
        monkeypatch.undo()
        aside = saved.with_name("aside.index")
        rebuilt.save(aside)
        os.replace(aside, saved)
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", replaced)
    with pytest.raises(ValueError, match="another writer has replaced it"):
        index.save(saved)
    assert Index.load(saved).text(0) == "rebuilt"


def test_two_writers_of_a_new_file(tmp_path, monkeypatch):
    from minifuse.search import index_file

    path = tmp_path / "new.index"
    one, other = Index(2), Index(2)
    one.add(np.eye(2), ["a", "b"])
    other.add(np.eye(2), ["c", "d"])
    append = index_file._append_segment

    def slowly(*arguments):
        monkeypatch.undo()
        other.save(path)
        return append(*arguments)

    monkeypatch.setattr(index_file, "_append_segment", slowly)
    with pytest.raises(ValueError, match="another writer has made it meanwhile"):
        one.save(path)
    assert Index.load(path).text(0) == "c"


def head_offsets(path):
    data = path.read_bytes()
    salt = bytes.fromhex(data.split(b'"salt": "', 1)[1][:16].decode())
    return [
        at for at in range(4096, len(data), _SECTOR) if data[at : at + 16] == b"vectors\0" + salt
    ]


def first_head(path):
    return path.read_bytes()[head_offsets(path)[0] :][:_SECTOR]


def test_a_zeroed_head_is_damage_and_is_never_cut_off(saved):
    whole = bytearray(saved.read_bytes())
    heads = head_offsets(saved)
    assert len(heads) == 3
    index = Index.load(saved)
    index.add(np.ones((1, 16)), ["new"])
    whole[heads[1] : heads[1] + _SECTOR] = bytes(_SECTOR)
    saved.write_bytes(whole)
    for verify in (False, True):
        with pytest.raises(
            ValueError, match=f"byte {heads[1]}: zeros before .* {heads[2]}.*repair"
        ):
            Index.load(saved, verify=verify)
    with pytest.raises(ValueError, match="damaged"):
        index.save(saved)
    assert saved.read_bytes() == whole


def test_an_unfinished_append_is_no_damage(saved):
    """Zeros where the head would be, any bytes behind them, heads of other files among these."""
    whole = saved.read_bytes()
    other = Index(16)
    other.add(np.ones((1, 16)))
    other.save(saved.with_name("other.index"))
    foreign = first_head(saved.with_name("other.index"))
    saved.write_bytes(whole + bytes(_SECTOR) + foreign + b"\xff" * 5000)
    index = Index.load(saved, verify=True)
    assert len(index) == 150
    index.add(np.ones((1, 16)), ["next"])
    index.save(saved)
    assert Index.load(saved, verify=True).text(150) == "next"


def test_a_missing_segment_breaks_the_chain(saved):
    whole = saved.read_bytes()
    _, second, third = head_offsets(saved)
    saved.write_bytes(whole[:second] + whole[third:])
    with pytest.raises(ValueError, match="vectors from 100 on follow 50"):
        Index.load(saved)


@pytest.mark.parametrize("damage", ["zeroed head", "torn head", "vectors", "truncated"])
def test_repair(saved, damage, capsys):
    whole = bytearray(saved.read_bytes())
    texts = [Index.load(saved).text(i) for i in range(150)]
    _, second, _ = head_offsets(saved)
    kept = [*range(50), *range(100, 150)]
    if damage == "zeroed head":
        whole[second : second + _SECTOR] = bytes(_SECTOR)
    elif damage == "torn head":
        whole[second + 40 : second + 70] = bytes(30)
    elif damage == "vectors":
        whole[second + _SECTOR + 100] ^= 1
    else:
        whole, kept = whole[:-600], [*range(100)]
    saved.write_bytes(whole)
    output = saved.with_name("repaired.index")
    assert main(["index", "repair", str(saved), "-o", str(output)]) == 1
    assert "ids of what follows become smaller" in capsys.readouterr().out
    assert saved.read_bytes() == whole
    repaired = Index.load(output, verify=True)
    assert [repaired.text(i) for i in range(len(repaired))] == [texts[i] for i in kept]
    with pytest.raises(FileExistsError):
        Index.repair(saved, output)


def test_repair_of_a_whole_file(saved, capsys):
    output = saved.with_name("repaired.index")
    assert main(["index", "repair", str(saved), "-o", str(output)]) == 0
    assert "nothing is lost" in capsys.readouterr().out
    assert len(Index.load(output)) == 150


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_an_unpickled_index_is_searched(rng, dtype):
    """Its arrays have another object for their dtype."""
    index = Index(8, dtype)
    index.add(rng.standard_normal((50, 8)))
    query = rng.standard_normal((3, 8))
    expected = index.search(query, 5)
    for copied in (pickle.loads(pickle.dumps(index)), copy.deepcopy(index)):
        for found, wanted in zip(copied.search(query, 5), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_repair_where_bytes_are_gone(tmp_path, rng):
    """A segment that would reach past the end of the file hides none of those behind it."""
    index = Index(16)
    path = tmp_path / "some.index"
    for count in (20_000, 10, 20):  # the first has many times the bytes that are left
        index.add(rng.standard_normal((count, 16)))
        index.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: 16 * _SECTOR] + whole[-8 * _SECTOR :])
    Index.repair(path, tmp_path / "repaired.index")
    repaired = Index.load(tmp_path / "repaired.index")
    np.testing.assert_array_equal(
        repaired.reconstruct(range(30)), index.reconstruct(range(20_000, 20_030))
    )


@pytest.mark.skipif(sys.platform != "linux", reason="Linux counts the bytes that are read")
def test_repair_reads_a_file_a_few_times_at_most(tmp_path, rng):
    index = Index(8)
    path = tmp_path / "many.index"
    for _ in range(150):
        index.add(rng.standard_normal((40, 8)))
        index.save(path)

    def bytes_read() -> int:
        lines = Path("/proc/self/io").read_text().splitlines()
        return int(dict(line.split(": ") for line in lines)["rchar"])

    before = bytes_read()
    Index.repair(path, tmp_path / "repaired.index")
    assert bytes_read() - before < 6 * path.stat().st_size
    assert len(Index.load(tmp_path / "repaired.index")) == 6000


def test_a_file_of_version_1_is_read_and_written_anew(tmp_path):
    """Made as version 1 wrote it: heads of 128 bytes at multiples of 64, without salt and chain."""
    import json
    import struct
    import zlib

    about = {"dim": 2, "dtype": "float32", "metric": "dot", "rescore": False, "model": None}
    text = json.dumps(about).encode()
    data = b"minifuse index\0\1" + struct.pack("<II", len(text), zlib.crc32(text)) + text
    data += bytes(4096 - len(data))
    for first in (0, 3):
        vectors = np.arange(first, first + 3, dtype="<f4")[:, None] * np.ones(2, "<f4")
        parts = vectors.tobytes() + bytes(64 - vectors.nbytes)
        head = struct.pack(
            "<8sQ5QI", b"vectors\0", 3, vectors.nbytes, 0, 0, 0, 0, zlib.crc32(parts)
        )
        head += struct.pack("<I", zlib.crc32(head))
        data += head + bytes(128 - len(head)) + parts
    path = tmp_path / "old.index"
    path.write_bytes(data)
    index = Index.load(path, verify=True)
    np.testing.assert_array_equal(index.reconstruct(range(6))[:, 0], np.arange(6))
    index.add(np.full((1, 2), 6.0))
    index.save(path)
    assert path.read_bytes()[15] == 2
    again = Index.load(path, verify=True)
    np.testing.assert_array_equal(again.reconstruct(range(7))[:, 0], np.arange(7))
    again.add(np.full((1, 2), 7.0))
    again.save(path)
    assert len(Index.load(path, verify=True)) == 8


@pytest.mark.parametrize("call", ["search", "text", "reconstruct", "save", "pickle"])
def test_a_mapped_file_that_shrinks(saved, call):
    index = Index.load(saved)
    index.add(np.ones((1, 16)), ["new"])
    os.truncate(saved, 5000)
    calls = {
        "search": lambda: index.search(np.ones(16), 1),
        "text": lambda: index.text(149),
        "reconstruct": lambda: index.reconstruct([149]),
        "save": lambda: index.save(saved.with_name("copy.index")),
        "pickle": lambda: pickle.dumps(index),
    }
    with pytest.raises(ValueError, match="shorter since it was opened"):
        calls[call]()


def test_opening_a_large_index_reads_little(tmp_path, monkeypatch):
    from minifuse.search import index_file

    path = tmp_path / "large.index"
    index = Index(64, metric="dot")
    index.add(np.ones((70_000, 64), np.float32))
    index.save(path)
    monkeypatch.setattr(index_file, "_CHECKED_AT_OPEN_BYTES", 1 << 20)
    checked = []
    has_checksum = index_file._has_checksum
    monkeypatch.setattr(
        index_file, "_has_checksum", lambda *a: checked.append(1) or has_checksum(*a)
    )
    assert len(Index.load(path)) == 70_000
    assert not checked
    Index.load(path, verify=True)
    assert checked


def test_threads_that_add_and_search_at_once():
    index = Index(8, metric="dot")
    index.add(np.zeros((1, 8)), ["-"])
    ids: dict[str, range] = {}
    failures = []

    def add(name: int) -> None:
        for round_ in range(150):
            vectors = np.full((2, 8), name * 1000 + round_, np.float32)
            ids[f"{name} {round_}"] = index.add(vectors, [f"{name} {round_} {i}" for i in range(2)])

    def search() -> None:
        for _ in range(200):
            _, found = index.search(np.ones(8), 1)
            if not 0 <= found[0] < len(index):
                failures.append(found)

    threads = [threading.Thread(target=add, args=(n,)) for n in range(4)]
    threads += [threading.Thread(target=search) for _ in range(2)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not failures
    assert len(index) == 1 + 4 * 150 * 2
    assert len({i for one in ids.values() for i in one}) == 4 * 150 * 2
    for name, places in ids.items():
        for k, i in enumerate(places):
            assert index.text(i) == f"{name} {k}"
            assert index.reconstruct([i])[0, 0] == int(name.split()[0]) * 1000 + int(
                name.split()[1]
            )


def test_a_signal_handler_that_adds_and_saves(tmp_path):
    # A handler runs in the middle of whatever the main thread does, and holds its locks.
    index, own, path = Index(4), [], tmp_path / "some.index"

    def add(value):
        own.append((index.add(np.full((1, 4), value), [str(value)])[0], value))

    def handler(*_):
        with contextlib.suppress(RuntimeError):  # what is refused is not lost in silence
            add(-1 - len(own))
            index.save(path)

    before = signal.signal(signal.SIGALRM, handler)
    delays = random.Random(1)
    try:
        for i in range(1, 600):
            if i % 3 == 0:  # one signal at a time: a handler that a signal interrupts would nest
                signal.setitimer(signal.ITIMER_REAL, delays.uniform(1e-6, 1e-4))
            add(i)
            if i % 6 == 0:
                index.save(path)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    index.save(path)
    assert sorted(i for i, _ in own) == list(range(len(index)))
    for held in (index, Index.load(path, verify=True)):
        assert [held.text(i) for i, _ in own] == [str(value) for _, value in own]


def test_a_copy_of_an_index_is_whole_and_apart(saved):
    index = Index.load(saved)
    for other in (pickle.loads(pickle.dumps(index)), copy.deepcopy(index)):
        np.testing.assert_array_equal(other.reconstruct(range(150)), index.reconstruct(range(150)))
        other.add(np.ones((1, 16)), ["more"])
        assert (len(other), len(index)) == (151, 150)


def test_a_file_that_is_not_its_own_is_never_replaced_in_silence(saved, tmp_path):
    """Save-as, copies and fresh indexes: what somebody appended meanwhile stays."""
    index = Index.load(saved)
    index.save(tmp_path / "backup.index")
    copy_ = pickle.loads(pickle.dumps(index))
    fresh = Index(16)
    fresh.add(np.ones((1, 16)), ["fresh"])
    other = Index.load(saved)
    other.add(np.ones((1, 16)), ["other's"])
    other.save(saved)
    for one in (index, copy_, fresh):
        one.add(np.ones((1, 16)), ["mine"])
        with pytest.raises(FileExistsError, match="overwrite=True"):
            one.save(saved)
        assert Index.load(saved).text(150) == "other's"
    fresh.save(saved, overwrite=True)
    assert Index.load(saved).text(0) == "fresh"
    with pytest.raises(ValueError, match="another writer has replaced it"):
        other.save(saved)


def test_overwriting_waits_for_nobody_who_appends(saved):
    from minifuse.search.index_file import open_locked

    fresh = Index(16)
    fresh.add(np.ones((1, 16)), ["fresh"])
    with open_locked(saved), pytest.raises(BlockingIOError):
        fresh.save(saved, overwrite=True)


def test_a_killed_append_behind_a_mapped_index(saved):
    saved.write_bytes(saved.read_bytes() + bytes(1_000_000))
    reader, writer = Index.load(saved), Index.load(saved)
    writer.add(np.ones((1, 16)), ["new"])
    writer.save(saved)  # cuts off what the killed writer left
    for index in (reader, writer):
        index.search(np.ones(16), 1)
        assert index.text(149) == "text 149"


def test_a_reader_while_a_writer_appends(saved, monkeypatch):
    """Between two looks of a reader the writer commits a head: nothing is damaged."""
    from minifuse.search import index_file

    writer = Index.load(saved)
    state, turns = index_file._state, iter(range(100))

    def slow_state(file, tail):
        before = state(file, tail)
        if tail.num_vectors == 150 and next(turns) == 0:
            writer.add(np.ones((1, 16)), ["new"])
            writer.save(saved)
            return before[0] + 4096, bytes(512)  # zeros seen before the head was there
        return before

    monkeypatch.setattr(index_file, "_state", slow_state)
    monkeypatch.setattr(index_file, "_find_head", lambda *_: (0, None))
    assert len(Index.load(saved)) in (150, 151)


@pytest.mark.parametrize("number", [1, 2])
def test_a_save_that_failed_can_be_repeated(saved, monkeypatch, number):
    index = Index.load(saved)
    index.add(np.ones((1, 16)), ["new"])
    calls, fsync = [], os.fsync

    def failing(descriptor):
        calls.append(descriptor)
        if len(calls) == number:
            raise OSError(5, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="Input/output"):
        index.save(saved)
    monkeypatch.undo()
    assert len(Index.load(saved, verify=True)) == 150
    index.save(saved)
    assert Index.load(saved, verify=True).text(150) == "new"


def test_a_rename_whose_folder_cannot_be_synced(saved, monkeypatch):
    index = Index.load(saved)
    index.bind(Model())
    monkeypatch.setattr(
        "minifuse.files.whole.sync_folder", lambda _: (_ for _ in ()).throw(OSError(5, "EIO"))
    )
    with pytest.raises(OSError, match="EIO"):
        index.save(saved)
    monkeypatch.undo()
    index.add(np.ones((1, 16)), ["new"])
    index.save(saved)
    assert Index.load(saved, verify=True).text(150) == "new"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_during_a_save(saved):
    index = Index.load(saved)
    index._lock.acquire()  # as a save of another thread does
    try:
        child = os.fork()
        if child == 0:
            locked = threading.Thread(target=lambda: index.search(np.ones(16), 1), daemon=True)
            locked.start()
            locked.join(20)
            os._exit(1 if locked.is_alive() else 0)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        index._lock.release()
