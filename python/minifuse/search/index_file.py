"""The file of an index: a header, then segments of vectors that are appended one by one.

    header    magic (16 bytes, the last is the version), size of the JSON (u32), CRC-32 of it (u32),
              the JSON; zeros up to a multiple of 4,096
    segment   its head, alone in a sector of 512 bytes; then the parts, each padded to 64 bytes;
              zeros up to a multiple of 512
    head      magic, salt of the file, number of vectors before it (u64), count (u64), bytes of each
              part (5 x u64), CRC-32 of all parts, CRC-32 of the head before it, CRC-32 of this head

A segment's parts are written and seen to the disk before its head is: a writer that is killed
leaves zeros where the head would be, and what follows is overwritten by the next one. A disk writes
a sector whole or not at all, so a head is never torn. Heads are chained, and the salt, a random
number that the header holds, tells them from bytes of a text: a valid head behind a missing one
means damage, not an unfinished append, and is never cut off. Integers are little-endian.

Version 1 had heads of 128 bytes without salt and chain, at multiples of 64 bytes. It is read, and
written anew as version 2 by the next save.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import secrets
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from minifuse.files.whole import replacing

__all__ = [
    "PARTS",
    "Content",
    "Damage",
    "MappedFile",
    "Segment",
    "Tail",
    "append_segments",
    "open_locked",
    "read_about",
    "read_index",
    "read_tail",
    "recover",
    "write_index",
]

Array = npt.NDArray[Any]
# part -> (dtype, columns, or None for one dimension)
Layout = dict[str, tuple[Any, int | None]]

_MAGIC = b"minifuse index\0"
_VERSION = 2
_SEGMENT_MAGIC = b"vectors\0"
_SECTOR = 512
_ALIGNMENT = 64
_PAGE = 4096
_LARGEST_HEADER = 16 << 20
PARTS = ("vectors", "scale", "originals", "text_offsets", "text_bytes")
_HEADS = {1: struct.Struct("<8sQ5QI"), 2: struct.Struct("<8s8sQQ5QII")}
_HEAD_BYTES = {1: 128, 2: _SECTOR}
_STEP = {1: _ALIGNMENT, 2: _SECTOR}  # heads lie at multiples of it
# The newest segment is compared with its checksum when an index is opened, up to this size.
_CHECKED_AT_OPEN_BYTES = 64 << 20
# Python hears of Ctrl-C between two pieces of this size.
_BYTES_AT_ONCE = 32 << 20


class Tail(NamedTuple):
    """End of the file: the place of the next segment, and what its head must say.

    Attributes:
        version: of the file's format.
        salt: of the file; empty in version 1.
        end: the byte at which the next head goes.
        num_vectors: before it.
        head_checksum: of the last head; 0 before the first one.
    """

    version: int
    salt: bytes
    end: int
    num_vectors: int
    head_checksum: int


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
        """Number of vectors."""
        return len(self.vectors)

    def text(self, i: int) -> str:
        """Return the text of vector i of this segment."""
        assert self.text_offsets is not None
        begin, end = self.text_offsets[i : i + 2]
        data = b"" if self.text_bytes is None else bytes(self.text_bytes[begin:end])
        return data.decode("utf-8", "surrogatepass")


class MappedFile:
    """A file that is mapped into memory, and a check that all of it is still there."""

    def __init__(self, file: BinaryIO, path: Path, size: int) -> None:
        self._path = path
        # Not what lies behind: an append that was never finished may be cut off at any time.
        self._map = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)

    def check(self) -> None:
        """Raise where the file was cut off: reading past its end would end the process.

        Raises:
            ValueError: it has become shorter since it was opened.
        """
        if self._map.size() < len(self._map):
            raise ValueError(f"{self._path}: the file has become shorter since it was opened")

    def array(self, dtype: Any, count: int, offset: int) -> Array:
        """Return a view of ``count`` numbers."""
        return np.frombuffer(self._map, dtype, count, offset)


@dataclass
class Content:
    """Contents of a file.

    Attributes:
        about: the header's JSON without the salt.
        segments: in the order in which they were appended.
        tail: where the next one goes.
        status: of the file that was read.
        mapped: the file behind the arrays; None where they were read.
    """

    about: dict[str, Any]
    segments: list[Segment]
    tail: Tail
    status: os.stat_result
    mapped: MappedFile | None = None


class Damage(ValueError):
    """A file that is truncated or damaged; the message says where."""


def _padded(size: int, multiple: int = _ALIGNMENT) -> int:
    return -(-size // multiple) * multiple


def _damage(path: Path, text: str) -> Damage:
    return Damage(
        f"{path}: {text}; `minifuse index repair` writes what is whole of it to another file"
    )


# ---- reading ---------------------------------------------------------------------------------


def _read_header(file: BinaryIO, path: Path) -> tuple[dict[str, Any], Tail]:
    """The header's JSON and where the segments begin."""
    start = file.read(len(_MAGIC) + 9)
    if start[: len(_MAGIC)] != _MAGIC or len(start) < len(_MAGIC) + 9:
        raise ValueError(f"{path}: not an index of minifuse")
    version = start[len(_MAGIC)]
    if version not in _HEADS:
        raise ValueError(
            f"{path}: version {version} of the format, wanted {_VERSION}: a newer minifuse wrote it"
        )
    size, checksum = struct.unpack("<II", start[len(_MAGIC) + 1 :])
    text = file.read(size) if size <= _LARGEST_HEADER else b""
    if len(text) != size or zlib.crc32(text) != checksum:
        raise ValueError(f"{path}: the header is damaged")
    try:
        about = json.loads(text)
        salt = b"" if version == 1 else bytes.fromhex(about.pop("salt"))
        if not isinstance(about, dict) or len(salt) not in (0, 8):
            raise ValueError("no object with a salt")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: the header is damaged ({error})") from error
    return about, Tail(version, salt, _padded(len(start) + size, _PAGE), 0, 0)


