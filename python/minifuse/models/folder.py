"""A sentence-transformers folder as data: everything that it says besides weights and tokenizer.

Whatever this package does not compute (another architecture, activation, pooling or module) is
refused by name.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from minifuse.models.architectures import STATIC, Architecture, Head, architecture_of
from minifuse.models.checkpoint import find_weights
from minifuse.models.description import Config, ModelDescription, read_json, read_object
from minifuse.models.modules import (
    Module,
    NormalizeModule,
    read_dense,
    read_head,
    read_layer_norm,
    weights_of,
)
from minifuse.models.static import read_table

__all__ = [
    "OLD_POOLING_KEYS",
    "QUANTIZED_WEIGHTS",
    "ModelFolder",
    "is_cross_encoder",
    "is_sparse_encoder",
    "read_cross_encoder_folder",
    "read_model_folder",
    "read_sparse_folder",
]

# Beside config.json in a folder that `minifuse quantize` wrote, in place of model.safetensors.
QUANTIZED_WEIGHTS = "model.int8.safetensors"

_POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
# The order in which sentence-transformers concatenates the old style's flags.
OLD_POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# Classes of transformers whose tokenizers give types; those of other families do not.
_TOKENIZERS_WITH_TYPES = ("BertTokenizer", "ElectraTokenizer")
_SENTENCE_CONFIGS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
)


@dataclass
class ModelFolder:
    """Everything that a folder says besides the weights and the tokenizer."""

    path: Path
    transformer_path: Path
    architecture: Architecture
    description: ModelDescription
    poolings: list[str]
    include_prompt: bool
    modules: list[Module]
    max_seq_length: int
    do_lower_case: bool
    has_token_types: bool = False
    table: npt.NDArray[np.float32] | None = None
    takes_log_twice: bool = False
    max_active_dims: int | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    similarity_fn_name: str | None = None
    truncate_dim: int | None = None
    activation_fn: str | None = None
    queries_path: Path | None = None  # of the weights that words have in queries
    default_route: str = "document"  # of a model with such weights

    @property
    def is_static(self) -> bool:
        """True if a text is the mean of rows of the table, without an encoder."""
        return self.table is not None

    def tokenizer_settings(self) -> dict[str, bool]:
        """Return what TextTokenizer is told beside the tokenizer itself."""
        return {
            "do_lower_case": self.do_lower_case,
            "has_token_types": self.has_token_types,
            "adds_special": not self.is_static,
        }

    @property
    def is_quantized(self) -> bool:
        """True if the folder holds int8 matrices and no others."""
        has_codes = (self.transformer_path / QUANTIZED_WEIGHTS).is_file()
        return has_codes and find_weights(self.transformer_path) is None

    @property
    def weights_path(self) -> Path:
        """The encoder's file of weights.

        Raises:
            FileNotFoundError: there is none.
        """
        if self.is_quantized:
            return self.transformer_path / QUANTIZED_WEIGHTS
        return weights_of(self.transformer_path)


def _text(path: Path, settings: dict[str, Any], key: str) -> str | None:
    value = settings.get(key)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{path}: {key} is {value!r:.60}, wanted a string or null")
    return value


def _read_pooling(path: Path) -> tuple[list[str], bool]:
    config = read_object(path / "config.json")
    include_prompt = bool(config.get("include_prompt", True))
    mode = config.get("pooling_mode")
    if mode is None:
        unknown = [
            key
            for key, value in config.items()
            if key.startswith("pooling_mode_") and value and key not in OLD_POOLING_KEYS
        ]
        if unknown:
            raise ValueError(f"{path}: pooling {unknown[0]!r} is not supported")
        modes = [name for key, name in OLD_POOLING_KEYS.items() if config.get(key)]
    else:
        modes = [mode] if isinstance(mode, str) else mode
        if not isinstance(modes, list) or not all(isinstance(one, str) for one in modes):
            raise ValueError(f"{path}: pooling_mode is {mode!r:.60}, wanted names of poolings")
    for name in modes:
        if name not in _POOLINGS:
            raise ValueError(f"{path}: pooling {name!r}, wanted one of {', '.join(_POOLINGS)}")
    if not modes:
        raise ValueError(f"{path}: no pooling mode is switched on")
    return modes, include_prompt


def _module_paths(folder: Path) -> list[tuple[str, Path]]:
    """(class name, folder) of each module; plain transformers folders get mean pooling."""
    path = folder / "modules.json"
    if not path.is_file():
        config = read_object(folder / "config.json") if (folder / "config.json").is_file() else {}
        if config.get("model_type") != "model2vec":
            return [("Transformer", folder), ("Pooling", Path())]
        normalizes = [("Normalize", Path())] if config.get("normalize") else []
        return [("StaticEmbedding", folder), *normalizes]
    modules = read_json(path)
    if not isinstance(modules, list) or not all(
        isinstance(m, dict)
        and isinstance(m.get("type"), str)
        and isinstance(m.get("path", ""), str)
        for m in modules
    ):
        raise ValueError(f"{path}: wanted a list of objects with a type and a path, both strings")
    return [
        (m["type"].rsplit(".", 1)[-1], _within(folder, m.get("path", ""), path)) for m in modules
    ]


def _within(folder: Path, name: str, source: Path) -> Path:
    """A module's folder, which lies in the model's own: saving writes where it was read."""
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "~")) or ".." in parts or ":" in name or "\0" in name:
        raise ValueError(f"{source}: the path {name!r:.60} leads out of the model's folder")
    try:
        longest = max(map(len, os.fsencode("/".join(parts)).split(b"/")))
    except UnicodeEncodeError as error:
        raise ValueError(f"{source}: the path {name!r:.60} cannot be a file's name") from error
    if longest > 255 or len(name) > 1000:  # more than file systems take
        raise ValueError(f"{source}: the path {name!r:.60} is too long for a file's name")
    return folder / name


def _sentence_config(transformer: Path) -> dict[str, Any]:
    for name in _SENTENCE_CONFIGS:
        if (transformer / name).is_file():
            return read_object(transformer / name)
    return {}


def _max_seq_length(
    folder: Path, tokenizer_config: dict[str, Any], sentence_config: dict[str, Any], limit: int
) -> int:
    """Return the length that the folder says, but at most the positions that the model has."""
    value = sentence_config.get("max_seq_length")
    if value is None:
        value = tokenizer_config.get("model_max_length")
    if value is None:
        return limit
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 1:
        raise ValueError(f"{folder}: max_seq_length is {value!r:.60}, wanted a number >= 1")
    return int(min(value, limit))


def read_model_folder(folder: Path) -> ModelFolder:
    """Everything of an embedding model but the encoder's weights and the tokenizer.

    Raises:
        FileNotFoundError: a file that must be there is missing.
        ValueError: a file is damaged, or asks for what this package does not compute.
    """
    folder = folder.absolute()  # the working folder may change later
    kinds = _module_paths(folder)
    if not kinds or kinds[0][0] not in ("Transformer", "StaticEmbedding"):
        raise ValueError(
            f"{folder}: modules.json must begin with Transformer or StaticEmbedding, got "
            f"{[kind for kind, _ in kinds[:1]]}"
        )
    is_static = kinds[0][0] == "StaticEmbedding"
    read = _read_static if is_static else _read_transformer
    model = read(folder, kinds[0][1])
    for index, (kind, path) in enumerate(kinds[1:]):
        if kind == "Pooling" and index == 0 and not is_static:
            if path != Path():
                model.poolings, model.include_prompt = _read_pooling(path)
        elif kind == "Dense":
            model.modules.append(read_dense(path))
        elif kind == "LayerNorm":
            model.modules.append(read_layer_norm(path))
        elif kind == "Normalize":
            model.modules.append(NormalizeModule())
        elif kind != "Dropout":  # which drops nothing when a model is used
            raise ValueError(
                f"{folder}: module {kind!r} at place {index + 1} is not supported; "
                "wanted Transformer, Pooling, then any of Dense, Dropout, LayerNorm and Normalize"
            )
    if len(kinds) == 1 and not is_static:
        hint = " (for a reranker use CrossEncoder)" if is_cross_encoder(folder) else ""
        raise ValueError(f"{folder}: modules.json has no Pooling after Transformer{hint}")
    return model


def is_cross_encoder(folder: Path) -> bool:
    """Return whether a folder holds a model that scores pairs of texts.

    Raises:
        ValueError: its modules.json or config.json is damaged.
    """
    path = folder / "config.json"
    if not path.is_file():
        return False
    names = read_object(path).get("architectures")
    is_classifier = isinstance(names, list) and any(
        isinstance(name, str) and name.endswith("ForSequenceClassification") for name in names
    )
    has_modules = (folder / "modules.json").is_file()
    return is_classifier and not (has_modules and len(_module_paths(folder)) > 1)


def read_cross_encoder_folder(folder: Path) -> ModelFolder:
    """The same of a cross-encoder: a transformers folder for sequence classification.

    Its head becomes modules behind the pooling.

    Raises:
        FileNotFoundError: a file that must be there is missing.
        ValueError: a file is damaged, or asks for what this package does not compute.
    """
    folder = folder.absolute()
    kinds = _module_paths(folder) if (folder / "modules.json").is_file() else []
    if [kind for kind, _ in kinds] not in ([], ["Transformer"]):
        names = ", ".join(kind for kind, _ in kinds)
        raise ValueError(
            f"{folder}: modules.json lists {names}; minifuse runs cross-encoders of one "
            "Transformer with a head for classification"
        )
    model = _read_transformer(folder, kinds[0][1] if kinds else folder)
    head = model.architecture.head
    if head is None:
        raise ValueError(f"{model.path}: minifuse has no cross-encoders of this family")
    model.poolings = [_head_pooling(model, head)]
    model.modules = list(read_head(model.weights_path, model.architecture, head, model.description))
    return model


def is_sparse_encoder(folder: Path) -> bool:
    """Return whether a folder holds a sparse encoder by sentence-transformers' modules.

    Raises:
        ValueError: its modules.json or router_config.json is damaged.
    """
    has_modules = (folder / "modules.json").is_file()
    kinds = _module_paths(folder) if has_modules else []
    if [kind for kind, _ in kinds] == ["Router"]:
        kinds = _read_router(folder, kinds[0][1])[0]["document"]
    return "SpladePooling" in [kind for kind, _ in kinds]


def read_sparse_folder(folder: Path) -> ModelFolder:
    """The same of a sparse encoder: a masked language model, whose words are pooled (SPLADE).

    Raises:
        FileNotFoundError: a file that must be there is missing.
        ValueError: a file is damaged, or asks for what this package does not compute.
    """
    folder = folder.absolute()
    kinds = _module_paths(folder) if (folder / "modules.json").is_file() else []
    queries_path, default_route = None, "document"
    if [kind for kind, _ in kinds] == ["Router"]:
        routes, default_route = _read_router(folder, kinds[0][1])
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
    model = _read_transformer(folder, kinds[0][1] if kinds else folder)
    model.queries_path, model.default_route = queries_path, default_route
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


def _read_router(folder: Path, router: Path) -> tuple[dict[str, list[tuple[str, Path]]], str]:
    """The modules of queries and those of documents, and where a text goes that is neither."""
    path = router / "router_config.json"
    config = read_object(path)
    types, structure = config.get("types"), config.get("structure")
    parameters = config.get("parameters") or {}
    if not (
        isinstance(types, dict)
        and isinstance(structure, dict)
        and isinstance(parameters, dict)
        and set(structure) == {"query", "document"}
        and all(isinstance(names, list) for names in structure.values())
        and all(isinstance(types.get(str(n)), str) for names in structure.values() for n in names)
    ):
        raise ValueError(f"{path}: wanted types, and a structure of query and document")
    routes = {
        route: [(types[n].rsplit(".", 1)[-1], _within(folder, n, path)) for n in names]
        for route, names in structure.items()
    }
    default = parameters.get("default_route") or "document"
    if default not in routes:
        raise ValueError(f"{path}: default_route is {default!r:.60}, wanted query or document")
    return routes, default


def _head_pooling(model: ModelFolder, head: Head) -> str:
    """Return the pooling before a head, which some families' config.json says."""
    if head.pooling_key is None:
        return head.pooling
    path = model.transformer_path / "config.json"
    pooling = read_object(path).get(head.pooling_key, head.pooling)
    if pooling not in ("cls", "mean"):
        raise ValueError(f"{path}: {head.pooling_key} is {pooling!r:.60}, wanted cls or mean")
    return str(pooling)


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
        max_position_embeddings=length if type(length) is int and length > 0 else 1 << 30,
        hidden_size=width,
        num_hidden_layers=0,
        num_attention_heads=1,
        intermediate_size=0,
        layer_norm_eps=0.0,
        activation="none",
    )
    model = _with_settings(folder, static, STATIC, description)
    model.table = table
    model.max_seq_length = description.max_position_embeddings
    return model


