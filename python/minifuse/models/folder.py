"""A sentence-transformers folder as data: everything that it says besides weights and tokenizer.

Whatever this package does not compute (another architecture, activation, pooling or module) is
refused by name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from minifuse.models.architectures import Architecture, Head, architecture_of
from minifuse.models.checkpoint import find_weights, open_checkpoint
from minifuse.models.description import Config, ModelDescription, read_json, read_object
from minifuse.native import core

__all__ = [
    "QUANTIZED_WEIGHTS",
    "DenseModule",
    "ModelFolder",
    "NormalizeModule",
    "activation_of_class",
    "class_of_activation",
    "is_cross_encoder",
    "read_cross_encoder_folder",
    "read_model_folder",
]

# Beside config.json in a folder that `minifuse quantize` wrote, in place of model.safetensors.
QUANTIZED_WEIGHTS = "model.int8.safetensors"

# PyTorch's classes of activations -> the kernels' names.
_ACTIVATION_CLASSES = {
    "Identity": "none",
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "SiLU": "silu",
    "Sigmoid": "sigmoid",
}
_POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
# The order in which sentence-transformers concatenates the old style's flags.
_OLD_POOLING_KEYS = {
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


def activation_of_class(name: str) -> str | None:
    """Return the kernels' name of a class of PyTorch, given by its path; None: there is none."""
    return _ACTIVATION_CLASSES.get(name.rsplit(".", 1)[-1]) if name.startswith("torch.") else None


def class_of_activation(name: str) -> str | None:
    """Return the path of PyTorch's class of an activation; None: there is none of that name."""
    kernel = "none" if name == "identity" else name
    classes = {kernel: kind for kind, kernel in _ACTIVATION_CLASSES.items()}
    if kernel not in classes:
        return None
    module = "linear" if kernel == "none" else "activation"
    return f"torch.nn.modules.{module}.{classes[kernel]}"


