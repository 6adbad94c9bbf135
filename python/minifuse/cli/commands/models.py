"""minifuse models: the models in the caches of this machine, and the families that run."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minifuse.cli.common import add_command
from minifuse.cli.terminal import printable

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add ``minifuse models`` to the commands."""
    sub = add_command(
        commands, "models", _run, "Models in the cache, and the families that run.", False
    )
    sub.add_argument("--json", action="store_true", help="as JSON")


def _run(arguments: argparse.Namespace) -> int:
    from minifuse.bench.report import format_table
    from minifuse.models.architectures import families

    cached = [_about(name, folder) for name, folder in _cached()]
    known = [
        {
            "family": name,
            "model_types": ", ".join(one.model_types),
            "classes": ", ".join(
                ["SentenceTransformer"]
                + ["CrossEncoder"] * (one.head is not None)
                + ["SparseEncoder"] * (one.masked_language is not None)
            ),
        }
        for name, one in families().items()
    ]
    if arguments.json:
        print(json.dumps({"cached": cached, "families": known}, indent=1))
        return 0
    if cached:
        shown = ("name", "class", "family", "layers", "width", "tokens", "MB", "remark")
        rows = [{key: printable(str(row[key])) for key in shown} for row in cached]
        print(format_table(rows, {key: key for key in shown}))
    else:
        print("no model in the cache")
    print("\nFamilies that run; docs/models.md says how each was checked:")
    print(format_table(known, {"family": "family", "model_types": "model_type",
                                  "classes": "classes"}))  # fmt: skip
    return 0


def _cached() -> Iterator[tuple[str, Path]]:
    """Names and folders of the models in minifuse's own cache and in the Hugging Face cache."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    from minifuse.models.resolve import cache_folder

    own = cache_folder()
    if own.is_dir():
        for folder in sorted(one for one in own.iterdir() if (one / "config.json").is_file()):
            yield folder.name, folder
    try:
        found = scan_cache_dir(os.environ.get("SENTENCE_TRANSFORMERS_HOME"))
    except CacheNotFound:
        return
    for repo in sorted(found.repos, key=lambda repo: repo.repo_id):
        revisions = sorted(repo.revisions, key=lambda one: ("main" in one.refs, one.last_modified))
        if repo.repo_type == "model" and revisions:
            yield repo.repo_id, revisions[-1].snapshot_path


def _about(name: str, folder: Path) -> dict[str, Any]:
    """A row of the table: what a folder holds, or the reason why it does not run."""
    from minifuse.models.architectures import families
    from minifuse.models.folder import read_folder

    row: dict[str, Any] = {"name": name, "class": "", "family": "", "layers": "", "width": "",
                           "tokens": "", "MB": "", "remark": "", "folder": str(folder)}  # fmt: skip
    try:
        kind, model = read_folder(folder)
        size = sum(path.stat().st_size for path in model.weights_path.parent.iterdir()
                   if path.suffix in (".safetensors", ".bin"))  # fmt: skip
    except (ValueError, OSError) as error:
        text = str(error).removeprefix(f"{folder}").lstrip("/: ")
        return row | {"remark": f"does not run: {text}"[:120]}
    what = model.description
    names = [name for name, one in families().items() if one is model.architecture]
    return row | {
        "class": kind,
        "family": names[0] if names else "static",
        "layers": "" if model.is_static else what.num_hidden_layers,
        "width": what.hidden_size,
        "tokens": model.max_seq_length,
        "MB": round(size / 1e6, 1),
        "remark": "int8 weights" if model.is_quantized else "",
    }
