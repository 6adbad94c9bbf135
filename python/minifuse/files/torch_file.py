"""Tensors from a file that torch.save wrote, without PyTorch and without executing anything of it.

The file is a zip archive (PyTorch 1.6 and later): data.pkl, a pickle that names the tensors, and
one stored member for the bytes of each storage. A pickle can name any function of any module for
whoever loads it. Here it may name those that rebuild tensors, and each stands for one of our own
that builds a description; any other name is refused before it is looked up.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["TorchFile"]

# Storages -> the type of their bytes; bfloat16 is the upper half of a float32.
_STORAGES: dict[str, str] = {
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",
    "DoubleStorage": "<f8",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "|b1",
}
_FLOATS = ("<f4", "<f2", "bfloat16", "<f8")
# Names and shapes of a hundred thousand tensors take a tenth of it.
_LARGEST_PICKLE = 100_000_000
_LARGEST_REPEATED = 1 << 20
_INSTRUCTIONS = (
    *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.MEMOIZE),
    *(pickle.BINPUT, pickle.LONG_BINPUT, pickle.BINGET, pickle.LONG_BINGET),
    *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BINFLOAT),
    *(pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1),
    *(pickle.BINUNICODE, pickle.SHORT_BINUNICODE),
    *(pickle.EMPTY_DICT, pickle.SETITEM, pickle.SETITEMS),
    *(pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS),
    *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
    *(pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.REDUCE, pickle.BUILD, pickle.BINPERSID),
)


class _Storage(NamedTuple):
    """A storage that a tensor lies in.

    Attributes:
        kind: the type of its elements, as _STORAGES says.
        key: its member of the archive.
        size: elements.
    """

    kind: str
    key: str
    size: int


class _Tensor(NamedTuple):
    """A tensor's place in a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> _Tensor:
    """In place of torch._utils._rebuild_tensor_v2; every number is checked."""
    numbers = (offset, *shape, *strides)
    if (
        not isinstance(storage, _Storage)
        or len(shape) != len(strides)
        or len(shape) > 8
        or not all(type(n) is int and 0 <= n < 1 << 48 for n in numbers)
    ):
        raise ValueError("a tensor's storage, shape or strides are damaged")
    # A view that repeats its storage may be small; no checkpoint has a large one.
    if math.prod(shape) > max(storage.size, _LARGEST_REPEATED):
        raise ValueError("a tensor is larger than its storage")
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if all(shape) and last >= storage.size:
        raise ValueError("a tensor lies beyond its storage")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


class _Dictionary(dict[str, Any]):
    """In place of collections.OrderedDict, empty at first: its items come by instructions."""

    def __init__(self) -> None:
        super().__init__()


def _put(target: Any, key: Any, value: Any) -> None:
    """target[key] = value, of a key with a quick hash: that of nested tuples may take for ever."""
    if not isinstance(target, dict) or not (type(key) is str or type(key) is int):
        raise ValueError(f"a dictionary has a key of type {type(key).__name__}, wanted strings")
    if type(key) is int and not 0 <= key < 1 << 31:  # larger ones may all have the same hash
        raise ValueError("a dictionary's key is no number that torch.save writes")
    target[key] = value


def _load_setitem(unpickler: Any) -> None:
    value, key = unpickler.stack.pop(), unpickler.stack.pop()
    _put(unpickler.stack[-1], key, value)


def _load_setitems(unpickler: Any) -> None:
    items = unpickler.pop_mark()
    if len(items) % 2:
        raise ValueError("a dictionary's last key has no value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        _put(unpickler.stack[-1], key, value)


class _Instructions(dict[int, Any]):
    """Instructions of a pickle -> what carries them out."""

    def __missing__(self, opcode: int) -> Any:
        raise ValueError(f"it has the instruction {opcode:#04x}, which torch.save does not write")


class _Unpickler(pickle._Unpickler):
    """Reads what torch.save writes of a dictionary of tensors, and no other object.

    It is the unpickler that is written in Python: the compiled one keeps its memo in an array
    whose size a file can name. It knows the instructions that torch.save writes with protocols 2
    to 5; some of the others make room for as many bytes as a file names.
    """

    dispatch = _Instructions(
        {opcode[0]: pickle._Unpickler.dispatch[opcode[0]] for opcode in _INSTRUCTIONS}
        | {pickle.SETITEM[0]: _load_setitem, pickle.SETITEMS[0]: _load_setitems}
    )

    def __init__(self, text: bytes) -> None:
        super().__init__(io.BytesIO(text))
        # New ones for each file: a pickle may set attributes of what it is given.
        self._stubs: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): type("OrderedDict", (_Dictionary,), {}),
            ("torch._utils", "_rebuild_tensor_v2"): lambda *place: _rebuild_tensor(*place),
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *rest: tensor,
            **{("torch", name): name for name in _STORAGES},
        }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._stubs:
            raise ValueError(
                f"it names {module}.{name}, which is no part of a tensor: only dictionaries of "
                "tensors are read, so that nothing in a file is executed"
            )
        return self._stubs[module, name]

    def persistent_load(self, identity: Any) -> Any:
        try:
            kind, storage, key, _, size = identity
        except (TypeError, ValueError) as error:
            raise ValueError("a storage is damaged") from error
        # All three: comparing or hashing nested tuples may take for ever.
        if not all(type(part) is str for part in (kind, storage, key)):
            raise ValueError("a storage is damaged")
        if kind != "storage" or storage not in _STORAGES:
            raise ValueError("a storage is damaged")
        if type(size) is not int or not 0 <= size < 1 << 48:
            raise ValueError("a storage is damaged")
        return _Storage(_STORAGES[storage], key, size)