def read_about(path: Path) -> dict[str, Any]:
    """Read the header's JSON alone.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an index, or another version.
    """
    with path.open("rb") as file:
        return _read_header(file, path)[0]


class _Head(NamedTuple):
    begin: int  # of the parts
    end: int
    first: int
    num_vectors: int
    sizes: list[int]
    checksum: int  # of the parts
    previous: int  # the checksum of the head before
    own: int


def _parse_head(data: bytes, offset: int, version: int, salt: bytes) -> _Head | None:
    """The head at ``offset`` whose bytes are ``data``; None where they are no head of this file."""
    layout = _HEADS[version]
    if len(data) < layout.size + 4 or data[:8] != _SEGMENT_MAGIC:
        return None
    if version == 1:
        _, count, *sizes, checksum = layout.unpack_from(data)
        first = previous = 0
    else:
        _, given, first, count, *sizes, checksum, previous = layout.unpack_from(data)
        if given != salt:
            return None
    own = zlib.crc32(data[: layout.size])
    if struct.unpack_from("<I", data, layout.size)[0] != own:
        return None
    begin = offset + _HEAD_BYTES[version]
    end = _padded(begin + sum(map(_padded, sizes)), _STEP[version])
    return _Head(begin, end, first, count, sizes, checksum, previous, own)


def _find_head(file: BinaryIO, offset: int, tail: Tail) -> tuple[int, _Head] | None:
    """The first valid head at or behind ``offset``, and where it is."""
    magic = _SEGMENT_MAGIC + tail.salt
    step, head_bytes = _STEP[tail.version], _HEAD_BYTES[tail.version]
    # Blocks are multiples of every step and overlap by a head. They grow: usually the head is near.
    block = 1 << 12
    while True:
        file.seek(offset)
        data = file.read(block + head_bytes)
        place = data.find(magic)
        while place >= 0:
            at = offset + place
            if at % step == 0:
                head = _parse_head(data[place : place + head_bytes], at, tail.version, tail.salt)
                if head is not None:
                    return at, head
            place = data.find(magic, place + 1)
        if len(data) <= block:
            return None
        offset += block
        block = min(2 * block, 1 << 24)


