"""Write vectors as .npy, .jsonl or .parquet, a window at a time, in constant memory.

An output appears when it is whole (whole.py): a killed run leaves no file that looks finished.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from minifuse.files.whole import replacing

__all__ = ["Writer", "open_writer"]

FloatArray = npt.NDArray[np.float32]


class Writer(Protocol):
    """Takes windows of texts and vectors."""

    def write(self, texts: list[str], vectors: FloatArray) -> None:
        """Append a window."""

    def finish(self) -> None:
        """Make the file whole."""


class _NpyWriter:
    """A float32 .npy whose header, of fixed size, is written last when the rows are counted."""

    _HEADER_BYTES = 128

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._file.write(b"\0" * self._HEADER_BYTES)
        self._shape = (0, 0)

    def write(self, texts: list[str], vectors: FloatArray) -> None:
        self._file.write(np.ascontiguousarray(vectors, "<f4").data)
        self._shape = (self._shape[0] + len(vectors), vectors.shape[1])

    def finish(self) -> None:
        description = {"descr": "<f4", "fortran_order": False, "shape": self._shape}
        text = repr(description).encode("latin1")
        text += b" " * (self._HEADER_BYTES - 11 - len(text)) + b"\n"
        magic = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little")
        self._file.seek(0)
        self._file.write(magic + text)

    def close(self) -> None:
        pass


class _JsonlWriter:
    """One {"text", "embedding"} a line."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, texts: list[str], vectors: FloatArray) -> None:
        for text, vector in zip(texts, vectors, strict=True):
            row = {"text": text, "embedding": vector.tolist()}
            self._file.write((json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8"))

    def finish(self) -> None:
        pass

    close = finish


class _ParquetWriter:
    """Columns text and embedding (a fixed-size list of float32)."""

    def __init__(self, file: BinaryIO) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise ImportError(
                "writing .parquet needs pyarrow, which is not installed: "
                "pip install 'minifuse[parquet]'"
            ) from error
        self._arrow = pyarrow
        self._file = file
        self._writer: Any = None

    def write(self, texts: list[str], vectors: FloatArray) -> None:
        arrow = self._arrow
        flat = arrow.array(np.ascontiguousarray(vectors).reshape(-1))
        lists = arrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        table = arrow.table({"text": arrow.array(texts, arrow.string()), "embedding": lists})
        if self._writer is None:
            self._writer = arrow.parquet.ParquetWriter(self._file, table.schema)
        self._writer.write_table(table)

    def finish(self) -> None:
        if self._writer is None:
            self.write([], np.zeros((0, 1), np.float32))
        self._writer.close()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


_WRITERS: dict[str, Any] = {
    ".npy": _NpyWriter,
    ".jsonl": _JsonlWriter,
    ".parquet": _ParquetWriter,
}


class open_writer:
    """A writer for path by its ending (.npy, .jsonl, .parquet), as a context manager.

    The file appears under its name when the block ends without an error; otherwise what was there
    before stays.

    Raises:
        ValueError: another ending.
        FileNotFoundError: the folder does not exist.
        ImportError: .parquet without pyarrow.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        if self._path.suffix not in _WRITERS:
            raise ValueError(f"{path}: wanted an ending of {', '.join(_WRITERS)}")
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Writer:
        # The file is closed, renamed or removed by the stack, whatever the writer did.
        with self._stack:
            file = self._stack.enter_context(replacing(self._path))
            self._writer = _WRITERS[self._path.suffix](file)
            self._stack = self._stack.pop_all()
        return self._writer  # type: ignore[no-any-return]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._stack:
            try:
                if kind is None:
                    self._writer.finish()
                else:
                    raise value  # type: ignore[misc]  # the stack must know that it failed
            finally:
                with contextlib.suppress(Exception):  # on a full disk closing fails once more
                    self._writer.close()
