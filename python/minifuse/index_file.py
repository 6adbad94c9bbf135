"""The file of an index: a header, then segments of vectors that are appended one by one.

    header    magic (16 bytes), size of the JSON (u32), CRC-32 of it (u32), the JSON; zeros up to a
              multiple of 4,096
    segment   head, 128 bytes: magic, count (u64), bytes of each part (5 x u64), CRC-32 of all parts
              (u32), CRC-32 of the head before it (u32); then the parts, each padded to 64 bytes

A segment's parts are written and on the disk before its head is: a writer that is killed leaves
zeros where the head would be, and what follows is overwritten by the next one. Integers are
little-endian.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

__all__ = [
    "PARTS",
    "Segment",
    "append_segment",
    "open_locked",
    "read_about",
    "read_index",
    "write_index",
]

Array = npt.NDArray[Any]

_MAGIC = b"minifuse index\0\1"  # the last byte is the version
_SEGMENT_MAGIC = b"vectors\0"
_HEAD_BYTES = 128
_ALIGNMENT = 64
_PAGE = 4096
PARTS = ("vectors", "scale", "originals", "text_offsets", "text_bytes")
_HEAD = struct.Struct("<8sQ5QI")


@dataclass
class Segment:
    """Vectors of one append.

    ``vectors`` is [count, stride] of the index's type; ``scale`` [count, 2] float32 in int8,
    ``originals`` [count, dim] float32 where they are kept, ``text_offsets`` [count + 1] int64 into
    the UTF-8 ``text_bytes`` where there are texts; else None.
    """

    vectors: Array
    scale: Array | None = None
    originals: Array | None = None
    text_offsets: Array | None = None
    text_bytes: Array | None = None

    @property
    def count(self) -> int:
        """How many vectors."""
        return len(self.vectors)

    def text(self, i: int) -> str:
        """The text of vector i of this segment."""
        assert self.text_offsets is not None
        assert self.text_bytes is not None
        begin, end = self.text_offsets[i : i + 2]
        return bytes(self.text_bytes[begin:end]).decode("utf-8", "surrogatepass")


def _padded(size: int, multiple: int = _ALIGNMENT) -> int:
    return -(-size // multiple) * multiple


def _header(about: dict[str, Any]) -> bytes:
    text = json.dumps(about).encode()
    header = _MAGIC + struct.pack("<II", len(text), zlib.crc32(text)) + text
    return header + bytes(_padded(len(header), _PAGE) - len(header))


def _read_header(file: BinaryIO, path: Path) -> tuple[dict[str, Any], int]:
    """The header's JSON and where the segments begin."""
    start = file.read(len(_MAGIC) + 8)
    if start[: len(_MAGIC) - 1] != _MAGIC[:-1] or len(start) < len(_MAGIC) + 8:
        raise ValueError(f"{path}: not an index of minifuse")
    if start[len(_MAGIC) - 1] != _MAGIC[-1]:
        raise ValueError(
            f"{path}: version {start[len(_MAGIC) - 1]} of the format, wanted {_MAGIC[-1]}: a newer "
            "minifuse wrote it"
        )
    size, checksum = struct.unpack("<II", start[len(_MAGIC) :])
    text = file.read(size)
    if len(text) != size or zlib.crc32(text) != checksum:
        raise ValueError(f"{path}: the header is damaged")
    return json.loads(text), _padded(len(_MAGIC) + 8 + size, _PAGE)


def _bytes_of(array: Array) -> memoryview:
    return np.ascontiguousarray(array).data.cast("B")


