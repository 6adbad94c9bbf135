"""The tensors of a folder, in whichever files its weights lie: safetensors or what torch.save
wrote, one file or several with an index.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
import numpy.typing as npt

from minifuse.files.safetensors_file import SafetensorsFile
from minifuse.models.description import read_object

__all__ = ["WEIGHT_FILES", "TensorFile", "find_weights", "is_weight_file", "open_checkpoint"]

# Names of weights, the first that is there serves.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_SHARDS = ("model-*.safetensors", "pytorch_model-*.bin")


class TensorFile(Protocol):
    """Named tensors, read one at a time."""

    def __enter__(self) -> TensorFile: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def names(self) -> Iterable[str]:
        """The names of all tensors."""

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """A copy of a tensor as float32, C-contiguous."""

    def pieces(self, name: str) -> tuple[tuple[int, ...], Iterator[npt.NDArray[np.float32]]]:
        """A tensor's shape, and copies of its rows one after the other, some at a time."""


def find_weights(folder: Path) -> Path | None:
    """Return the file that a folder's weights are read from, an index among them."""
    return next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)


def is_weight_file(name: str) -> bool:
    """Return whether a file of this name holds float weights of a model, or their index."""
    return name in WEIGHT_FILES or any(fnmatch.fnmatchcase(name, one) for one in _SHARDS)


def open_checkpoint(path: Path) -> TensorFile:
    """Open what find_weights found, or any single file of weights.

    Raises:
        FileNotFoundError: the file, or one that an index names, is missing.
        ValueError: it is damaged.
    """
    if path.name.endswith(".index.json"):
        return _Shards(path)
    if path.suffix != ".bin":
        return SafetensorsFile(path)
    # Few models need it, and every import would pay for its modules.
    from minifuse.files.torch_file import TorchFile

    return TorchFile(path)


class _Shards:
    """Several files and their index: name -> file. One is open at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open: TensorFile | None = None
        self._open_name = ""
        files = read_object(path).get("weight_map")
        if not isinstance(files, dict) or not all(
            isinstance(file, str) and is_weight_file(file) for file in files.values()
        ):
            raise ValueError(f"{path}: weight_map: wanted names of tensors and of files beside it")
        self._files: dict[str, str] = files
        for file in sorted(set(files.values())):
            if not (path.parent / file).is_file():
                raise FileNotFoundError(f"{path.parent / file} is missing, which {path.name} names")

    def __enter__(self) -> _Shards:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._open is not None:
            self._open.__exit__(kind, value, traceback)

    def names(self) -> list[str]:
        """The names of all tensors, those of one file together."""
        return sorted(self._files, key=self._files.__getitem__)

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """A copy of a tensor as float32, C-contiguous.

        Raises:
            ValueError: the file that the index names is damaged, or lacks the tensor.
        """
        return self._file_of(name).read(name)

    def pieces(self, name: str) -> tuple[tuple[int, ...], Iterator[npt.NDArray[np.float32]]]:
        """A tensor's shape, and copies of its rows one after the other, some at a time.

        Raises:
            ValueError: as read.
        """
        return self._file_of(name).pieces(name)

    def _file_of(self, name: str) -> TensorFile:
        if self._open is None or self._open_name != self._files[name]:
            self.__exit__(None, None, None)
            self._open = None
            self._open_name = self._files[name]
            self._open = open_checkpoint(self._path.parent / self._open_name)
        if name not in self._open.names():
            raise ValueError(
                f"{self._path.parent / self._open_name}: lacks {name!r}, which {self._path.name} "
                "says is there"
            )
        return self._open