def _heads(file: BinaryIO, path: Path, tail: Tail) -> Iterator[tuple[_Head, Tail]]:
    """Every segment's head, and the tail behind it.

    Raises:
        Damage: a head that is not what the chain wants, a file that ends within a segment, or a
            valid head behind a missing one.
    """
    while True:
        seen = _state(file, tail)
        try:
            head = _next_head(file, path, tail, seen)
        except Damage:
            # A writer may have appended between two looks; then there is nothing wrong.
            if _state(file, tail) == seen:
                raise
            continue
        if head is None:
            return
        tail = tail._replace(
            end=head.end, num_vectors=tail.num_vectors + head.num_vectors, head_checksum=head.own
        )
        yield head, tail


def _state(file: BinaryIO, tail: Tail) -> tuple[int, bytes]:
    """The file's size, and the bytes where the next head would be."""
    size = os.fstat(file.fileno()).st_size
    file.seek(tail.end)
    return size, file.read(_HEAD_BYTES[tail.version])


def _next_head(file: BinaryIO, path: Path, tail: Tail, state: tuple[int, bytes]) -> _Head | None:
    """The head behind the tail; None where the segments end."""
    size, data = state
    offset = tail.end
    if offset == size:
        return None
    if offset + _HEAD_BYTES[tail.version] > size:
        raise _damage(path, f"truncated at byte {size}, wanted more from {offset} on")
    if not any(data):  # a writer was killed here, unless there is more of the chain behind it
        later = _find_head(file, offset + len(data), tail)
        if later is not None:
            raise _damage(
                path, f"damaged at byte {offset}: zeros before the vectors at byte {later[0]}"
            )
        return None
    head = _parse_head(data, offset, tail.version, tail.salt)
    if head is None:
        raise _damage(path, f"damaged at byte {offset}")
    if tail.version > 1 and (head.first, head.previous) != (tail.num_vectors, tail.head_checksum):
        raise _damage(
            path,
            f"damaged at byte {offset}: vectors from {head.first} on follow {tail.num_vectors}",
        )
    if head.end > size:
        raise _damage(
            path, f"truncated: the vectors at byte {offset} end at {head.end}, the file at {size}"
        )
    return head


def _has_checksum(file: BinaryIO, head: _Head) -> bool:
    actual, left = 0, sum(map(_padded, head.sizes))
    file.seek(head.begin)
    while left > 0:
        data = file.read(min(left, _BYTES_AT_ONCE))
        if not data:
            return False
        actual = zlib.crc32(data, actual)
        left -= len(data)
    return actual == head.checksum


def _check(file: BinaryIO, path: Path, head: _Head) -> None:
    if not _has_checksum(file, head):
        raise _damage(path, f"the vectors at byte {head.begin} do not match their checksum")


def _read_all(file: BinaryIO, offset: int, into: memoryview) -> bool:
    """Fill the memory from the file; False where the file ends before."""
    file.seek(offset)
    for begin in range(0, len(into), _BYTES_AT_ONCE):
        piece = into[begin : begin + _BYTES_AT_ONCE]
        if file.readinto(piece) != len(piece):  # type: ignore[attr-defined]
            return False
    return True


def _segment(
    file: BinaryIO, path: Path, head: _Head, layout: Layout, mapped: MappedFile | None
) -> Segment:
    parts: dict[str, Array] = {}
    offset = head.begin
    for part, size in zip(PARTS, head.sizes, strict=True):
        if size:
            dtype, columns = layout[part]
            count = size // np.dtype(dtype).itemsize
            rows = {"text_offsets": head.num_vectors + 1, "text_bytes": size}.get(
                part, head.num_vectors
            )
            if count != rows * (columns or 1) or size % np.dtype(dtype).itemsize:
                raise _damage(path, f"{part} of {head.num_vectors} vectors take {size} bytes")
            if mapped is not None:
                array = mapped.array(dtype, count, offset)
            else:
                array = np.empty(count, dtype)
                if not _read_all(file, offset, array.data.cast("B")):
                    raise _damage(path, f"truncated within {part} at byte {offset}")
            parts[part] = array.reshape(-1, columns) if columns else array
        offset += _padded(size)
    if head.num_vectors < 1 or "vectors" not in parts:
        raise _damage(path, f"the segment at byte {head.begin} holds no vectors")
    if "text_offsets" in parts:  # texts that are all empty take no bytes
        parts.setdefault("text_bytes", np.zeros(0, np.uint8))
    return Segment(**parts)


