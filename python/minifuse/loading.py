"""A sentence-transformers folder as data: what the model is, and an encoder with its weights.

One row per model family would stand in _ARCHITECTURES; today it is BERT. Whatever this package does
not compute (another architecture, activation, pooling or module) is refused by name.
"""

from __future__ import annotations

import functools
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from minifuse.devices import Device, cuda_module
from minifuse.native import core
from minifuse.safetensors import SafetensorsFile

__all__ = [
    "QUANTIZED_WEIGHTS",
    "BertConfig",
    "DenseModule",
    "ModelFolder",
    "NormalizeModule",
    "iterate_weights",
    "load_encoder",
    "new_encoder",
    "read_model_folder",
    "set_weights",
]

# Beside config.json in a folder that `minifuse quantize` wrote, in place of model.safetensors.
QUANTIZED_WEIGHTS = "model.int8.safetensors"

# The largest size in config.json that Python passes on; the native core checks each one.
_LARGEST_INTEGER = (1 << 62) - 1

_ARCHITECTURES = ("bert",)
# Hugging Face's names of an activation -> the kernels'.
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "relu": "relu",
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
_SENTENCE_CONFIGS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
)


@dataclass(frozen=True)
class BertConfig:
    """Sizes and settings of the encoder, by Hugging Face's names."""

    vocab_size: int
    max_position_embeddings: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    layer_norm_eps: float
    activation: str


@dataclass
class DenseModule:
    """activation(x W^T + bias), after the pooling: W is [out_features, in_features]."""

    weight: core.PackedLinear
    bias: npt.NDArray[np.float32] | None
    activation: str

    @property
    def out_features(self) -> int:
        """The width of what it gives."""
        return int(self.weight.out_features)

    def __call__(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Apply to x [batch, in_features]."""
        kernel = self.activation if self.activation in ("relu", "gelu") else "none"
        y = core.linear(np.ascontiguousarray(x), self.weight, self.bias, kernel)
        return np.tanh(y) if self.activation == "tanh" else y


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
    config: BertConfig
    poolings: list[str]
    include_prompt: bool
    modules: list[DenseModule | NormalizeModule]
    max_seq_length: int
    do_lower_case: bool
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    similarity_fn_name: str | None = None
    truncate_dim: int | None = None

    @property
    def is_quantized(self) -> bool:
        """True if the folder holds int8 matrices and no others."""
        return (self.transformer_path / QUANTIZED_WEIGHTS).is_file() and not (
            self.transformer_path / "model.safetensors"
        ).is_file()

    @property
    def weights_path(self) -> Path:
        """The encoder's file of weights.

        Raises:
            FileNotFoundError: there is none.
        """
        if self.is_quantized:
            return self.transformer_path / QUANTIZED_WEIGHTS
        return _weights_path(self.transformer_path)


def _read_json(path: Path) -> Any:
    try:
        with path.open(encoding="utf-8") as file:
            return json.load(file)
    except RecursionError as error:
        raise ValueError(f"{path}: lists or objects are nested too deeply") from error
    except ValueError as error:  # not JSON, not UTF-8, or a number of thousands of digits
        raise ValueError(f"{path}: not JSON ({error})") from error


def _read_object(path: Path) -> dict[str, Any]:
    value = _read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: holds a {type(value).__name__}, wanted an object")
    return value


def _integer(path: Path, config: dict[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key, default)
    if type(value) is not int or not 0 <= value <= _LARGEST_INTEGER:
        given = f"{value!r:.60}"
        raise ValueError(f"{path}: {key} is {given}, wanted an integer 0..{_LARGEST_INTEGER}")
    return value


def _text(path: Path, settings: dict[str, Any], key: str) -> str | None:
    value = settings.get(key)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{path}: {key} is {value!r:.60}, wanted a string or null")
    return value


def read_config(path: Path) -> BertConfig:
    """A BERT config.json.

    Raises:
        FileNotFoundError: there is none.
        ValueError: an architecture, activation or number that this package does not compute.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.parent}: config.json is missing, so this is no model folder"
        )
    config = _read_object(path)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in _ARCHITECTURES:
        raise ValueError(
            f"{path}: model_type is {model_type!r}; minifuse runs {', '.join(_ARCHITECTURES)} "
            "(use sentence-transformers for this model)"
        )
    if config.get("is_decoder") or config.get("add_cross_attention"):
        raise ValueError(f"{path}: a decoder; minifuse runs encoders")
    position = config.get("position_embedding_type", "absolute")
    if position != "absolute":
        raise ValueError(f"{path}: position_embedding_type is {position!r}, wanted 'absolute'")
    activation = config.get("hidden_act", "gelu")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise ValueError(
            f"{path}: hidden_act is {activation!r}, wanted one of {', '.join(_ACTIVATIONS)}"
        )
    eps = config.get("layer_norm_eps", 1e-12)
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not abs(eps) <= 1e300:
        raise ValueError(f"{path}: layer_norm_eps is {eps!r:.60}, wanted a number")
    return BertConfig(
        vocab_size=_integer(path, config, "vocab_size"),
        max_position_embeddings=_integer(path, config, "max_position_embeddings"),
        hidden_size=_integer(path, config, "hidden_size"),
        num_hidden_layers=_integer(path, config, "num_hidden_layers"),
        num_attention_heads=_integer(path, config, "num_attention_heads"),
        intermediate_size=_integer(path, config, "intermediate_size"),
        layer_norm_eps=float(eps),
        activation=_ACTIVATIONS[activation],
    )