class TorchFile:
    """An open file: names, and copies of tensors as float32.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, is not a dictionary of tensors, or was written by a PyTorch
            before 1.6.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._path.stat()  # a missing file is no damaged one
        try:
            self._archive = zipfile.ZipFile(self._path)
        except MemoryError:
            raise
        except Exception as error:  # zipfile raises nearly everything on damaged input
            raise self._fail(
                "no zip archive: damaged, or written by a PyTorch before 1.6 (load it with "
                "PyTorch and save it as model.safetensors)"
            ) from error
        try:
            self._root, self._tensors = self._read_names()
        except BaseException:
            self._archive.close()
            raise

    def __enter__(self) -> TorchFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._archive.close()

    def _fail(self, text: str) -> ValueError:
        return ValueError(f"{self._path}: {text}")

    def _read_names(self) -> tuple[str, dict[str, _Tensor]]:
        members = [name for name in self._archive.namelist() if name.endswith("data.pkl")]
        if len(members) != 1:
            raise self._fail("not written by torch.save: it has no single data.pkl")
        root = members[0].removesuffix("data.pkl")
        if f"{root}byteorder" in self._archive.namelist():
            order = self._member(f"{root}byteorder", 16)
            if order != b"little":
                raise self._fail(f"its byte order is {order!r:.40}, wanted little")
        text = self._member(members[0], _LARGEST_PICKLE)
        try:
            state = _Unpickler(text).load()
        except MemoryError:
            raise
        except Exception as error:  # pickle raises nearly everything on damaged input
            raise self._fail(f"data.pkl: {error}") from error
        if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
            state = state["state_dict"]
        if not isinstance(state, dict):
            raise self._fail(f"holds a {type(state).__name__}, wanted a dictionary of tensors")
        tensors = {name: one for name, one in state.items() if isinstance(one, _Tensor)}
        if not all(isinstance(name, str) for name in tensors):
            raise self._fail("a tensor's name is no string")
        return root, tensors

    def _member(self, name: str, most: int) -> bytes:
        """The bytes of a member, which is stored and no larger than wanted."""
        try:
            info = self._archive.getinfo(name)
        except KeyError as error:
            raise self._fail(f"lacks {name!r}: truncated?") from error
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > most:
            raise self._fail(f"{name!r} is compressed or larger than it can be")
        try:
            return self._archive.read(info)
        except MemoryError:
            raise
        except Exception as error:
            raise self._fail(f"{name!r} is damaged ({error})") from error

    def names(self) -> list[str]:
        """The names of all tensors."""
        return list(self._tensors)

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """A copy of a tensor as float32, C-contiguous.

        Raises:
            ValueError: its elements are no floats, or its bytes are damaged or missing.
        """
        storage, offset, shape, strides = self._tensors[name]
        if storage.kind not in _FLOATS:
            raise self._fail(f"tensor {name!r} has elements {storage.kind}, wanted floats")
        dtype = np.dtype("<u2" if storage.kind == "bfloat16" else storage.kind)
        size_bytes = storage.size * dtype.itemsize
        raw = self._member(f"{self._root}data/{storage.key}", size_bytes)
        if len(raw) != size_bytes:
            raise self._fail(f"tensor {name!r}: {len(raw)} bytes, wanted {size_bytes}: truncated?")
        whole = np.frombuffer(raw, dtype)
        view = np.lib.stride_tricks.as_strided(
            whole[offset:], shape, [step * dtype.itemsize for step in strides], writeable=False
        )
        if storage.kind == "bfloat16":
            return (view.astype(np.uint32) << 16).view(np.float32)
        return np.ascontiguousarray(view.astype(np.float32))

    def pieces(self, name: str) -> tuple[tuple[int, ...], Iterator[npt.NDArray[np.float32]]]:
        """A tensor's shape, and all of it at once: its bytes may be compressed.

        Raises:
            ValueError: as read.
        """
        whole = self.read(name)
        return whole.shape, iter([whole])
