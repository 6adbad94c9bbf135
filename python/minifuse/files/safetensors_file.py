"""Tensors from a .safetensors file, one at a time, through a map that is never handed out.

Layout: an 8-byte little-endian length, that many bytes of JSON (name -> dtype, shape, data_offsets
into what follows), the data. Every claim of the header is checked before a byte is read by it.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["SafetensorsFile", "write_safetensors"]

# dtype -> what the bytes are read as; bfloat16 is the upper half of a float32.
_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "I8": np.int8,
    "U8": np.uint8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
}
_FLOATS = ("F64", "F32", "F16", "BF16")
_LARGEST_HEADER = 100_000_000
_PIECE_FLOATS = 1 << 20  # of a tensor that is read in pieces, at a time


class SafetensorsFile:
    """An open file: names, shapes, and copies of tensors as float32.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, or a header that contradicts itself or the file's size.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        size = self._path.stat().st_size
        if size < 8:
            raise ValueError(f"{self._path}: {size} bytes, too short for a safetensors file")
        with self._path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            self._entries = self._read_header(size)
        except BaseException:
            self._map.close()
            raise

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._map.close()

    def _fail(self, text: str) -> ValueError:
        return ValueError(f"{self._path}: {text}")

    def _read_header(self, size: int) -> dict[str, tuple[str, tuple[int, ...], int, int]]:
        length = int.from_bytes(self._map[:8], "little")
        if length > min(size - 8, _LARGEST_HEADER):
            raise self._fail(f"the header claims {length} bytes of a file of {size}: truncated?")
        try:
            header = json.loads(self._map[8 : 8 + length].decode("utf-8"))
        except RecursionError as error:
            raise self._fail("the header is nested too deeply") from error
        except ValueError as error:  # not JSON, not UTF-8, or a number of thousands of digits
            raise self._fail(f"the header is not JSON ({error})") from error
        if not isinstance(header, dict):
            raise self._fail(f"the header is a {type(header).__name__}, wanted an object")
        metadata = header.pop("__metadata__", None)
        self.metadata: dict[str, Any] = metadata if isinstance(metadata, dict) else {}
        data_start, data_size = 8 + length, size - 8 - length
        return {n: self._check_entry(n, e, data_start, data_size) for n, e in header.items()}

    def _check_entry(
        self, name: str, entry: Any, data_start: int, data_size: int
    ) -> tuple[str, tuple[int, ...], int, int]:
        try:
            dtype, shape = entry["dtype"], tuple(entry["shape"])
            begin, end = entry["data_offsets"]
        except (TypeError, KeyError, ValueError) as error:
            raise self._fail(f"tensor {name!r} lacks dtype, shape or data_offsets") from error
        if not isinstance(dtype, str):
            raise self._fail(f"tensor {name!r}: dtype is {dtype!r:.60}, wanted a string")
        if len(shape) > 8 or not all(
            type(n) is int and 0 <= n < 1 << 48 for n in (*shape, begin, end)
        ):
            raise self._fail(
                f"tensor {name!r}: shape {shape!r:.60} or offsets are not integers >= 0"
            )
        if not begin <= end <= data_size:
            raise self._fail(
                f"tensor {name!r} lies at {begin}..{end} of {data_size} bytes of data: truncated?"
            )
        if dtype in _DTYPES:
            wanted = math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize
            if end - begin != wanted:
                raise self._fail(
                    f"tensor {name!r}: {dtype} {shape} takes {wanted} bytes, "
                    f"the file gives {end - begin}"
                )
        return dtype, shape, data_start + begin, end - begin

    def names(self) -> list[str]:
        """The names of all tensors."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self._entries[name][1]

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """A copy of a tensor as float32, C-contiguous; its pages are given back to the system.

        Raises:
            ValueError: the dtype is not F64, F32, F16 or BF16, or the file has shrunk meanwhile.
        """
        return self._copy(name, _FLOATS, np.float32)

    def pieces(self, name: str) -> tuple[tuple[int, ...], Iterator[npt.NDArray[np.float32]]]:
        """A tensor's shape, and copies of its rows one after the other, a few MiB at a time.

        Raises:
            ValueError: as read, for each piece.
        """
        shape = self.shape(name)
        if not shape:
            return shape, iter([self.read(name)])
        step = max(1, _PIECE_FLOATS // max(1, math.prod(shape[1:])))
        starts = range(0, shape[0], step)
        return shape, (
            self._copy(name, _FLOATS, np.float32, slice(first, first + step)) for first in starts
        )

    def read_int8(self, name: str) -> npt.NDArray[np.int8]:
        """The same of an int8 tensor, as it is."""
        return self._copy(name, ("I8",), np.int8)

    def read_integers(self, name: str) -> npt.NDArray[np.int64]:
        """The same of integers of any width."""
        return self._copy(name, ("I64", "I32", "I16", "U8", "I8"), np.int64)

    def _copy(
        self, name: str, wanted: tuple[str, ...], result: Any, rows: slice | None = None
    ) -> npt.NDArray[Any]:
        dtype, shape, offset, size_bytes = self._entries[name]
        if dtype not in wanted:
            raise self._fail(
                f"tensor {name!r} has dtype {dtype}, wanted one of {', '.join(wanted)}"
            )
        if self._path.stat().st_size < offset + size_bytes:
            raise self._fail("the file has shrunk since it was opened")
        if rows is not None:
            row_bytes = size_bytes // shape[0]
            first, last, _ = rows.indices(shape[0])
            offset, size_bytes = offset + first * row_bytes, (last - first) * row_bytes
            shape = (last - first, *shape[1:])
        count = math.prod(shape)
        raw = np.frombuffer(self._map, _DTYPES[dtype], count, offset).reshape(shape)
        try:
            if dtype == "BF16":
                array: npt.NDArray[Any] = (raw.astype(np.uint32) << 16).view(np.float32)
            else:
                array = raw.astype(result)
        finally:
            # Ctrl-C here keeps this frame alive, and with a view on it the map could not be closed.
            del raw
        if hasattr(self._map, "madvise") and size_bytes:
            start = offset // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, start, offset + size_bytes - start)
        return array


def write_safetensors(
    path: str | Path, tensors: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]
) -> None:
    """Write float32 and int8 tensors.

    Raises:
        OSError: the disk is full, or the folder does not exist.
    """
    names = {np.dtype(np.float32): "F32", np.dtype(np.int8): "I8"}
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    # Wide items first, so that none lies across its own size.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].itemsize)
    end = 0
    for name, array in ordered:
        begin, end = end, end + array.nbytes
        header[name] = {
            "dtype": names[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    with Path(path).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, array in ordered:
            file.write(np.ascontiguousarray(array).data)