def _read_pooling(path: Path) -> tuple[list[str], bool]:
    config = _read_object(path / "config.json")
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
    config = _read_object(path / "config.json")
    name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    activation = name.rsplit(".", 1)[-1].lower()
    if activation not in ("tanh", "identity", "relu", "gelu"):
        raise ValueError(f"{path}: Dense activation {name!r}, wanted Tanh, Identity, ReLU or GELU")
    if config.get("use_residual"):
        raise ValueError(f"{path}: Dense with use_residual is not supported")
    with SafetensorsFile(_weights_path(path)) as file:
        if "linear.weight" not in file.names():
            raise ValueError(f"{path}: the Dense module lacks the tensor 'linear.weight'")
        weight = file.read("linear.weight")
        bias = file.read("linear.bias") if "linear.bias" in file.names() else None
    wanted = tuple(_integer(path, config, key) for key in ("out_features", "in_features"))
    if weight.shape != wanted:
        raise ValueError(f"{path}: 'linear.weight' has shape {weight.shape}, wanted {wanted}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{path}: 'linear.bias' has shape {bias.shape}, wanted {weight.shape[:1]}")
    return DenseModule(core.pack_linear(weight, "float32"), bias, activation)


def _weights_path(folder: Path) -> Path:
    path = folder / "model.safetensors"
    if not path.is_file():
        old = (folder / "pytorch_model.bin").is_file()
        hint = "; pytorch_model.bin must be converted first" if old else ""
        raise FileNotFoundError(f"{folder}: model.safetensors is missing{hint}")
    return path


def _module_paths(folder: Path) -> list[tuple[str, Path]]:
    """(class name, folder) of each module; plain transformers folders get mean pooling."""
    path = folder / "modules.json"
    if not path.is_file():
        return [("Transformer", folder), ("Pooling", Path())]
    modules = _read_json(path)
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