def _write_all(file: BinaryIO, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while len(view):  # one call writes 2 GiB at most
        view = view[file.write(view) :]


def append_segment(file: BinaryIO, segment: Segment) -> None:
    """Write a segment at the position of an unbuffered file, its head last, and see it to the disk.

    Raises:
        OSError: the disk is full; what was there before stays whole.
    """
    begin = file.tell()
    arrays = (getattr(segment, part) for part in PARTS)
    parts = [memoryview(b"") if a is None else _bytes_of(a) for a in arrays]
    checksum = 0
    try:
        file.truncate(begin)  # what a killed writer left behind
        file.seek(begin + _HEAD_BYTES)
        for part in parts:
            padding = bytes(_padded(len(part)) - len(part))
            _write_all(file, part)
            _write_all(file, padding)
            checksum = zlib.crc32(padding, zlib.crc32(part, checksum))
        os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            file.truncate(begin)
            file.seek(begin)
        raise
    end = file.tell()
    head = _HEAD.pack(_SEGMENT_MAGIC, segment.count, *map(len, parts), checksum)
    head += struct.pack("<I", zlib.crc32(head))
    file.seek(begin)
    _write_all(file, head + bytes(_HEAD_BYTES - len(head)))
    os.fsync(file.fileno())
    file.seek(end)


def write_index(path: Path, about: dict[str, Any], segments: Iterable[Segment]) -> int:
    """A whole file, written aside and renamed when it is on the disk; returns where it ends."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w+b", buffering=0) as file:
            _write_all(file, _header(about))
            for segment in segments:
                append_segment(file, segment)
            end = file.tell()
            os.fsync(file.fileno())
        os.replace(partial, path)
        return end
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def open_locked(path: Path) -> Iterator[BinaryIO]:
    """The file for appending, unbuffered; this process is its only writer as long as it is open.

    Raises:
        FileNotFoundError: no such file.
        BlockingIOError: another process writes to it.
    """
    with path.open("r+b", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                f"{path}: another process is writing to it; wait for it to end"
            ) from error
        yield file


def read_about(path: Path) -> dict[str, Any]:
    """The header alone. Raises as read_index does."""
    with path.open("rb") as file:
        return _read_header(file, path)[0]


def _heads(path: Path, data: Array, offset: int) -> Iterator[tuple[int, int, int, list[int], int]]:
    """Of every whole segment: where its parts begin and end, count, sizes and checksum."""
    size = len(data)
    while offset != size:
        if offset + _HEAD_BYTES > size:
            raise ValueError(f"{path}: truncated at byte {size}, wanted more from {offset} on")
        head = bytes(data[offset : offset + _HEAD_BYTES])
        if not any(head):  # a writer was killed here
            return
        magic, count, *sizes, checksum = _HEAD.unpack(head[: _HEAD.size])
        (head_checksum,) = struct.unpack_from("<I", head, _HEAD.size)
        if magic != _SEGMENT_MAGIC or zlib.crc32(head[: _HEAD.size]) != head_checksum:
            raise ValueError(f"{path}: damaged at byte {offset}")
        begin = offset + _HEAD_BYTES
        end = begin + sum(map(_padded, sizes))
        if end > size:
            raise ValueError(
                f"{path}: truncated: the vectors at byte {offset} end at {end}, the file at {size}"
            )
        yield begin, end, count, sizes, checksum
        offset = end


def _check(path: Path, data: Array, begin: int, end: int, checksum: int) -> None:
    actual = 0
    for first in range(begin, end, 1 << 24):
        actual = zlib.crc32(_bytes_of(data[first : min(end, first + (1 << 24))]), actual)
    if actual != checksum:
        raise ValueError(f"{path}: the vectors at byte {begin} do not match their checksum")


def read_index(
    path: Path, layout: dict[str, tuple[Any, int | None]], mmap: bool = True, checks: bool = False
) -> tuple[list[Segment], int]:
    """The segments, and where the next one would go.

    Args:
        path: the file.
        layout: part -> (dtype, columns, or None for one dimension).
        mmap: map the file instead of reading it.
        checks: compare every byte with the checksums; else only the heads' and the last segment's,
            which alone can have missed the disk.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an index, another version, or damaged (where is said).
    """
    with path.open("rb") as file:
        _, end = _read_header(file, path)
        if mmap:
            data: Array = np.memmap(file, np.uint8, "r")
        else:
            file.seek(0)
            data = np.fromfile(file, np.uint8)
    segments, last = [], None
    for begin, end, count, sizes, checksum in _heads(path, data, end):  # noqa: B020
        segments.append(_segment(path, data, begin, count, sizes, layout))
        last = begin, end, checksum
        if checks:
            _check(path, data, *last)
    if last:
        _check(path, data, *last)
    return segments, end


def _segment(
    path: Path,
    data: Array,
    offset: int,
    count: int,
    sizes: Sequence[int],
    layout: dict[str, tuple[Any, int | None]],
) -> Segment:
    parts: dict[str, Array] = {}
    for part, size in zip(PARTS, sizes, strict=True):
        if size:
            dtype, columns = layout[part]
            array = data[offset : offset + size].view(dtype)
            rows = {"text_offsets": count + 1, "text_bytes": size}.get(part, count)
            if array.size != rows * (columns or 1):
                raise ValueError(f"{path}: {part} of {count} vectors take {size} bytes: damaged")
            parts[part] = array.reshape(-1, columns) if columns else array
        offset += _padded(size)
    return Segment(**parts)