def read_index(path: Path, layout: Layout, use_mmap: bool = True, checks: bool = False) -> Content:
    """Read a file.

    Args:
        path: the file.
        layout: part -> (dtype, columns, or None for one dimension).
        use_mmap: map the file instead of reading it.
        checks: compare every byte with the checksums; else only the heads', and the last segment's
            where it has at most 64 MiB.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an index, another version, or damaged (where is said).
    """
    with path.open("rb") as file:
        about, tail = _read_header(file, path)
        heads: list[_Head] = []
        for head, behind in _heads(file, path, tail):
            heads.append(head)
            tail = behind
        for place, head in enumerate(heads):
            is_last_and_small = (
                place == len(heads) - 1 and head.end - head.begin <= _CHECKED_AT_OPEN_BYTES
            )
            if checks or is_last_and_small:
                _check(file, path, head)
        mapped = MappedFile(file, path, tail.end) if use_mmap and heads else None
        segments = [_segment(file, path, head, layout, mapped) for head in heads]
        return Content(about, segments, tail, os.fstat(file.fileno()), mapped)


def read_tail(file: BinaryIO, path: Path) -> tuple[dict[str, Any], Tail]:
    """Read the header's JSON of an open file, and where the next segment would go.

    Raises:
        ValueError: not an index, another version, or damaged.
    """
    file.seek(0)
    about, tail = _read_header(file, path)
    for _, behind in _heads(file, path, tail):
        tail = behind
    return about, tail


# ---- writing ---------------------------------------------------------------------------------


def _bytes_of(array: Array) -> memoryview:
    return np.ascontiguousarray(array).data.cast("B")


def _write_all(file: BinaryIO, data: bytes | memoryview, checksum: int = 0) -> int:
    """Write all of it, and return the checksum of what came before and it."""
    view = memoryview(data)
    for begin in range(0, len(view), _BYTES_AT_ONCE):
        left = view[begin : begin + _BYTES_AT_ONCE]
        checksum = zlib.crc32(left, checksum)
        while len(left):
            left = left[file.write(left) :]
    return checksum


def _append_segment(file: BinaryIO, segment: Segment, tail: Tail) -> Tail:
    begin = tail.end
    arrays = (getattr(segment, part) for part in PARTS)
    parts = [memoryview(b"") if a is None else _bytes_of(a) for a in arrays]
    checksum = 0
    try:
        file.truncate(begin)  # what a killed writer left behind
        file.seek(begin + _SECTOR)
        for part in parts:
            checksum = _write_all(file, part, checksum)
            checksum = _write_all(file, bytes(_padded(len(part)) - len(part)), checksum)
        end = _padded(file.tell(), _SECTOR)
        _write_all(file, bytes(end - file.tell()))
        os.fsync(file.fileno())
        head = _HEADS[_VERSION].pack(
            _SEGMENT_MAGIC,
            tail.salt,
            tail.num_vectors,
            segment.count,
            *map(len, parts),
            checksum,
            tail.head_checksum,
        )
        own = zlib.crc32(head)
        head += struct.pack("<I", own)
        file.seek(begin)
        _write_all(file, head + bytes(_SECTOR - len(head)))
        os.fsync(file.fileno())
    except BaseException:
        # As if nothing had been tried: also where the head is written, but perhaps not on the disk.
        with contextlib.suppress(OSError):
            file.truncate(begin)
            os.fsync(file.fileno())
        raise
    return tail._replace(end=end, num_vectors=tail.num_vectors + segment.count, head_checksum=own)


def append_segments(file: BinaryIO, tail: Tail, segments: Iterable[Segment]) -> Iterator[Tail]:
    """Append to an unbuffered file; yields the tail behind each segment when it is on the disk.

    Args:
        file: of version 2, open for writing.
        tail: as read_tail found it: whatever lies behind it is overwritten.
        segments: each is appended whole, or not at all.

    Raises:
        OSError: the disk is full; what was there before stays whole.
    """
    for segment in segments:
        tail = _append_segment(file, segment, tail)
        yield tail


