"""The common part of the folders of all kinds of models: the list of modules, the transformer's
own configuration, and sentence-transformers' settings.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from minifuse.models.architectures import Architecture, architecture_of
from minifuse.models.checkpoint import find_weights
from minifuse.models.description import Config, ModelDescription, read_json, read_object
from minifuse.models.inputs import max_length_of
from minifuse.models.modules import Module, weights_of

__all__ = [
    "QUANTIZED_WEIGHTS",
    "ModelFolder",
    "listed_modules",
    "module_paths",
    "plain_pooling",
    "read_transformer",
    "with_settings",
    "within",
]

# Beside config.json in a folder that `minifuse quantize` wrote, in place of model.safetensors.
QUANTIZED_WEIGHTS = "model.int8.safetensors"

# Classes of transformers whose tokenizers give types; those of other families do not.
_TOKENIZERS_WITH_TYPES = ("BertTokenizer", "ElectraTokenizer")
_CHAT_TEMPLATE = (
    "texts go through a chat template, which is a program in the model's folder; minifuse executes "
    "none: use sentence-transformers, or a version of the model with a modules.json that takes "
    "plain texts"
)
# The native core's limits of a model whose positions have no table, and what stands for no length.
_MOST_POSITIONS, _MOST_ANGLES, _NO_LENGTH = 1 << 20, 1 << 26, 10**9
# In the order in which sentence-transformers looks for one that says anything.
_SENTENCE_CONFIGS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
# These files hand arguments on to transformers, by today's names and the older ones. Some of them
# change no result but in its last bits.
_ARGUMENTS = (
    *("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs"),
    *("config_args", "config_kwargs"),
)
_HARMLESS_ARGUMENTS = {
    *("add_pooling_layer", "attn_implementation", "device_map", "dtype", "low_cpu_mem_usage"),
    *("torch_dtype", "trust_remote_code", "unpad_inputs", "use_fast", "padding_side"),
    *("use_memory_efficient_attention", "use_safetensors"),
}


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
    head_tensors: list[str] = field(default_factory=list)  # of the file, beside the encoder's
    table: npt.NDArray[np.float32] | None = None
    takes_log_twice: bool = False
    max_active_dims: int | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    similarity_fn_name: str | None = None
    truncate_dim: int | None = None
    activation_fn: str | None = None
    is_classifier: bool = False  # a cross-encoder whose head is the family's own
    # The padding's id, where transformers passes over it to find the token that the head reads.
    passed_over: int | None = None
    queries_path: Path | None = None  # of the weights that words have in queries
    default_route: str = "document"  # of a model with such weights, or with routes
    # With a Router: the models that queries and documents go through, itself among them.
    routes: dict[str, ModelFolder] = field(default_factory=dict)

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


def module_paths(folder: Path) -> list[tuple[str, Path]]:
    """(class name, folder) of each module; plain transformers folders get a pooling.

    Raises:
        ValueError: modules.json is damaged, or a path leads out of the folder.
    """
    path = folder / "modules.json"
    if not path.is_file():
        config = read_object(folder / "config.json") if (folder / "config.json").is_file() else {}
        if config.get("model_type") != "model2vec":
            return [("Transformer", folder), ("Pooling", Path())]  # see plain_pooling
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
        (m["type"].rsplit(".", 1)[-1], within(folder, m.get("path", ""), path)) for m in modules
    ]


def listed_modules(folder: Path) -> list[tuple[str, Path]]:
    """The same where the folder lists its modules, else nothing; raises as module_paths does."""
    return module_paths(folder) if (folder / "modules.json").is_file() else []


def within(folder: Path, name: str, source: Path) -> Path:
    """Return a module's folder, which lies in the model's own: saving writes where it was read.

    Raises:
        ValueError: the path leads out of the folder, or cannot be a file's name. ``source`` says
            where it was read.
    """
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


def plain_pooling(folder: Path) -> str:
    """Return the pooling of a folder that names none, as sentence-transformers chooses it."""
    config = read_object(folder / "config.json")
    names = config.get("architectures")
    is_language_model = (
        isinstance(names, list) and bool(names) and str(names[0]).endswith("ForCausalLM")
    )
    return "lasttoken" if is_language_model and config.get("is_causal", True) else "mean"


def _sentence_config(transformer: Path) -> Config:
    """Return what sentence-transformers keeps beside the weights."""
    for name in _SENTENCE_CONFIGS:
        path = transformer / name
        if path.is_file() and (values := read_object(path)):
            return Config(path, values)
    return Config(transformer / _SENTENCE_CONFIGS[0], {})


def _check_sentence_config(config: Config) -> None:
    """Check that a folder's settings ask for nothing that is not computed.

    Raises:
        ValueError: they do (the key is named).
    """
    for key in ("query_length", "document_length", "query_expansion"):
        config.want(key, None)
    for name in _ARGUMENTS:
        given = config.values.get(name) or {}
        if not isinstance(given, dict):
            raise ValueError(f"{config.path}: {name} is {given!r:.60}, wanted an object")
        for argument in sorted(given.keys() - _HARMLESS_ARGUMENTS):
            raise ValueError(
                f"{config.path}: {name} holds {argument!r}, which minifuse does not compute"
            )
    ways = config.values.get("modality_config") or {}
    if not isinstance(ways, dict):
        raise ValueError(f"{config.path}: modality_config is {ways!r:.60}, wanted an object")
    if "message" in ways:
        raise ValueError(f"{config.path}: {_CHAT_TEMPLATE}")
    text = ways.get("text") or {}
    if not isinstance(text, dict):
        raise ValueError(f"{config.path}: modality_config is {ways!r:.60}, wanted objects in it")
    outputs = (None, "last_hidden_state", "logits")
    if text.get("method", "forward") != "forward" or text.get("method_output_name") not in outputs:
        raise ValueError(
            f"{config.path}: modality_config takes {text!r:.100} of a text, wanted the last hidden "
            "states or the logits of forward"
        )


def _max_seq_length(
    folder: Path,
    tokenizer_config: dict[str, Any],
    sentence_config: Config,
    description: ModelDescription,
) -> int:
    """Return the length that the folder says, but at most the positions that the model has.

    Rotary positions go on behind those of the configuration.
    """
    limit = description.max_position_embeddings
    try:
        of_calls = max_length_of(sentence_config.values.get("processing_kwargs"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{sentence_config.path}: {error}") from error
    value = of_calls or sentence_config.values.get("max_seq_length")
    has_table = description.has_position_embeddings or description.has_relative_bias
    if isinstance(value, (int, float)) and limit < value < _NO_LENGTH and not has_table:
        limit = min(_MOST_ANGLES // max(1, description.columns_of_head()), _MOST_POSITIONS)
    if value is None:
        value = tokenizer_config.get("model_max_length")
    if value is None:
        return limit
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 1:
        raise ValueError(f"{folder}: max_seq_length is {value!r:.60}, wanted a number >= 1")
    return int(min(value, limit))


def read_transformer(folder: Path, transformer: Path) -> ModelFolder:
    """Return what a folder says of its transformer, and sentence-transformers' settings.

    Raises:
        FileNotFoundError: config.json is missing.
        ValueError: a file is damaged, or asks for what is not computed.
    """
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
    model = with_settings(folder, transformer, architecture, description)
    tokenizer_config = _tokenizer_config(transformer)
    for key, wanted in (("truncation_side", "right"), ("split_special_tokens", False)):
        Config(transformer / "tokenizer_config.json", tokenizer_config).want(key, wanted)
    sentence_config = _sentence_config(transformer)
    if (folder / "modules.json").is_file():  # else nobody else reads it
        _check_sentence_config(sentence_config)
    if not (folder / "modules.json").is_file() and _has_chat_template(transformer):
        raise ValueError(f"{transformer}: {_CHAT_TEMPLATE}")
    length = _max_seq_length(folder, tokenizer_config, sentence_config, description)
    model.max_seq_length = length
    if length > description.max_position_embeddings:
        model.description = dataclasses.replace(description, max_position_embeddings=length)
    model.do_lower_case = bool(sentence_config.values.get("do_lower_case", False))
    model.has_token_types = description.type_vocab_size > 1 and _gives_token_types(tokenizer_config)
    if model.activation_fn is None:
        model.activation_fn = _old_activation_fn(config)
    return model


def with_settings(
    folder: Path, transformer: Path, architecture: Architecture, description: ModelDescription
) -> ModelFolder:
    """Return a model with what config_sentence_transformers.json says.

    Raises:
        ValueError: it is damaged.
    """
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


def _has_chat_template(transformer: Path) -> bool:
    """Return whether a folder says how to put a conversation into words."""
    if (transformer / "chat_template.jinja").is_file():
        return True
    return _tokenizer_config(transformer).get("chat_template") is not None


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
