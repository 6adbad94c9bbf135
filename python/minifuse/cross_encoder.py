"""CrossEncoder: sentence-transformers' class for scoring pairs of texts, on our encoder.

A pair is one row of tokens that goes through the encoder without padding; the head of the
checkpoint turns it into scores. A pair has the same bits alone and in any batch.
docs/differences.md lists where it differs from sentence-transformers on purpose.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tokenizers  # noqa: F401  pairs ask for it, and then a handler or a fork might be in its way

from minifuse.base_model import BaseModel, either, progress_bar, update_json
from minifuse.models.folder import read_cross_encoder_folder
from minifuse.models.inputs import as_list, checked_batch_size, length_of_call
from minifuse.models.modules import DenseModule, activation_of_class, class_of_activation
from minifuse.models.pipeline import Request
from minifuse.native import core
from minifuse.tensors import import_torch, prefers_tensors

__all__ = ["CrossEncoder"]

logger = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float32]
# Version 6 of sentence-transformers writes this of a cross-encoder.
_SEQUENCE_CLASSIFICATION = {
    "transformer_task": "sequence-classification",
    "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
    "module_output_name": "scores",
}
_MODULES = [
    {
        "idx": 0,
        "name": "0",
        "path": "",
        "type": "sentence_transformers.base.modules.transformer.Transformer",
    }
]
# Names of arguments before version 4 of sentence-transformers.
_OLD_ARGUMENTS = {
    "automodel_args": "model_kwargs",
    "tokenizer_args": "processor_kwargs",
    "config_args": "config_kwargs",
}
# A name of the kernels, or a function of a tensor.
Activation = str | Callable[[Any], Any]


class CrossEncoder(BaseModel):
    """A model that scores pairs of texts: a reranker or a classifier of pairs.

    Args:
        model_name_or_path: a folder or a Hugging Face name of a model for sequence classification.
        num_labels: checked against the model's.
        max_length: pairs are cut at this many tokens, special tokens included, the longer text
            first.
        activation_fn: what scores go through: a function of a tensor (torch.nn.Sigmoid()), or
            "identity", "sigmoid", "tanh", "relu", "gelu", "silu". None takes the model's own, by
            name and never by executing code; without one, the sigmoid for one label and none for
            several.
        device, dtype, num_threads, prompts, cache_folder and others: as SentenceTransformer's.

    Raises:
        FileNotFoundError: no such model, or a file of it is missing.
        ValueError: the model or an argument asks for what minifuse does not compute.
    """

    model_type = "CrossEncoder"
    _read_folder = staticmethod(read_cross_encoder_folder)

    def __init__(
        self,
        model_name_or_path: str | Path | None = None,
        *,
        num_labels: int | None = None,
        max_length: int | None = None,
        activation_fn: Activation | None = None,
        **kwargs: Any,
    ) -> None:
        for old, name in _OLD_ARGUMENTS.items():
            if old in kwargs:
                message = f"The `{old}` argument was renamed and is now deprecated: use {name}"
                logger.warning(message)
                kwargs[name] = either(kwargs.get(name), kwargs.pop(old), name, old)
        if max_length is not None:
            options = dict(kwargs.get("processor_kwargs") or {})
            kwargs["processor_kwargs"] = {**options, "model_max_length": max_length}
        super().__init__(model_name_or_path, **kwargs)
        if num_labels is not None and num_labels != self.num_labels:
            raise ValueError(
                f"num_labels is {num_labels}, but the head of {self.name} gives {self.num_labels}"
            )
        self.activation_fn = self._own_activation() if activation_fn is None else activation_fn

    def _own_activation(self) -> str:
        """The kernels' name of what the folder says that scores go through."""
        path = self.pipeline.folder.activation_fn
        default = "sigmoid" if self.num_labels == 1 else "identity"
        if path is None:
            return default
        if not path.startswith("torch."):
            logger.warning(
                "Activation function path '%s' is not trusted, using default activation function "
                "instead. It is %s; pass activation_fn= for another one.",
                path,
                default,
            )
            return default
        name = activation_of_class(path)
        if name is None:
            raise ValueError(f"{self.name}: activation_fn is {path!r}: pass activation_fn=")
        return "identity" if name == "none" else name

    # ---- properties -------------------------------------------------------------------------

    @property
    def num_labels(self) -> int:
        """Scores of a pair."""
        head = self.pipeline.folder.modules[-1]
        assert isinstance(head, DenseModule)
        return head.out_features

    @property
    def activation_fn(self) -> Activation:
        """The function of the scores: a name of the kernels, or a function of a tensor.

        PyTorch's class in place of a name after prefer_tensors().
        """
        if isinstance(self._activation_fn, str) and prefers_tensors():
            path = str(class_of_activation(self._activation_fn))
            return getattr(import_torch().nn, path.rsplit(".", 1)[-1])()  # type: ignore[no-any-return]
        return self._activation_fn

    @activation_fn.setter
    def activation_fn(self, value: Activation) -> None:
        if isinstance(value, str) and class_of_activation(value) is None:
            raise ValueError(
                f"activation_fn is {value!r}, wanted a function of a tensor, or identity, sigmoid, "
                "tanh, relu, gelu or silu"
            )
        if not isinstance(value, str) and not callable(value):
            raise TypeError(f"activation_fn is a {type(value).__name__}, wanted a function")
        self._activation_fn = value

    @property
    def default_activation_function(self) -> Activation:
        """The same as activation_fn, by its old name."""
        return self.activation_fn

    @property
    def max_length(self) -> int:
        """The same as max_seq_length, by its old name."""
        return self.max_seq_length

    @max_length.setter
    def max_length(self, value: int) -> None:
        self.max_seq_length = value

    def __repr__(self) -> str:
        return (
            f"CrossEncoder({self._name!r}, max_seq_length={self.max_seq_length}, "
            f"num_labels={self.num_labels}, dtype='{self.dtype}', isa='{self.isa}', "
            f"num_threads={self._num_threads})"
        )

    def _state(self) -> dict[str, Any]:
        return super()._state() | {"activation_fn": self._activation_fn}

    def _restore(self, state: dict[str, Any]) -> None:
        super()._restore(state)
        self._activation_fn = state["activation_fn"]

    def _write_settings(self, folder: Path) -> None:
        super()._write_settings(folder)
        source = self.pipeline.folder
        transformer = folder / source.transformer_path.relative_to(source.path)
        # Version 6 of sentence-transformers reads modules.json and what stands beside it, earlier
        # ones config.json; the length is the tokenizer's in both.
        if source.is_classifier:
            update_json(transformer / "sentence_bert_config.json", _SEQUENCE_CLASSIFICATION)
            if not (folder / "modules.json").is_file():
                (folder / "modules.json").write_text(json.dumps(_MODULES, indent=2) + "\n")
        lengths = {"model_max_length": self.max_seq_length}
        update_json(transformer / "tokenizer_config.json", lengths)
        if (path := self._path_of_activation()) is not None:
            update_json(
                transformer / "config.json", {"sentence_transformers": {"activation_fn": path}}
            )

    def _settings(self) -> dict[str, Any]:
        settings = super()._settings()
        if (path := self._path_of_activation()) is not None:
            settings["activation_fn"] = path
        return settings

    def _path_of_activation(self) -> str | None:
        """The class of PyTorch that stands for the activation in a folder; None: there is none."""
        if isinstance(self._activation_fn, str):
            return class_of_activation(self._activation_fn)
        kind = type(self._activation_fn)
        path = f"{kind.__module__}.{kind.__qualname__}"
        is_plain = getattr(self._activation_fn, "approximate", "none") == "none"  # of GELU
        return path if is_plain and activation_of_class(path) is not None else None

    # ---- scores -----------------------------------------------------------------------------

    @staticmethod
    def is_singular_input(inputs: Any) -> bool:
        """Return whether the input is one pair, and not a list of pairs."""
        if isinstance(inputs, np.ndarray):
            return inputs.size > 0 and inputs.ndim < 2
        if isinstance(inputs, (list, tuple)):
            return len(inputs) > 0 and isinstance(inputs[0], str)
        return isinstance(inputs, str)

    def predict(
        self,
        inputs: Any = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Activation | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        pool: Any = None,
        chunk_size: int | None = None,
        *,
        sentences: Any = None,
        num_threads: int | None = None,
        truncation: Literal["cut", "error"] = "cut",
        **kwargs: Any,
    ) -> Any:
        """Score pairs of texts.

        Args:
            inputs: a pair, or a list or NumPy array [n, 2] of pairs. ``sentences`` is its old name.
            prompt_name, prompt: put before the first text of every pair.
            batch_size: at most so many pairs share one pass of a thread. It bounds memory and
                never changes a bit of the result.
            show_progress_bar: None shows one where this logger's level is INFO or DEBUG.
            activation_fn: for this call; None takes the model's.
            apply_softmax: make the scores of several labels sum to 1.
            convert_to_numpy: False gives a list of tensors.
            convert_to_tensor: one tensor.
            device: None or the model's own.
            pool, chunk_size: accepted and ignored, because threads serve.
            num_threads: for this call; None takes the model's.
            truncation: "error" raises where a pair would be cut, instead of cutting it.
            processing_kwargs: {"text": {"max_length": n}} cuts pairs at n tokens in this call.

        Returns:
            float32 [n] for one label, [n, num_labels] for several; without the first dimension for
            a single pair.

        Raises:
            TypeError: an input is not a pair of strings.
            ValueError: an argument that is out of range, a lone surrogate.
            ImportError: a tensor is asked and PyTorch is not installed.
            KeyboardInterrupt: within a second of Ctrl-C.
        """
        inputs = either(inputs, sentences, "inputs", "sentences")
        if inputs is None:
            raise TypeError("inputs is None, wanted a pair of strings or a list of pairs")
        batch_size = checked_batch_size(batch_size)
        if truncation not in ("cut", "error"):
            raise ValueError(f"truncation is {truncation!r}, wanted 'cut' or 'error'")
        self._check_device(device)
        torch: Any = import_torch() if convert_to_tensor or not convert_to_numpy else None
        is_single = self.is_singular_input(inputs)
        pairs = _pairs([list(inputs)] if is_single else as_list(inputs))
        request = Request(
            num_threads=self._threads_of_call(num_threads),
            prompt=self._resolve_prompt(prompt, prompt_name) or "",
            batch_size=batch_size,
            refuses_long=truncation == "error",
            max_length=length_of_call(f"{type(self).__name__}.predict()", kwargs),
        )
        with progress_bar(len(pairs), show_progress_bar) as advance:
            scores, _ = self.pipeline.encode(pairs, request, advance)
        activation = self._activation_fn if activation_fn is None else activation_fn
        scores = _activated(scores, activation)
        if self.num_labels == 1:
            scores = scores.reshape(len(pairs))
        elif apply_softmax:
            scores = _softmax(scores)
        if convert_to_tensor:
            scores = torch.from_numpy(scores).to(self.device)
        elif not convert_to_numpy:
            scores = list(torch.from_numpy(scores))
        return scores[0] if is_single else scores

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Activation | None = None,
        device: Any = None,
        pool: Any = None,
        chunk_size: int | None = None,
        *,
        num_threads: int | None = None,
        convert_to_numpy: bool | None = None,
        convert_to_tensor: bool | None = None,
    ) -> list[dict[str, Any]]:
        """Sort documents by their score with a query, the best first; ties keep their order.

        Args:
            query: a text.
            documents: texts.
            top_k: give only so many; None gives all.
            return_documents: put each document's text beside its score.
            prompt_name, prompt, batch_size, show_progress_bar, activation_fn, device, pool,
                chunk_size, num_threads: as predict takes them.
            convert_to_numpy, convert_to_tensor: accepted with a warning; scores are numbers.

        Returns:
            A dict a document: "corpus_id", its place among documents; "score"; and "text".

        Raises:
            ValueError: the model has several labels, or as predict raises.
        """
        if self.num_labels != 1:
            raise ValueError(
                "CrossEncoder.rank() only works for models with num_labels=1. "
                "Consider using CrossEncoder.predict() with input pairs instead."
            )
        for name, value in (
            ("convert_to_numpy", convert_to_numpy),
            ("convert_to_tensor", convert_to_tensor),
        ):
            if value is not None:
                logger.warning("%s changes nothing: rank gives scores as numbers", name)
        texts = as_list(documents)
        scores = self.predict(
            [[query, text] for text in texts],
            prompt_name=prompt_name,
            prompt=prompt,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            activation_fn=activation_fn,
            device=device,
            pool=pool,
            chunk_size=chunk_size,
            num_threads=num_threads,
        ).tolist()
        order = sorted(range(len(texts)), key=lambda place: scores[place], reverse=True)
        results: list[dict[str, Any]] = []
        for place in order[:top_k]:
            results.append({"corpus_id": place, "score": scores[place]})
            if return_documents:
                results[-1]["text"] = texts[place]
        return results


def _pairs(inputs: list[Any]) -> list[Any]:
    """The inputs, each checked to have two parts; the pipeline looks at these."""
    for place, pair in enumerate(inputs):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise TypeError(f"inputs[{place}] is {pair!r:.60}, wanted a pair of strings")
    return inputs


def _activated(scores: FloatArray, activation: Activation) -> FloatArray:
    """Scores through an activation: the kernels', or a function of a tensor."""
    if activation == "identity":
        return scores
    if isinstance(activation, str):
        return core.vector_math(activation, scores)
    result = activation(import_torch().from_numpy(scores))
    return np.asarray(result.detach().numpy(), np.float32)


def _softmax(scores: FloatArray) -> FloatArray:
    """e^s / sum of e^s in each row, by the kernels' exponential: the same bits everywhere."""
    powers = core.vector_math("exp", scores - scores.max(axis=1, keepdims=True, initial=-np.inf))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True, dtype=np.float64), np.float32)
