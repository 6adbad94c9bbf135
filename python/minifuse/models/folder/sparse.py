"""A sparse encoder's folder as data: a masked language model, maybe with a Router before it."""

from __future__ import annotations

from pathlib import Path

from minifuse.models.description import Config, read_object
from minifuse.models.folder.common import ModelFolder, listed_modules, read_transformer
from minifuse.models.folder.router import read_router

__all__ = ["is_sparse_encoder", "read_sparse_folder"]


def is_sparse_encoder(folder: Path) -> bool:
    """Return whether a folder holds a sparse encoder by sentence-transformers' modules.

    Raises:
        ValueError: its modules.json or router_config.json is damaged.
    """
    kinds = listed_modules(folder)
    if [kind for kind, _ in kinds] == ["Router"]:
        kinds = read_router(kinds[0][1])[0]["document"]
    return "SpladePooling" in [kind for kind, _ in kinds]


def read_sparse_folder(folder: Path) -> ModelFolder:
    """The same of a sparse encoder: a masked language model, whose words are pooled (SPLADE).

    Raises:
        FileNotFoundError: a file that must be there is missing.
        ValueError: a file is damaged, or asks for what this package does not compute.
    """
    folder = folder.absolute()
    kinds = listed_modules(folder)
    queries_path, default_route = None, "document"
    if [kind for kind, _ in kinds] == ["Router"]:
        routes, default_route = read_router(kinds[0][1])
        if [kind for kind, _ in routes["query"]] != ["SparseStaticEmbedding"]:
            to = ", ".join(kind for kind, _ in routes["query"])
            raise ValueError(f"{folder}: queries go to {to}, wanted SparseStaticEmbedding")
        queries_path, kinds = routes["query"][0][1], routes["document"]
    names = [kind for kind, _ in kinds]
    if kinds and (
        names[0] not in ("MLMTransformer", "Transformer") or names[1:] != ["SpladePooling"]
    ):
        raise ValueError(
            f"{folder}: modules.json lists {', '.join(names)}; minifuse runs sparse encoders of "
            "one MLMTransformer and SpladePooling, with or without a Router before them"
        )
    model = read_transformer(folder, kinds[0][1] if kinds else folder)
    model.queries_path, model.default_route = queries_path, default_route
    if model.architecture.masked_language is not None:
        model.head_tensors = model.architecture.masked_language.tensors()
    if kinds:
        path = kinds[1][1] / "config.json"
        config = Config(path, read_object(path))
        config.want("pooling_strategy", "max")
        activation = config.values.get("activation_function", "relu")
        if activation not in ("relu", "log1p_relu"):
            raise ValueError(
                f"{path}: activation_function is {activation!r:.60}, wanted relu or log1p_relu"
            )
        model.takes_log_twice = activation == "log1p_relu"
    return model