def read_model_folder(folder: Path) -> ModelFolder:
    """Everything but the encoder's weights and the tokenizer.

    Raises:
        FileNotFoundError: a file that must be there is missing.
        ValueError: a file is damaged, or asks for what this package does not compute.
    """
    folder = folder.absolute()  # the working folder may change later
    kinds = _module_paths(folder)
    if not kinds or kinds[0][0] != "Transformer":
        raise ValueError(f"{folder}: modules.json must begin with Transformer, got {kinds[:1]}")
    transformer = kinds[0][1]
    config = read_config(transformer / "config.json")

    poolings, include_prompt = ["mean"], True
    modules: list[DenseModule | NormalizeModule] = []
    for index, (kind, path) in enumerate(kinds[1:]):
        if kind == "Pooling" and index == 0:
            if path != Path():
                poolings, include_prompt = _read_pooling(path)
        elif kind == "Dense":
            modules.append(_read_dense(path))
        elif kind == "Normalize":
            modules.append(NormalizeModule())
        else:
            raise ValueError(
                f"{folder}: module {kind!r} at place {index + 1} is not supported; "
                "wanted Transformer, Pooling, then any of Dense and Normalize"
            )
    if len(kinds) == 1:
        raise ValueError(f"{folder}: modules.json has no Pooling after Transformer")

    limit = config.max_position_embeddings
    sentence_config: dict[str, Any] = {}
    for name in _SENTENCE_CONFIGS:
        if (transformer / name).is_file():
            sentence_config = _read_object(transformer / name)
            break
    max_seq_length = sentence_config.get("max_seq_length")
    if max_seq_length is None:
        tokenizer_config = transformer / "tokenizer_config.json"
        if tokenizer_config.is_file():
            max_seq_length = _read_object(tokenizer_config).get("model_max_length")
    if max_seq_length is None:
        max_seq_length = limit
    if (
        isinstance(max_seq_length, bool)
        or not isinstance(max_seq_length, (int, float))
        or not max_seq_length >= 1
    ):
        raise ValueError(
            f"{folder}: max_seq_length is {max_seq_length!r:.60}, wanted a number >= 1"
        )

    settings: dict[str, Any] = {}
    settings_path = folder / "config_sentence_transformers.json"
    if settings_path.is_file():
        settings = _read_object(settings_path)
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
        config=config,
        poolings=poolings,
        include_prompt=include_prompt,
        modules=modules,
        max_seq_length=int(min(max_seq_length, limit)),
        do_lower_case=bool(sentence_config.get("do_lower_case", False)),
        prompts={str(k): v or "" for k, v in prompts.items()},
        default_prompt_name=_text(settings_path, settings, "default_prompt_name"),
        similarity_fn_name=_text(settings_path, settings, "similarity_fn_name"),
        truncate_dim=truncate_dim,
    )


def own_name(name: str) -> str:
    """A tensor's name without prefix, in the spelling of today."""
    return name.removeprefix("bert.").replace(".gamma", ".weight").replace(".beta", ".bias")


def iterate_weights(
    folder: ModelFolder, wanted: set[str]
) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """The wanted tensors one by one as float32, by their names without prefix."""
    with SafetensorsFile(folder.weights_path) as file:
        for name in file.names():
            ours = own_name(name)
            if ours in wanted:  # not the pooler, heads of other tasks, position_ids
                yield ours, file.read(name)


def new_encoder(config: BertConfig, dtype: str, device: str = "cpu") -> core.Encoder:
    """A native encoder without weights. dtype: "float32", "bfloat16", "int8" or "float16".

    Raises:
        ValueError: the device's kernels do not take this model, or there are none.
    """
    native: Any = core.Encoder
    if device != "cpu":
        native = functools.partial(cuda_module().Encoder, device=Device(device).index)
    encoder: core.Encoder = native(
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        layer_norm_eps=config.layer_norm_eps,
        activation=config.activation,
        dtype=dtype,
    )
    return encoder


def set_weights(encoder: core.Encoder, folder: ModelFolder) -> None:
    """Pack the folder's float tensors, each read, packed and dropped, and finish the encoder.

    Raises:
        ValueError: a tensor is missing, misshapen or of another dtype (named).

    Warns:
        RuntimeWarning: a tensor holds NaN.
    """
    path = folder.weights_path
    for name, array in iterate_weights(folder, set(encoder.missing_weights())):
        if array.size and np.isnan(array.min()):
            warnings.warn(f"{path}: tensor {name!r} holds NaN", RuntimeWarning, stacklevel=3)
        try:
            encoder.set_weight(name, array)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    try:
        encoder.finish_weights()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_encoder(folder: ModelFolder, dtype: str = "float32", device: str = "cpu") -> core.Encoder:
    """The native encoder in a type of floats, its weights packed.

    Raises and warns as set_weights does.

    Raises:
        FileNotFoundError: model.safetensors is missing.
        ValueError: the folder holds int8 matrices only.
    """
    if folder.is_quantized:
        raise ValueError(
            f"{folder.path}: holds int8 weights only, dtype={dtype!r} needs the model that they "
            "were made from"
        )
    encoder = new_encoder(folder.config, dtype, device)
    set_weights(encoder, folder)
    return encoder