@dataclass
class DenseModule:
    """activation(x W^T + bias), after the pooling: W is [out_features, in_features].

    The activation goes by the kernels' name, "none" included.
    """

    weight: core.PackedLinear
    bias: npt.NDArray[np.float32] | None
    activation: str

    @property
    def out_features(self) -> int:
        """The width of what it gives."""
        return int(self.weight.out_features)

    def __call__(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Apply to x [batch, in_features]."""
        return core.linear(np.ascontiguousarray(x), self.weight, self.bias, self.activation)


@dataclass
class LayerNormModule:
    """LayerNorm(x), after the pooling; gamma and beta are [width]."""

    gamma: npt.NDArray[np.float32]
    beta: npt.NDArray[np.float32]
    eps: float

    def __call__(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Apply to x [batch, width]."""
        return core.layer_norm(np.ascontiguousarray(x), self.gamma, self.beta, self.eps, None)


class NormalizeModule:
    """x / max(||x||, 1e-12)."""

    def __call__(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Apply to x [batch, width]."""
        return core.l2_normalize(np.ascontiguousarray(x))


@dataclass
class ModelFolder:
    """Everything that a folder says besides the weights and the tokenizer."""

    path: Path
    transformer_path: Path
    architecture: Architecture
    description: ModelDescription
    poolings: list[str]
    include_prompt: bool
    modules: list[DenseModule | LayerNormModule | NormalizeModule]
    max_seq_length: int
    do_lower_case: bool
    has_token_types: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    similarity_fn_name: str | None = None
    truncate_dim: int | None = None
    activation_fn: str | None = None

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
        return _weights_path(self.transformer_path)


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
            if key.startswith("pooling_mode_") and value and key not in _OLD_POOLING_KEYS
        ]
        if unknown:
            raise ValueError(f"{path}: pooling {unknown[0]!r} is not supported")
        modes = [name for key, name in _OLD_POOLING_KEYS.items() if config.get(key)]
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


def _read_dense(path: Path) -> DenseModule:
    config = read_object(path / "config.json")
    name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    activation = activation_of_class(name)
    if activation is None:
        known = ", ".join(_ACTIVATION_CLASSES)
        raise ValueError(f"{path}: Dense activation {name!r}, wanted one of {known}")
    if config.get("use_residual"):
        raise ValueError(f"{path}: Dense with use_residual is not supported")
    with open_checkpoint(_weights_path(path)) as file:
        if "linear.weight" not in file.names():
            raise ValueError(f"{path}: the Dense module lacks the tensor 'linear.weight'")
        weight = file.read("linear.weight")
        bias = file.read("linear.bias") if "linear.bias" in file.names() else None
    sizes = Config(path, config)
    wanted = tuple(sizes.integer(key) for key in ("out_features", "in_features"))
    if weight.shape != wanted:
        raise ValueError(f"{path}: 'linear.weight' has shape {weight.shape}, wanted {wanted}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{path}: 'linear.bias' has shape {bias.shape}, wanted {weight.shape[:1]}")
    return DenseModule(core.pack_linear(weight, "float32"), bias, activation)


def _read_layer_norm(path: Path) -> LayerNormModule:
    width = Config(path, read_object(path / "config.json")).integer("dimension")
    with open_checkpoint(_weights_path(path)) as file:
        for name in ("norm.weight", "norm.bias"):
            if name not in file.names():
                raise ValueError(f"{path}: the LayerNorm module lacks the tensor {name!r}")
        gamma, beta = file.read("norm.weight"), file.read("norm.bias")
    for name, tensor in (("norm.weight", gamma), ("norm.bias", beta)):
        if tensor.shape != (width,) or width == 0:
            raise ValueError(f"{path}: {name!r} has shape {tensor.shape}, wanted ({width},)")
    return LayerNormModule(gamma, beta, 1e-5)  # PyTorch's epsilon


def _weights_path(folder: Path) -> Path:
    path = find_weights(folder)
    if path is None:
        raise FileNotFoundError(
            f"{folder}: model.safetensors is missing, and so is pytorch_model.bin"
        )
    return path


def _module_paths(folder: Path) -> list[tuple[str, Path]]:
    """(class name, folder) of each module; plain transformers folders get mean pooling."""
    path = folder / "modules.json"
    if not path.is_file():
        return [("Transformer", folder), ("Pooling", Path())]
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
    if not kinds or kinds[0][0] != "Transformer":
        raise ValueError(f"{folder}: modules.json must begin with Transformer, got {kinds[:1]}")
    model = _read_transformer(folder, kinds[0][1])
    for index, (kind, path) in enumerate(kinds[1:]):
        if kind == "Pooling" and index == 0:
            if path != Path():
                model.poolings, model.include_prompt = _read_pooling(path)
        elif kind == "Dense":
            model.modules.append(_read_dense(path))
        elif kind == "LayerNorm":
            model.modules.append(_read_layer_norm(path))
        elif kind == "Normalize":
            model.modules.append(NormalizeModule())
        elif kind != "Dropout":  # which drops nothing when a model is used
            raise ValueError(
                f"{folder}: module {kind!r} at place {index + 1} is not supported; "
                "wanted Transformer, Pooling, then any of Dense, Dropout, LayerNorm and Normalize"
            )
    if len(kinds) == 1:
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
    model.modules = list(_read_head(model))
    return model


def _read_head(model: ModelFolder) -> Iterator[DenseModule | LayerNormModule]:
    """The layers of a head for classification, by the family's names, from the encoder's file."""
    head, path = model.architecture.head, model.weights_path
    if head is None:
        raise ValueError(f"{model.path}: minifuse has no cross-encoders of this family")
    model.poolings = [_head_pooling(model, head)]
    layers = ((head.dense, head.activation), (head.output, "none"))
    with open_checkpoint(path) as file:
        names = {model.architecture.own_name(name): name for name in file.names()}
        width = model.description.hidden_size
        for layer, activation in layers:
            if f"{layer}.weight" not in names:
                raise ValueError(
                    f"{path}: lacks the tensor '{layer}.weight': not a cross-encoder, but a "
                    "model that still has to be trained as one"
                )
            weight = file.read(names[f"{layer}.weight"])
            bias = file.read(names[f"{layer}.bias"]) if f"{layer}.bias" in names else None
            if weight.ndim != 2 or weight.shape[1] != width or weight.shape[0] == 0:
                raise ValueError(
                    f"{path}: '{layer}.weight' has shape {list(weight.shape)}, wanted "
                    f"[outputs, {width}]"
                )
            if bias is not None and bias.shape != weight.shape[:1]:
                raise ValueError(
                    f"{path}: '{layer}.bias' has shape {list(bias.shape)}, wanted "
                    f"{list(weight.shape[:1])}"
                )
            yield DenseModule(core.pack_linear(weight, "float32"), bias, activation)
            width = weight.shape[0]
            if layer == head.dense and head.norm:
                if f"{head.norm}.weight" not in names:
                    raise ValueError(f"{path}: lacks the tensor '{head.norm}.weight'")
                gamma = file.read(names[f"{head.norm}.weight"])
                if gamma.shape != (width,):
                    raise ValueError(
                        f"{path}: '{head.norm}.weight' has shape {list(gamma.shape)}, wanted "
                        f"[{width}]"
                    )
                beta = np.zeros_like(gamma)
                yield LayerNormModule(gamma, beta, model.description.layer_norm_eps)


def _head_pooling(model: ModelFolder, head: Head) -> str:
    """Return the pooling before a head, which some families' config.json says."""
    if head.pooling_key is None:
        return head.pooling
    path = model.transformer_path / "config.json"
    pooling = read_object(path).get(head.pooling_key, head.pooling)
    if pooling not in ("cls", "mean"):
        raise ValueError(f"{path}: {head.pooling_key} is {pooling!r:.60}, wanted cls or mean")
    return str(pooling)


def _read_transformer(folder: Path, transformer: Path) -> ModelFolder:
    """Everything that a folder says of its transformer, and sentence-transformers' settings."""
    config_path = transformer / "config.json"
    if not config_path.is_file():
        raise FileNotFoundError(
            f"{transformer}: config.json is missing, so this is no model folder"
        )
    config = Config(config_path, read_object(config_path))
    architecture = architecture_of(config)
    description = architecture.describe(config)
    sentence_config = _sentence_config(transformer)
    tokenizer_config = _tokenizer_config(transformer)
    limit = description.max_position_embeddings

    settings: dict[str, Any] = {}
    settings_path = folder / "config_sentence_transformers.json"
    if settings_path.is_file():
        settings = read_object(settings_path)
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(
        text is None or isinstance(text, str) for text in prompts.values()
    ):
        raise ValueError(f"{settings_path}: prompts is {prompts!r:.60}, wanted names and strings")
    truncate_dim = settings.get("truncate_dim")
    if truncate_dim is not None and (type(truncate_dim) is not int or truncate_dim < 1):
        raise ValueError(f"{settings_path}: truncate_dim is {truncate_dim!r:.60}, wanted >= 1")
    return ModelFolder(
        path=folder,
        transformer_path=transformer,
        architecture=architecture,
        description=description,
        poolings=["mean"],
        include_prompt=True,
        modules=[],
        max_seq_length=_max_seq_length(folder, tokenizer_config, sentence_config, limit),
        do_lower_case=bool(sentence_config.get("do_lower_case", False)),
        has_token_types=description.type_vocab_size > 1 and _gives_token_types(tokenizer_config),
        prompts={str(k): v or "" for k, v in prompts.items()},
        default_prompt_name=_text(settings_path, settings, "default_prompt_name"),
        similarity_fn_name=_text(settings_path, settings, "similarity_fn_name"),
        truncate_dim=truncate_dim,
        activation_fn=_activation_fn(settings_path, settings, config),
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


def _activation_fn(path: Path, settings: dict[str, Any], config: Config) -> str | None:
    """The path of the class that scores of pairs go through, where the folder names one."""
    if (name := _text(path, settings, "activation_fn")) is not None:
        return name
    inner = config.values.get("sentence_transformers")
    inner = inner if isinstance(inner, dict) else {}
    name = _text(config.path, inner, "activation_fn")
    return name or _text(config.path, config.values, "sbert_ce_default_activation_function")
