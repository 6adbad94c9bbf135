"""Files and folders that appear under their names whole, or not at all.

They are written beside their place under a name that nobody else has, seen to the disk, and
renamed; then the folder that holds the name is seen to the disk, too. A process that is killed, a
full disk or a lost power supply leaves what was there before.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = [
    "check_distinct",
    "ignore_other_engines",
    "new_folder",
    "replacing",
    "sync_folder",
    "sync_tree",
    "write_text",
]


def sync_folder(folder: Path) -> None:
    """See a folder's names to the disk, where the system can (not on Windows)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """See every file below a folder to the disk, and every name."""
    for below, _, names in os.walk(folder):
        for name in names:
            with (Path(below) / name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(below))


def _short(name: str) -> str:
    """At most 100 bytes of a name: file systems count bytes."""
    return name.encode("utf-8", "surrogateescape")[:100].decode("utf-8", "ignore")


def _target(path: Path) -> Path:
    """The file that a path stands for: a symbolic link stays, and what it leads to is replaced."""
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no ordinary file, wanted a file to write")
    return path


def _create_partial(path: Path) -> tuple[int, Path]:
    """A new empty file beside path: (descriptor, its path). Symbolic links are not followed."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    flags |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    while True:
        # A process id is no name of one's own: containers that share a folder have equal ones.
        partial = path.with_name(f".{_short(path.name)}.{os.urandom(8).hex()}.partial")
        with contextlib.suppress(FileExistsError):
            return os.open(partial, flags, 0o666), partial


def _rename_to_free_name(partial: Path, path: Path) -> None:
    try:
        os.link(partial, path)  # unlike a rename, it never replaces
    except FileExistsError:
        raise
    except OSError as error:  # a file system without hard links
        if path.exists():
            raise FileExistsError(f"{path} exists") from error
        os.replace(partial, path)


@contextlib.contextmanager
def replacing(
    path: str | Path, *, buffered: bool = True, may_exist: bool = True
) -> Iterator[BinaryIO]:
    """Yield a binary file that replaces path when the block ends without an error.

    Args:
        path: the file that appears; a file that is there stays until then.
        buffered: False gives a file whose every write reaches the system at once.
        may_exist: False raises where another process has made the file meanwhile.

    Raises:
        FileNotFoundError: the folder does not exist.
        FileExistsError: path exists and may not.
        ValueError: path is a folder, a device or a pipe.
        OSError: the disk is full, or the folder may not be written to.
    """
    path = _target(Path(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: the folder does not exist")
    descriptor, partial = _create_partial(path)
    try:
        with os.fdopen(descriptor, "w+b", buffering=-1 if buffered else 0) as file:
            if path.exists() and hasattr(os, "fchmod"):
                os.fchmod(descriptor, path.stat().st_mode & 0o777)  # private stays private
            yield file
            file.flush()
            os.fsync(file.fileno())
        if may_exist:
            os.replace(partial, path)
        else:
            _rename_to_free_name(partial, path)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text as a file that appears whole.

    Raises as replacing does.
    """
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


# For shutil.copytree of a model: what only other engines read, and hidden files.
_other_engines = shutil.ignore_patterns("onnx", "openvino", "*.h5", "*.ot", "*.onnx", ".*")
_torch_files = shutil.ignore_patterns("*.bin", "*.bin.index.json")
_WEIGHTS = ("model*.safetensors*", "pytorch_model*.bin*")


def ignore_other_engines(folder: str, names: list[str]) -> set[str]:
    """For shutil.copytree: files of a model that only other engines read.

    What torch.save wrote is one of them where the same weights lie beside it as safetensors.
    """
    has_both = any(fnmatch.fnmatchcase(name, "model*.safetensors") for name in names)
    return {*_other_engines(folder, names), *(_torch_files(folder, names) if has_both else ())}


@contextlib.contextmanager
def new_folder(target: str | Path, overwrites: bool = False) -> Iterator[Path]:
    """Yield an empty folder to fill: it is there as target when the block ends without an error.

    Args:
        target: a folder that does not exist or is empty.
        overwrites: a folder with files is taken, too. What the new one has replaces what it has of
            the same name, all else stays. A process that is killed between the two renames leaves
            the old folder beside its place, under a name that begins with a dot.

    Raises:
        FileExistsError: target holds files already, or is none.
        OSError: the disk is full, or the parent folder may not be written to.
    """
    target = Path(os.path.realpath(target))
    is_used = target.is_dir() and any(target.iterdir())
    if target.exists() and (not target.is_dir() or (is_used and not overwrites)):
        raise FileExistsError(f"{target} exists and is not empty; give a new folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=target.parent, prefix=f".{_short(target.name)}-"
    ) as scratch:
        copy = Path(scratch) / "model"
        copy.mkdir()
        yield copy
        if is_used:
            _keep_others(target, copy)
        sync_tree(copy)
        if is_used:
            target.rename(Path(scratch) / "replaced")
        elif target.is_dir():
            target.rmdir()
        copy.rename(target)
        sync_folder(target.parent)


def _keep_others(old: Path, new: Path) -> None:
    """Copy what a folder has and its replacement has not, but for weights: one kind is enough."""
    for path in old.iterdir():
        copy = new / path.name
        is_folder = path.is_dir() and not path.is_symlink()
        if is_folder and copy.is_dir():
            _keep_others(path, copy)
        elif copy.exists() or any(fnmatch.fnmatchcase(path.name, one) for one in _WEIGHTS):
            continue
        elif is_folder:
            shutil.copytree(path, copy, symlinks=True)
        else:
            shutil.copy2(path, copy, follow_symlinks=False)


def check_distinct(output: str | Path, inputs: Iterable[str | Path]) -> None:
    """Refuse an output that would overwrite one of its own inputs.

    Raises:
        ValueError: output is the same file as an input, by whatever name.
    """
    output = Path(output)
    if not output.exists():
        return
    for given in inputs:
        path = Path(given)
        if path.exists() and output.samefile(path):
            raise ValueError(
                f"{output}: writing it would overwrite the input {path}; give another output"
            )
