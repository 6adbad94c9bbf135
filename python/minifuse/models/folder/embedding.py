"""An embedding model's folder as data: a transformer or a table, and the pooling behind it."""

from __future__ import annotations

from pathlib import Path

from minifuse.models.architectures import STATIC
from minifuse.models.description import ModelDescription, read_object
from minifuse.models.folder.behind_encoder import read_modules, read_pooling
from minifuse.models.folder.common import (
    ModelFolder,
    module_paths,
    plain_pooling,
    read_transformer,
    with_settings,
)
from minifuse.models.folder.cross_encoder import is_cross_encoder
from minifuse.models.folder.router import ROUTERS, read_router
from minifuse.models.static import read_table

__all__ = ["read_model_folder"]


def read_model_folder(folder: Path) -> ModelFolder:
    """Everything of an embedding model but the encoder's weights and the tokenizer.

    Raises:
        FileNotFoundError: a file that must be there is missing.
        ValueError: a file is damaged, or asks for what this package does not compute.
    """
    folder = folder.absolute()  # the working folder may change later
    kinds = module_paths(folder)
    places = [place for place, (kind, _) in enumerate(kinds) if kind in ROUTERS]
    if not places:
        return _read(folder, kinds)
    before, behind = kinds[: places[0]], kinds[places[0] + 1 :]
    routes, default = read_router(kinds[places[0]][1])
    models = {route: _read(folder, before + own + behind) for route, own in routes.items()}
    model = models[default]
    model.routes, model.default_route = models, default
    return model


def _read(folder: Path, kinds: list[tuple[str, Path]]) -> ModelFolder:
    """Everything of a model of these modules."""
    if not kinds or kinds[0][0] not in ("Transformer", "StaticEmbedding"):
        raise ValueError(
            f"{folder}: modules.json must begin with Transformer or StaticEmbedding, got "
            f"{[kind for kind, _ in kinds[:1]]}"
        )
    is_static = kinds[0][0] == "StaticEmbedding"
    read = _read_static if is_static else read_transformer
    model = read(folder, kinds[0][1])
    behind = kinds[1:]
    if not is_static:
        if [kind for kind, _ in behind[:1]] != ["Pooling"]:
            hint = " (for a reranker use CrossEncoder)" if is_cross_encoder(folder) else ""
            raise ValueError(f"{folder}: modules.json has no Pooling after Transformer{hint}")
        if behind[0][1] != Path():
            model.poolings, model.include_prompt = read_pooling(behind[0][1])
        else:
            model.poolings = [plain_pooling(model.transformer_path)]
        behind = behind[1:]
    model.modules = read_modules(folder, behind)
    return model


def _read_static(folder: Path, static: Path) -> ModelFolder:
    """Everything that a folder says of its table, and sentence-transformers' settings."""
    table = read_table(static)
    num_rows, width = table.shape
    tokenizer_path = static / "tokenizer.json"
    if not tokenizer_path.is_file():
        raise FileNotFoundError(f"{static}: tokenizer.json is missing, so this is no model folder")
    truncation = read_object(tokenizer_path).get("truncation")
    length = truncation.get("max_length") if isinstance(truncation, dict) else None
    description = ModelDescription(
        vocab_size=num_rows,
        # More tokens than a text has: there is no limit.
        max_position_embeddings=(
            length if type(length) is int and 0 < length < 1 << 30 else 1 << 30
        ),
        hidden_size=width,
        num_hidden_layers=0,
        num_attention_heads=1,
        intermediate_size=0,
        layer_norm_eps=0.0,
        activation="none",
    )
    model = with_settings(folder, static, STATIC, description)
    model.table = table
    model.max_seq_length = description.max_position_embeddings
    return model