def _read_transformer(folder: Path, transformer: Path) -> ModelFolder:
    """Everything that a folder says of its transformer, and sentence-transformers' settings."""
    config_path = transformer / "config.json"
    if (transformer / "adapter_config.json").is_file():
        raise ValueError(
            f"{transformer}: holds an adapter (LoRA); merge it into its model with peft's "
            "merge_and_unload and save that"
        )
    if not config_path.is_file():
        raise FileNotFoundError(
            f"{transformer}: config.json is missing, so this is no model folder"
        )
    config = Config(config_path, read_object(config_path))
    architecture = architecture_of(config)
    description = architecture.describe(config)
    model = _with_settings(folder, transformer, architecture, description)
    tokenizer_config = _tokenizer_config(transformer)
    sentence_config = _sentence_config(transformer)
    model.max_seq_length = _max_seq_length(
        folder, tokenizer_config, sentence_config, description.max_position_embeddings
    )
    model.do_lower_case = bool(sentence_config.get("do_lower_case", False))
    model.has_token_types = description.type_vocab_size > 1 and _gives_token_types(tokenizer_config)
    if model.activation_fn is None:
        model.activation_fn = _old_activation_fn(config)
    return model


def _with_settings(
    folder: Path, transformer: Path, architecture: Architecture, description: ModelDescription
) -> ModelFolder:
    """A model with what config_sentence_transformers.json says."""
    settings: dict[str, Any] = {}
    path = folder / "config_sentence_transformers.json"
    if path.is_file():
        settings = read_object(path)
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(
        text is None or isinstance(text, str) for text in prompts.values()
    ):
        raise ValueError(f"{path}: prompts is {prompts!r:.60}, wanted names and strings")
    truncate_dim = settings.get("truncate_dim")
    if truncate_dim is not None and (type(truncate_dim) is not int or truncate_dim < 1):
        raise ValueError(f"{path}: truncate_dim is {truncate_dim!r:.60}, wanted >= 1")
    active = settings.get("max_active_dims")
    if active is not None and (type(active) is not int or active < 1):
        raise ValueError(f"{path}: max_active_dims is {active!r:.60}, wanted >= 1")
    return ModelFolder(
        path=folder,
        transformer_path=transformer,
        architecture=architecture,
        description=description,
        poolings=["mean"],
        include_prompt=True,
        modules=[],
        max_seq_length=description.max_position_embeddings,
        do_lower_case=False,
        prompts={str(k): v or "" for k, v in prompts.items()},
        default_prompt_name=_text(path, settings, "default_prompt_name"),
        similarity_fn_name=_text(path, settings, "similarity_fn_name"),
        truncate_dim=truncate_dim,
        max_active_dims=active,
        activation_fn=_text(path, settings, "activation_fn"),
    )


def _tokenizer_config(transformer: Path) -> dict[str, Any]:
    path = transformer / "tokenizer_config.json"
    return read_object(path) if path.is_file() else {}


def _gives_token_types(tokenizer_config: dict[str, Any]) -> bool:
    """Return whether transformers' tokenizer tells the types of a pair's tokens."""
    names = tokenizer_config.get("model_input_names")
    if isinstance(names, list):
        return "token_type_ids" in names
    kind = tokenizer_config.get("tokenizer_class")
    return not isinstance(kind, str) or kind.removesuffix("Fast") in _TOKENIZERS_WITH_TYPES


def _old_activation_fn(config: Config) -> str | None:
    """The path of the class that scores of pairs go through, where config.json names one."""
    inner = config.values.get("sentence_transformers")
    inner = inner if isinstance(inner, dict) else {}
    name = _text(config.path, inner, "activation_fn")
    return name or _text(config.path, config.values, "sbert_ce_default_activation_function")
