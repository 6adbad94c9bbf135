"""Crashes of the index file, modelled in SQLite's manner: the writes and syncs of a series of saves are
recorded and replayed. Whatever the disk has done of those that no sync covers (any prefix, any subset of
sectors, sizes before or after data), what a save had reported is there, and nothing else is invented.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
from typing import Any

import numpy as np
import pytest

from minifuse import Index
from minifuse.search import index_file

SECTOR = 512
# A write of one sector or less, a new size of the file, or a sync.
Event = tuple[str, int, bytes]


class Recorder:
    """An unbuffered file that notes what is done to it."""

    def __init__(self, file: Any, events: list[Event]) -> None:
        self._file, self._events = file, events

    def write(self, data: Any) -> int:
        at, data = self._file.tell(), bytes(data)
        end = at + len(data)
        for begin in range(at // SECTOR * SECTOR, end, SECTOR):
            low, high = max(begin, at), min(begin + SECTOR, end)
            self._events.append(("write", low, data[low - at : high - at]))
        return self._file.write(data)

    def truncate(self, size: int) -> int:
        self._events.append(("size", size, b""))
        return self._file.truncate(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@pytest.fixture
def recorded(monkeypatch):
    events: list[Event] = []
    open_locked, fsync = index_file.open_locked, os.fsync

    @contextlib.contextmanager
    def recording(path):
        with open_locked(path) as file:
            yield Recorder(file, events)

    def sync(descriptor: int) -> None:
        events.append(("sync", 0, b""))
        fsync(descriptor)

    monkeypatch.setattr("minifuse.search.index.open_locked", recording)
    monkeypatch.setattr(os, "fsync", sync)
    return events


def replay(start: bytes, events: list[Event]) -> bytes:
    data = bytearray(start)
    for kind, at, content in events:
        if kind == "size":
            data = data[:at] + bytes(max(0, at - len(data)))
        elif kind == "write":
            data += bytes(max(0, at + len(content) - len(data)))
            data[at : at + len(content)] = content
    return bytes(data)


def states(start: bytes, events: list[Event], rng: random.Random, most: int):
    """(number of events that were issued, bytes that the disk may hold)."""
    last_sync = 0
    for end in range(len(events) + 1):
        if end and events[end - 1][0] == "sync":
            last_sync = end
        durable = replay(start, events[:last_sync])
        pending = events[last_sync:end]
        subsets = (
            itertools.product((False, True), repeat=len(pending))
            if 2 ** len(pending) <= most
            else ([rng.random() < 0.5 for _ in pending] for _ in range(most))
        )
        for chosen in subsets:
            done = [event for event, is_done in zip(pending, chosen, strict=True) if is_done]
            yield end, replay(durable, done)
            if len(done) > 1:  # and in another order
                rng.shuffle(done)
                yield end, replay(durable, done)
        # A write that was cut off within a sector is the next state's prefix; the size alone:
        if pending:
            longest = max(at + len(content) for _, at, content in pending)
            yield end, durable + bytes(max(0, longest - len(durable)))


@pytest.mark.parametrize(("seed", "most"), [(0, 64), pytest.param(1, 2048, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_what_was_saved_outlasts_a_crash(tmp_path, recorded, seed, most, dtype):
    rng = random.Random(seed)
    numbers = np.random.default_rng(seed)
    path = tmp_path / "x.index"
    index = Index(3, dtype=dtype, metric="dot", rescore=dtype == "int8")
    index.save(path)
    start = path.read_bytes()
    recorded.clear()
    vectors: list[np.ndarray] = []
    acknowledged: list[tuple[int, int]] = [(0, 0)]  # (events, vectors) when a save had returned
    for size in (1, 2, 40, 1, 3):
        rows = numbers.standard_normal((size, 3)).astype(np.float32)
        first = sum(map(len, vectors))
        index.add(rows, [f"text {i}" for i in range(first, first + size)])
        index.save(path)
        vectors.append(rows)
        acknowledged.append((len(recorded), first + size))
    events, whole = list(recorded), np.concatenate(vectors)
    assert replay(start, events) == path.read_bytes()

    crashed = tmp_path / "crashed.index"
    count, seen, resumed = 0, set(), 0
    for end, data in states(start, events, rng, most):
        wanted = max(number for at, number in acknowledged if at <= end)
        if (wanted, data) in seen:
            continue
        seen.add((wanted, data))
        count += 1
        crashed.write_bytes(data)
        survivor = Index.load(crashed, verify=True)
        assert wanted <= len(survivor) <= len(whole), (end, wanted)
        if len(survivor):
            np.testing.assert_allclose(
                survivor.reconstruct(range(len(survivor))), whole[: len(survivor)], atol=1e-6
            )
            assert survivor.text(len(survivor) - 1) == f"text {len(survivor) - 1}"
        if count % 7 == 0:  # and it can be gone on with
            survivor.add(np.ones((1, 3)), ["next"])
            survivor.save(crashed)
            assert Index.load(crashed, verify=True).text(len(survivor) - 1) == "next"
            resumed += 1
    assert count > 150
    print(f"{count} states of the disk, {resumed} of them gone on with")


def test_torn_and_damaged_sectors_are_named(tmp_path):
    """A disk that tears even a sector: no saved vector is given back wrong without a word."""
    path = tmp_path / "x.index"
    index = Index(3, metric="dot")
    for first in range(3):
        index.add(np.full((2, 3), first + 1.0), [f"{first} a", f"{first} b"])
        index.save(path)
    whole = path.read_bytes()
    named = 0
    for at in range(4096, len(whole), 64):
        torn = bytearray(whole)
        torn[at : at + 64] = bytes(64)
        path.write_bytes(torn)
        if torn == whole:
            continue
        try:
            loaded = Index.load(path, verify=True)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017
            named += 1
            output = tmp_path / f"{at}.index"
            assert Index.repair(path, output)
            repaired = Index.load(output, verify=True)
            for i in range(len(repaired)):
                number, letter = repaired.text(i).split()
                assert letter in "ab"
                np.testing.assert_array_equal(repaired.reconstruct([i])[0], int(number) + 1.0)
            assert len(repaired) == 4
        else:
            # The newest head is gone: as if its append had not ended.
            assert len(loaded) == 4
            assert at >= len(whole) - 2 * SECTOR
    assert named >= 5


class Writer:
    """One process's view of the file."""

    def __init__(self, path, name):
        self.path, self.name, self.index, self.count = path, name, None, 0
        self.unsaved: list[str] = []

    def load(self):
        self.index, self.unsaved = Index.load(self.path), []

    def add(self):
        if self.index is not None:
            text = f"{self.name} {self.count}"
            self.index.add(np.ones((1, 2)), [text])
            self.unsaved.append(text)
            self.count += 1

    def save(self, saved):
        if self.index is None:
            return
        try:
            self.index.save(self.path)
        except ValueError:
            self.load()  # what is told: load it again
            return
        saved += self.unsaved
        self.unsaved = []

    def bind(self):
        if self.index is not None:
            name = self.name

            class Model:
                def encode(self, text):
                    return np.ones(2)

            Model.name = name
            self.index.bind(Model())


def test_two_writers_in_every_order_lose_nothing_in_silence(tmp_path):
    path = tmp_path / "x.index"
    steps = ("load", "add", "save", "bind", "add", "save")
    orders = list(itertools.combinations(range(2 * len(steps)), len(steps)))
    for order in orders:
        path.unlink(missing_ok=True)
        Index(2).save(path)
        saved: list[str] = []
        writers = {True: (Writer(path, "a"), iter(steps)), False: (Writer(path, "b"), iter(steps))}
        for turn in range(2 * len(steps)):
            writer, left = writers[turn in order]
            step = next(left)
            writer.save(saved) if step == "save" else getattr(writer, step)()
        final = Index.load(path, verify=True)
        assert sorted(final.text(i) for i in range(len(final))) == sorted(saved), order
    assert len(orders) == 924
