"""The layers behind an encoder: Dense, LayerNorm and Normalize modules of sentence-transformers,
and the layers of a head for classification.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from minifuse.models.architectures import Architecture, Head
from minifuse.models.checkpoint import find_weights, open_checkpoint
from minifuse.models.description import Config, ModelDescription, read_object
from minifuse.native import core

__all__ = [
    "DenseModule",
    "LayerNormModule",
    "Module",
    "NormalizeModule",
    "activation_of_class",
    "class_of_activation",
    "read_dense",
    "read_head",
    "read_layer_norm",
    "read_logit_score",
    "weights_of",
]

# PyTorch's classes of activations -> the kernels' names.
_ACTIVATION_CLASSES = {
    "Identity": "none",
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "SiLU": "silu",
    "Sigmoid": "sigmoid",
}


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


Module = DenseModule | LayerNormModule | NormalizeModule


def weights_of(folder: Path) -> Path:
    """Return the file that a folder's weights are read from.

    Raises:
        FileNotFoundError: there is none.
    """
    path = find_weights(folder)
    if path is None:
        raise FileNotFoundError(
            f"{folder}: model.safetensors is missing, and so is pytorch_model.bin"
        )
    return path


def read_dense(path: Path, output: str = "sentence_embedding") -> DenseModule:
    """Return a Dense module from its folder.

    Args:
        path: of its folder.
        output: what it has to give, by sentence-transformers' name.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or asks for what is not computed.
    """
    config = read_object(path / "config.json")
    name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    activation = activation_of_class(name)
    if activation is None:
        known = ", ".join(_ACTIVATION_CLASSES)
        raise ValueError(f"{path}: Dense activation {name!r}, wanted one of {known}")
    taken = config.get("module_input_name") or "sentence_embedding"
    given = config.get("module_output_name") or taken
    if (taken, given) != ("sentence_embedding", output):
        raise ValueError(
            f"{path}: Dense makes {given!r:.60} of {taken!r:.60}, wanted {output!r} of "
            "'sentence_embedding'"
        )
    if config.get("use_residual"):
        raise ValueError(f"{path}: Dense with use_residual is not supported")
    with open_checkpoint(weights_of(path)) as file:
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


def read_layer_norm(path: Path) -> LayerNormModule:
    """Return a LayerNorm module from its folder; raises as read_dense does."""
    width = Config(path, read_object(path / "config.json")).integer("dimension")
    with open_checkpoint(weights_of(path)) as file:
        for name in ("norm.weight", "norm.bias"):
            if name not in file.names():
                raise ValueError(f"{path}: the LayerNorm module lacks the tensor {name!r}")
        gamma, beta = file.read("norm.weight"), file.read("norm.bias")
    for name, tensor in (("norm.weight", gamma), ("norm.bias", beta)):
        if tensor.shape != (width,) or width == 0:
            raise ValueError(f"{path}: {name!r} has shape {tensor.shape}, wanted ({width},)")
    return LayerNormModule(gamma, beta, 1e-5)  # PyTorch's epsilon


def read_head(
    path: Path, architecture: Architecture, head: Head, description: ModelDescription
) -> Iterator[DenseModule | LayerNormModule]:
    """Yield the layers of a head for classification, by the family's names.

    Raises:
        ValueError: a tensor is missing or misshapen, or the file is damaged.
    """
    with open_checkpoint(path) as file:
        names = {architecture.own_name(name): name for name in file.names()}

        def read(name: str, wanted: tuple[int | None, ...]) -> npt.NDArray[np.float32] | None:
            if name not in names:
                return None
            tensor = file.read(names[name])
            sizes = [m if n is None else n for n, m in zip(wanted, tensor.shape, strict=False)]
            if sizes != list(tensor.shape) or len(sizes) != len(wanted) or tensor.size == 0:
                shape = ["outputs" if n is None else n for n in wanted]
                raise ValueError(f"{path}: {name!r} has shape {list(tensor.shape)}, wanted {shape}")
            return tensor

        width = description.hidden_size
        layers = [(head.output, "none")]
        if head.dense is not None:
            layers.insert(0, (head.dense, head.activation))
        for layer, activation in layers:
            weight = read(f"{layer}.weight", (None, width))
            if weight is None:
                raise ValueError(
                    f"{path}: lacks the tensor '{layer}.weight': not a cross-encoder, but a "
                    "model that still has to be trained as one"
                )
            width = len(weight)
            bias = read(f"{layer}.bias", (width,))
            yield DenseModule(core.pack_linear(weight, "float32"), bias, activation)
            if layer != head.dense or head.norm is None:
                continue
            gamma = read(f"{head.norm}.weight", (width,))
            if gamma is None:
                raise ValueError(f"{path}: lacks the tensor '{head.norm}.weight'")
            yield LayerNormModule(gamma, np.zeros_like(gamma), description.layer_norm_eps)


def read_logit_score(
    path: Path,
    architecture: Architecture,
    description: ModelDescription,
    true_id: int,
    false_id: int | None,
    is_tied: bool | None,
) -> DenseModule:
    """Return the score of a language model: the logit of a token, less that of another one.

    A logit is a row of the last matrix times the last token's row, so the difference is a layer of
    one output.

    Args:
        path: of the file of weights.
        architecture, description: of the model.
        true_id, false_id: the tokens; None: the score is the first one's logit.
        is_tied: the last matrix is the table of words; None: where the file has no other one.

    Raises:
        ValueError: the matrix is missing or misshapen, or has no row for a token.
    """
    own, words = architecture.language_matrix, architecture.source("embeddings.word")
    tied = getattr(words, "name", None)
    wanted = {True: [tied], False: [own], None: [own, tied]}[is_tied]
    with open_checkpoint(path) as file:
        names = {architecture.own_name(name): name for name in file.names()}
        found = [name for name in wanted if name in names]
        if not found:
            raise ValueError(f"{path}: lacks the tensor {wanted[0]!r}")
        matrix = file.read(names[found[0]])
    if matrix.ndim != 2 or matrix.shape[1] != description.hidden_size:
        raise ValueError(
            f"{path}: {found[0]!r} has shape {list(matrix.shape)}, wanted [words, "
            f"{description.hidden_size}]"
        )
    for token in (true_id, false_id):
        if token is not None and not 0 <= token < len(matrix):
            raise ValueError(f"{path}: {found[0]!r} has no row {token}, which LogitScore asks for")
    weight = matrix[[true_id]] if false_id is None else matrix[[true_id]] - matrix[[false_id]]
    return DenseModule(core.pack_linear(np.ascontiguousarray(weight), "float32"), None, "none")