def write_index(
    path: Path,
    about: dict[str, Any],
    segments: Sequence[Segment],
    may_exist: bool,
    written: Callable[[Tail, os.stat_result], None],
) -> None:
    """Write a whole file, which appears when it is on the disk.

    Args:
        path: the file.
        about: the header's JSON.
        segments: all of them.
        may_exist: whether a file that is there is replaced.
        written: told where the next segment goes and the new file's status, as soon as the file has
            its name: also where what comes after that fails.

    Raises:
        FileExistsError: path exists and may not.
        OSError: the disk is full: what was there stays.
    """
    salt = secrets.token_bytes(8)
    text = json.dumps({"salt": salt.hex(), **about}).encode()
    header = _MAGIC + bytes([_VERSION]) + struct.pack("<II", len(text), zlib.crc32(text)) + text
    tail = Tail(_VERSION, salt, _padded(len(header), _PAGE), 0, 0)
    status = None
    try:
        with replacing(path, buffered=False, may_exist=may_exist) as file:
            _write_all(file, header + bytes(tail.end - len(header)))
            for behind in append_segments(file, tail, segments):
                tail = behind
            status = os.fstat(file.fileno())
    finally:
        if status is not None and path.exists() and os.path.samestat(status, path.stat()):
            written(tail, status)


@contextlib.contextmanager
def open_locked(path: Path) -> Iterator[BinaryIO]:
    """Open for appending, unbuffered; this process is the file's only writer until the block ends.

    Raises:
        FileNotFoundError: no such file.
        BlockingIOError: another process writes to it.
        ValueError: another process has put another file in its place.
    """
    with path.open("r+b", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                f"{path}: another process is writing to it; wait for it to end"
            ) from error
        # The name may stand for another file by now, and a lock on the old one protects nothing.
        try:
            if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                raise ValueError(f"{path}: another writer has replaced it; load it again")
            yield file
        finally:
            # A child that was forked meanwhile has the descriptor, too, and would keep the lock.
            fcntl.flock(file, fcntl.LOCK_UN)


# ---- repair ----------------------------------------------------------------------------------


@dataclass
class Recovered:
    """Undamaged parts of a file.

    Attributes:
        content: the segments that are, in their order.
        losses: what is missing or damaged, in words.
    """

    content: Content
    losses: list[str] = field(default_factory=list)


def recover(path: Path, layout_of: Any) -> Recovered:
    """Read every segment whose head and checksum are whole, wherever it lies.

    Args:
        path: the damaged file; its header must be whole.
        layout_of: about -> layout.

    Raises:
        ValueError: not an index, or a damaged header: nothing says what the bytes are.
    """
    with path.open("rb") as file:
        about, tail = _read_header(file, path)
        status = os.fstat(file.fileno())
        layout, size = layout_of(about), status.st_size
        result = Recovered(Content(about, [], tail, status))
        offset = tail.end
        # Bytes that may still be compared with checksums. No writer makes heads that lie within
        # each other's vectors, and to compare all of them could take for ever.
        left = 2 * size
        while (found := _find_head(file, offset, tail)) is not None:
            at, head = found
            if at != offset:
                result.losses.append(f"bytes {offset} to {at} hold no vectors that can be read")
            if tail.version > 1 and head.first != tail.num_vectors:
                result.losses.append(
                    f"vectors {tail.num_vectors} to {head.first - 1} are missing: the ids of what "
                    "follows become smaller"
                )
            tail = tail._replace(num_vectors=head.first + head.num_vectors)
            is_whole = head.end <= size and head.end - head.begin <= left
            if is_whole:
                left -= head.end - head.begin
                is_whole = _has_checksum(file, head)
            if not is_whole:
                result.losses.append(
                    f"{head.num_vectors} vectors at byte {at} are damaged and left out: the ids of "
                    "what follows become smaller"
                )
                offset = at + _STEP[tail.version]
                continue
            try:
                result.content.segments.append(_segment(file, path, head, layout, None))
            except Damage as error:
                result.losses.append(f"{error}: left out")
            offset = head.end
        file.seek(offset)
        if any(file.read(_HEAD_BYTES[tail.version])):  # zeros: an append that was never finished
            result.losses.append(f"bytes {offset} to {size} hold no vectors that can be read")
    return result
