"""The installed package is light to import, needs no PyTorch, is typed and has stubs that match."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import minifuse

PACKAGE = Path(minifuse.__file__).parent


def test_import_is_light():
    """In processor time, beside that of what it cannot do without: machines differ, and so does
    what other programs leave of one.
    """
    best = {"numpy, tokenizers": 1e9, "minifuse": 1e9}
    modules = [""]
    for _ in range(3):
        for names in best:
            script = f"import {names}, sys, time; print(time.process_time(), *sorted(sys.modules))"
            done = subprocess.run(
                [sys.executable, "-c", script], capture_output=True, text=True, check=True
            )
            seconds, *modules = done.stdout.split()
            best[names] = min(best[names], float(seconds))
    heavy = {"torch", "scipy", "pandas", "transformers", "sentence_transformers", "pyarrow"}
    assert not heavy & set(modules)
    assert best["minifuse"] < 2.2 * best["numpy, tokenizers"]


def test_it_is_the_installed_package_that_is_tested():
    assert "site-packages" in str(PACKAGE)
    assert (PACKAGE / "py.typed").exists()


def test_the_wheel_is_small():
    """Files compressed as a wheel has them, the CUDA part included where it was built."""
    files = [p for p in PACKAGE.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert sum(len(zlib.compress(p.read_bytes())) for p in files) < 10e6


@pytest.mark.parametrize("name", ["_core", "_cuda"])
def test_stubs_list_what_the_native_module_has(name):
    module = pytest.importorskip(f"minifuse.{name}", reason="built without nvcc")
    tree = ast.parse((PACKAGE / f"{name}.pyi").read_text())
    listed = {n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    listed |= {n.target.id for n in tree.body if isinstance(n, ast.AnnAssign)}
    assert listed == {name for name in dir(module) if not name.startswith("_")}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            methods = {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
            real = {m for m in vars(getattr(module, node.name)) if not m.startswith("_")}
            assert {m for m in methods if not m.startswith("_")} == real


def test_native_encoder_refuses_malformed_batches(tiny):
    import numpy as np

    encoder = tiny.pipeline.encoder

    def call(ids, cu_seqlens, **changes):
        options = {
            "poolings": ["mean"],
            "pool_from": 0,
            "batch_size": 8,
            "num_threads": 2,
        } | changes
        return encoder.encode(np.array(ids, np.int32), np.array(cu_seqlens, np.int32), **options)

    for arguments, text in (
        (([1, 2], [0, 3]), "ends at 3"),
        (([1, 2], [0, 2, 1]), "descends at 2"),
        (([1, 2], [1, 2]), r"cu_seqlens\[0\] is 1"),
        (([1, -2], [0, 2]), r"ids\[1\] is -2"),
        (([1, 10**6], [0, 2]), r"ids\[1\] is 1000000"),
        (([1] * 65, [0, 65]), "wanted at most max_position_embeddings=64"),
        (([1], []), "at least one element"),
    ):
        with pytest.raises(ValueError, match=text):
            call(*arguments)
    with pytest.raises(ValueError, match="pooling is 'x'"):
        call([1], [0, 1], poolings=["x"])
    assert call([], [0]).shape == (0, 48)
    assert (call([], [0, 0]) == 0).all()
    with pytest.raises(TypeError):
        encoder.encode([1.0], [0, 1], poolings=["mean"], pool_from=0, batch_size=1, num_threads=1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs /proc and fork")
def test_no_thread_is_left_at_exit(tiny_folder):
    script = (
        "import sys; from minifuse import SentenceTransformer\n"
        "m = SentenceTransformer(sys.argv[1]); m.encode(['a dog'] * 500, num_threads=4)\n"
        "import atexit, threading, os\n"
        "from minifuse.native import core; core.shutdown_threads()\n"
        "m.tokenizer  # its own pool may stay\n"
        "print(sum(open(f'/proc/self/task/{t}/comm').read().startswith('minifuse')\n"
        "          for t in os.listdir('/proc/self/task')))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(tiny_folder)], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "0"
    assert run.stderr == ""
