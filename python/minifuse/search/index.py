"""Exact nearest neighbours: the k vectors of an index with the highest cosine or dot product.

index = minifuse.Index(384)
index.add(model.encode(documents), texts=documents)
scores, ids = index.search(model.encode(["a question"]), k=10)
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from minifuse import native
from minifuse.hardware import DTYPES
from minifuse.native import core
from minifuse.search.index_file import (
    Layout,
    MappedFile,
    Segment,
    Tail,
    append_segments,
    open_locked,
    read_about,
    read_index,
    read_tail,
    recover,
    write_index,
)

__all__ = ["Index"]

FloatArray = npt.NDArray[np.float32]
IdArray = npt.NDArray[np.int64]

_METRICS = ("cosine", "dot")
# Appends of up to this many vectors are joined in memory, so that a million of them one by one make
# a few pieces to search and not a million.
_JOINED_VECTORS = 1 << 16
# Vectors that are checked at a time: Python hears of Ctrl-C in between.
_ROWS_AT_ONCE = 1 << 14
# Vectors that are as short do not get length 1 from l2_normalize, which divides by 1e-12 at least.
_LEAST_SQUARE = 1e-24
_NOT_COPIED = (
    "_lock", "_is_changing", "_mapped", "_path", "_file", "_tail", "_num_saved", "_starts"
)  # fmt: skip
# A model is recognised by its vector of this text (Index.bind).
_PROBE = "The quick brown fox jumps over the lazy dog."


_instances: weakref.WeakSet[Index] = weakref.WeakSet()


def _renew_locks() -> None:
    """In the child of a fork no other thread is left that would give a lock back."""
    for index in list(_instances):
        index._lock, index._is_changing = threading.RLock(), False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


class Index:
    """Vectors with ids 0, 1, 2, ... in the order in which they are added.

    A search is exact over the vectors as they are stored: all of them are scored, in float32
    arithmetic whose bits depend neither on the number of threads nor on the other queries; equal
    scores are ordered by the lower id. In int8 the scores are approximate, unless the float32
    vectors are kept beside the codes and the best candidates are scored again by them. Several
    threads may add, search and save at once.

    Args:
        dim: of the vectors, 1 to 65,536.
        dtype: how they are stored: "float32", "bfloat16" or "int8" (a byte a dimension and 8 bytes
            a vector).
        metric: "cosine" (vectors are stored with length 1) or "dot".
        rescore: int8 only: keep the float32 vectors too. In a saved index they stay on the disk
            but for the few that a search reads again.
        num_threads: of a search; the default of the machine if None.

    Raises:
        ValueError: an argument that is none of these.
    """

    def __init__(
        self,
        dim: int,
        dtype: str = "float32",
        metric: str = "cosine",
        *,
        rescore: bool = False,
        num_threads: int | None = None,
    ) -> None:
        if (
            isinstance(dim, bool)
            or not isinstance(dim, (int, np.integer))
            or not 0 < dim <= 1 << 16
        ):
            raise ValueError(f"dim is {dim!r}, wanted 1..65536")
        for name, value, wanted in (("dtype", dtype, DTYPES), ("metric", metric, _METRICS)):
            if value not in wanted:
                raise ValueError(f"{name} is {value!r}, wanted one of {', '.join(wanted)}")
        if rescore and dtype != "int8":
            raise ValueError(f"rescore=True is for dtype='int8', not {dtype!r}")
        self._dim, self._dtype, self._metric = int(dim), dtype, metric
        self._rescore = rescore
        self._threads = num_threads
        self._lock = threading.RLock()  # of everything below
        self._is_changing = False
        _instances.add(self)
        self._segments: list[Segment] = []
        # Some segments and their first ids; _starts_of keeps them up to date.
        self._starts: tuple[list[Segment], list[int]] = self._segments, [0]
        self._mapped: MappedFile | None = None  # behind some of the segments
        self._path: Path | None = None  # of the file that it was loaded from or saved to
        self._file: tuple[int, int] | None = None  # device and inode
        self._tail: Tail | None = None  # of that file
        self._num_saved = 0  # segments that are in the file
        self._has_texts: bool | None = None
        self._model: dict[str, Any] | None = None

    # Properties.

    @property
    def dim(self) -> int:
        """Dimensions of a vector."""
        return self._dim

    @property
    def dtype(self) -> str:
        """Type of the stored vectors: "float32", "bfloat16" or "int8"."""
        return self._dtype

    @property
    def metric(self) -> str:
        """ "cosine" or "dot"."""
        return self._metric

    @property
    def rescores(self) -> bool:
        """True if the float32 vectors are kept beside the codes."""
        return self._rescore

    @property
    def is_mapped(self) -> bool:
        """True if vectors lie in a memory-mapped file and not in the memory of this process."""
        return self._mapped is not None

    @property
    def has_texts(self) -> bool:
        """True if the vectors came with their texts."""
        return bool(self._has_texts)

    @property
    def model_name(self) -> str | None:
        """The model that the vectors are of, where ``bind`` was told."""
        return None if self._model is None else str(self._model["name"])

    @property
    def nbytes(self) -> int:
        """Bytes that a search reads: the vectors or codes, and scales."""
        return sum(
            s.vectors.nbytes + (0 if s.scale is None else s.scale.nbytes) for s in self._segments
        )

    def __len__(self) -> int:
        return sum(segment.count for segment in self._segments)

    def __getstate__(self) -> dict[str, Any]:
        # A copy in another process has its own memory and no file: two writers would disagree.
        with self._lock:
            state = self.__dict__ | {"_segments": [_copied(s) for s in self._present()]}
        for name in _NOT_COPIED:
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        empty = Index(1)
        self.__dict__.update(empty.__dict__ | state)
        self._lock = threading.RLock()
        _instances.add(self)

    def __repr__(self) -> str:
        return (
            f"Index({len(self)} vectors, dim={self._dim}, dtype={self._dtype!r}, "
            f"metric={self._metric!r}{', rescore=True' if self._rescore else ''})"
        )

    # Filling it.

    def add(self, vectors: Any, texts: Sequence[str] | None = None) -> range:
        """Append vectors; returns their ids.

        Args:
            vectors: float32 or float64 [n, dim], or [dim] for one.
            texts: n strings that ``text`` gives back; for all vectors of an index or for none.

        Raises:
            ValueError: another dimension; a NaN, an infinity or, with cosine, a vector of zeros
                (the row is named); texts of another number, or given for some vectors only.
            TypeError: not numbers; a text that is no string.
            RuntimeError: called by a signal handler while the same thread adds or saves.
        """
        rows = self._checked("vectors", vectors)
        if texts is not None:
            if isinstance(texts, str) or len(texts) != len(rows):
                raise ValueError(f"{len(rows)} vectors, wanted as many texts")
            for i, text in enumerate(texts):
                if not isinstance(text, str):
                    raise TypeError(f"texts[{i}] is a {type(text).__name__}, wanted a string")
        segment = self._stored(rows, texts) if len(rows) else None
        with self._changing():
            first = len(self)
            if segment is None:
                return range(first, first)
            if self._has_texts not in (None, texts is not None):
                raise ValueError(
                    f"the vectors so far came {'with' if self._has_texts else 'without'} texts, "
                    "wanted the same here"
                )
            self._has_texts = texts is not None
            self._segments = self._joined_with(segment)
            self._starts = [], [0]  # lets go of what was joined
        return range(first, first + len(rows))

    def bind(self, model: Any) -> None:
        """Remember that the vectors are of this model: ``check_model`` then refuses another."""
        name = getattr(model, "name", None) or repr(model)
        probe = np.asarray(model.encode(_PROBE), np.float64)
        if probe.shape != (self._dim,):
            raise ValueError(f"the model has {len(probe)} dimensions, the index {self._dim}")
        self._model = {"name": str(name), "probe": [round(float(x), 5) for x in probe]}

    def check_model(self, model: Any) -> None:
        """Refuse a model that is not the one of ``bind``, whatever its name and dtype.

        Raises:
            ValueError: its vector of a known sentence points elsewhere, or has another dimension.
        """
        probe = np.asarray(model.encode(_PROBE), np.float64)
        if probe.shape != (self._dim,):
            raise ValueError(
                f"the model gives {len(probe)} dimensions, the index has {self._dim}: "
                f"wanted {self.model_name or 'the model that the index was made with'}"
            )
        if self._model is None:
            return
        theirs = np.asarray(self._model["probe"])
        lengths = float(np.linalg.norm(probe) * np.linalg.norm(theirs))
        cosine = float(probe @ theirs) / max(lengths, 1e-12)
        if cosine < 0.98:
            raise ValueError(
                f"the index holds vectors of {self.model_name}, and this model gives others "
                f"(cosine {cosine:.3f} for the same sentence)"
            )

    # Asking it.

    def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        oversample: int = 4,
        num_threads: int | None = None,
    ) -> tuple[FloatArray, IdArray]:
        """The k best vectors of each query, best first, ties broken by the lower id.

        Args:
            queries: float32 or float64 [num_queries, dim], or [dim] for one.
            k: 1 .. len(self).
            oversample: of an index with ``rescore``: k times as many candidates are scored again.
            num_threads: the index's if None.

        Returns:
            scores [num_queries, k] float32 and ids [num_queries, k] int64; one dimension less for a
            single query.

        Raises:
            ValueError: another dimension, a NaN, an infinity or, with cosine, a query of zeros; k
                out of range; the file of the index has become shorter.
        """
        rows = self._checked("queries", queries)
        segments = self._present()
        total = sum(segment.count for segment in segments)
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= total:
            raise ValueError(f"k is {k!r}, wanted 1..{total}, the number of vectors in the index")
        k = int(k)  # NumPy's small integers overflow below
        if oversample < 1:
            raise ValueError(f"oversample is {oversample}, wanted at least 1")
        threads = num_threads or self._threads or core.default_num_threads()
        wanted = min(total, k * oversample + 16) if self._rescore else k
        scores, ids = core.search(
            [(s.vectors, s.scale) for s in segments],
            self._dtype,
            self._dim,
            self._stride,
            rows,
            int(wanted),
            threads,
        )
        if self._rescore:
            originals = [(s.originals, None) for s in segments]
            scores, ids = core.rescore(originals, self._dim, rows, ids, int(k), threads)  # type: ignore[arg-type]
        if np.ndim(queries) == 1:
            return scores[0], ids[0]
        return scores, ids

    def text(self, i: int) -> str:
        """The text of vector i.

        Raises:
            IndexError: no such vector.
            ValueError: the vectors came without texts.
        """
        segments = self._present()
        starts = self._starts_of(segments)
        if not 0 <= i < starts[-1]:
            raise IndexError(f"id is {i}, wanted 0..{starts[-1] - 1}")
        if not self._has_texts:
            raise ValueError("the vectors came without texts: pass them to add()")
        place = bisect.bisect_right(starts, i) - 1
        return segments[place].text(i - starts[place])

    def reconstruct(self, ids: Any) -> FloatArray:
        """The float32 vectors [len(ids), dim] of these ids, as stored: rounded in fewer bits."""
        segments = self._present()
        starts = np.asarray(self._starts_of(segments))
        try:
            places = np.asarray(ids, np.int64).reshape(-1)
        except OverflowError as error:
            raise IndexError(f"an id is no 64-bit number, wanted 0..{starts[-1] - 1}") from error
        if places.size and (places.min() < 0 or places.max() >= starts[-1]):
            raise IndexError(
                f"ids reach {places.min()}..{places.max()}, wanted 0..{starts[-1] - 1}"
            )
        rows = np.empty((len(places), self._dim), np.float32)
        which = np.searchsorted(starts, places, side="right") - 1
        for segment in np.unique(which):
            here = which == segment
            rows[here] = self._floats(segments[segment], places[here] - starts[segment])
        return rows

    # Keeping it.

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the index, or append to the file that it was loaded from or saved to last.

        A new file appears under its name when it is whole. An append is on the disk before this
        returns; a process that is killed in the middle of one loses nothing that was saved. What
        another writer has put into the file meanwhile is never overwritten.

        Args:
            path: the file.
            overwrite: replace a file that is there and is not this index's own.

        Raises:
            FileNotFoundError: the folder does not exist.
            FileExistsError: path is there, is not this index's own file, and overwrite is False.
            BlockingIOError: another process writes to the file.
            ValueError: another writer has appended to the file or replaced it since, or it is
                damaged.
            OSError: the disk is full: the file is as it was.
            RuntimeError: called by a signal handler while the same thread adds or saves.
        """
        path = Path(path)
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path.parent}: the folder does not exist")
        with self._changing():
            self._present()
            if self._is_own(path):
                with open_locked(path) as file:
                    about, tail = read_tail(file, path)
                    if tail != self._tail:
                        raise ValueError(
                            f"{path}: another writer has appended to it since it was loaded here: "
                            "load it again and add what is missing"
                        )
                    if about == self._about() and tail.version == 2:
                        # Each segment counts as saved as soon as it is: a failure in the next one
                        # must not append it twice.
                        for self._tail in append_segments(  # noqa: B020
                            file, tail, self._segments[self._num_saved :]
                        ):
                            self._num_saved += 1
                    else:  # bound to a model since, or of an older format: another header
                        self._write(path, may_exist=True)
            elif not path.exists():
                self._write(path, may_exist=False)
            elif overwrite:
                with open_locked(path):  # nobody appends to it meanwhile
                    self._write(path, may_exist=True)
            elif self._path == path.resolve():
                raise ValueError(
                    f"{path}: another writer has replaced it since it was loaded or saved here: "
                    "load it again and add what is missing"
                )
            else:
                raise FileExistsError(
                    f"{path} exists and is not the file that this index was loaded from or saved "
                    "to last: load it and add to it, give another name, or pass overwrite=True"
                )

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        mmap: bool = True,
        verify: bool = False,
        num_threads: int | None = None,
    ) -> Index:
        """Open a saved index.

        Args:
            path: the file.
            mmap: map it, so that it opens at once and memory is shared between processes; else read
                it. Nobody may shorten the file while it is mapped: every call checks that nobody
                has.
            verify: compare every byte with the checksums; else only what was written last, where
                that is at most 64 MiB.
            num_threads: of a search; the default of the machine if None.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not an index, a newer version, truncated or damaged.
        """
        path = Path(path)
        index = cls._from_about(path, read_about(path), num_threads)
        content = read_index(path, index._layout(), mmap, verify)
        if content.about != index._about():
            raise ValueError(f"{path}: another writer has replaced it just now: load it again")
        index._segments, index._mapped = content.segments, content.mapped
        index._check_parts(path)
        index._remember(path, content.tail, content.status)
        return index

    @classmethod
    def repair(cls, path: str | Path, output: str | Path) -> list[str]:
        """Write what is whole of a damaged file to another one.

        Args:
            path: the damaged file, which stays as it is.
            output: a file that does not exist.

        Returns:
            What is missing or damaged, in words; nothing where the file is whole. Where vectors are
            lost, the ids of those that follow become smaller.

        Raises:
            FileNotFoundError: no such file, or output's folder does not exist.
            FileExistsError: output exists.
            ValueError: not an index, or its header is damaged.
        """
        path, output = Path(path), Path(output)
        if os.path.lexists(output):
            raise FileExistsError(f"{output} exists; give the name of a new file")
        found = recover(path, lambda about: cls._from_about(path, about)._layout())
        index = cls._from_about(path, found.content.about)
        index._segments = found.content.segments
        index._check_parts(path)
        index._write(output, may_exist=False)
        return found.losses

    # Below: how it is done.

    @property
    def _stride(self) -> int:
        # Tiles of codes are read four dimensions at a time.
        return -(-self._dim // 4) * 4 if self._dtype == "int8" else self._dim

    @classmethod
    def _from_about(
        cls, path: Path, about: dict[str, Any], num_threads: int | None = None
    ) -> Index:
        """An empty index as a file's header describes it."""
        try:
            model = about["model"]
            if not isinstance(about["rescore"], bool):
                raise ValueError("rescore is neither true nor false")
            if model is not None:
                name, probe = model["name"], model["probe"]
                if not isinstance(name, str) or not isinstance(probe, list):
                    raise ValueError("model has no name and probe")
                if not all(type(x) in (int, float) and abs(x) < 1e30 for x in probe):
                    raise ValueError("model has a probe that is no vector")
            index = cls(
                about["dim"],
                about["dtype"],
                about["metric"],
                rescore=about["rescore"],
                num_threads=num_threads,
            )
        except KeyError as error:
            raise ValueError(f"{path}: the header lacks {error}") from error
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: the header is wrong: {error}") from error
        if model is not None and len(model["probe"]) != index.dim:
            raise ValueError(f"{path}: the header is wrong: model has another dimension")
        index._model = model
        return index

    def _check_parts(self, path: Path) -> None:
        """Every segment has what the header promises."""
        wanted = {"vectors"}
        if self._dtype == "int8":
            wanted.add("scale")
        if self._rescore:
            wanted.add("originals")
        for number, segment in enumerate(self._segments):
            if self._has_texts is None:
                self._has_texts = segment.text_offsets is not None
            if (segment.text_offsets is not None) != self._has_texts:
                raise ValueError(f"{path}: some of its vectors have texts and some have none")
            for part in sorted(wanted):
                if getattr(segment, part) is None:
                    raise ValueError(f"{path}: segment {number} lacks its {part}")

    def _present(self) -> list[Segment]:
        """The segments, all of whose bytes are there: the only way to read them.

        The list is never changed in place, so a search goes on with what it began with while
        another thread adds.
        """
        with self._lock:
            if self._mapped is not None:
                self._mapped.check()
            return self._segments

    def _starts_of(self, segments: list[Segment]) -> list[int]:
        """The id of each segment's first vector, and the number of all."""
        known = self._starts  # one look: another thread may add meanwhile
        if known[0] is not segments:  # which is never changed in place
            counts = (segment.count for segment in segments)
            self._starts = known = segments, list(itertools.accumulate(counts, initial=0))
        return known[1]

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Other threads wait here; a signal handler of the same thread cannot, and is refused."""
        with self._lock:
            if self._is_changing:
                raise RuntimeError(
                    "the index is in the middle of an add or a save of this thread, which a signal "
                    "handler interrupted: note the signal in the handler and add or save afterwards"
                )
            try:
                self._is_changing = True
                yield
            finally:
                self._is_changing = False

    def _layout(self) -> Layout:
        dtype = {"float32": "<f4", "bfloat16": "<u2", "int8": "u1"}[self._dtype]
        return {
            "vectors": (dtype, self._stride),
            "scale": ("<f4", 2),
            "originals": ("<f4", self._dim),
            "text_offsets": ("<i8", None),
            "text_bytes": ("u1", None),
        }

    def _about(self) -> dict[str, Any]:
        return {
            "dim": self._dim,
            "dtype": self._dtype,
            "metric": self._metric,
            "rescore": self._rescore,
            "model": self._model,
        }

    def _checked(self, name: str, value: Any) -> FloatArray:
        """Rows [n, dim] float32, of length 1 with cosine; a copy, which nobody else can change."""
        array = np.asarray(value.detach().cpu().numpy() if native.is_tensor(value) else value)
        if array.dtype.kind not in "fiu":
            raise TypeError(f"{name} has dtype {array.dtype}, wanted float32")
        if array.ndim == 1:
            array = array[None, :]
        if array.ndim != 2 or array.shape[1] != self._dim:
            raise ValueError(
                f"{name} has shape {array.shape}, wanted [n, {self._dim}] as the index has"
            )
        rows: FloatArray = np.empty(array.shape, np.float32)
        for begin in range(0, len(rows), _ROWS_AT_ONCE):
            some = rows[begin : begin + _ROWS_AT_ONCE]
            with np.errstate(over="ignore"):  # an infinity, which is refused below
                some[...] = array[begin : begin + _ROWS_AT_ONCE]
            squares = np.einsum("ij,ij->i", some, some)
            if not np.isfinite(squares).all():
                row = begin + int(np.flatnonzero(~np.isfinite(squares))[0])
                raise ValueError(
                    f"{name}[{row}] holds a NaN, an infinity or numbers beyond float32"
                )
            if self._metric == "cosine":
                if not (squares > _LEAST_SQUARE).all():
                    row = begin + int(np.flatnonzero(squares <= _LEAST_SQUARE)[0])
                    raise ValueError(
                        f"{name}[{row}] is a vector of zeros, or nearly: its cosine is not defined"
                    )
                some[...] = core.l2_normalize(some)
        return rows

    def _stored(self, rows: FloatArray, texts: Sequence[str] | None) -> Segment:
        if self._dtype == "float32":
            segment = Segment(rows)
        elif self._dtype == "bfloat16":
            segment = Segment(core.to_bfloat16(rows))
        else:
            codes, scale = core.quantize_vectors(rows, self._stride)
            segment = Segment(codes, scale, rows if self._rescore else None)
        if texts is not None:
            encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
            lengths = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
            segment.text_offsets = lengths
            segment.text_bytes = np.frombuffer(b"".join(encoded), np.uint8)
        return segment

    def _joined_with(self, segment: Segment) -> list[Segment]:
        """Return the segments and one more; unsaved ones of equal size are joined."""
        segments = [*self._segments, segment]
        while len(segments) - self._num_saved >= 2:
            earlier, later = segments[-2:]
            if earlier.count > later.count or earlier.count + later.count > _JOINED_VECTORS:
                break
            segments[-2:] = [_joined(earlier, later)]
        return segments

    def _floats(self, segment: Segment, rows: Any) -> FloatArray:
        if segment.originals is not None:
            return np.asarray(segment.originals[rows])
        stored = segment.vectors[rows]
        if self._dtype == "bfloat16":
            return np.asarray((stored.astype(np.uint32) << 16).view(np.float32))
        if segment.scale is not None:
            scale, offset = segment.scale[rows].T
            codes = stored[:, : self._dim].astype(np.float32)
            return np.asarray(codes * scale[:, None] + offset[:, None])
        return np.asarray(stored)

    def _is_own(self, path: Path) -> bool:
        if self._file is None or not path.exists():
            return False
        status = path.stat()
        return (status.st_dev, status.st_ino) == self._file

    def _write(self, path: Path, may_exist: bool) -> None:
        """The whole index as a new file, which is this index's own from then on."""

        def written(tail: Tail, status: os.stat_result) -> None:
            self._remember(path, tail, status)

        try:
            write_index(path, self._about(), self._segments, may_exist, written)
        except FileExistsError as error:
            raise ValueError(
                f"{path}: another writer has made it meanwhile: load it and add what is missing"
            ) from error

    def _remember(self, path: Path, tail: Tail, status: os.stat_result) -> None:
        self._path, self._file, self._tail = path.resolve(), (status.st_dev, status.st_ino), tail
        self._num_saved = len(self._segments)


def _copied(segment: Segment) -> Segment:
    arrays: Any = {part: None if a is None else a.copy() for part, a in vars(segment).items()}
    return Segment(**arrays)


def _joined(a: Segment, b: Segment) -> Segment:
    def both(part: str) -> Any:
        x, y = getattr(a, part), getattr(b, part)
        return None if x is None else np.concatenate([x, y])

    offsets = None
    if a.text_offsets is not None and b.text_offsets is not None:
        offsets = np.concatenate([a.text_offsets, a.text_offsets[-1] + b.text_offsets[1:]])
    return Segment(both("vectors"), both("scale"), both("originals"), offsets, both("text_bytes"))
