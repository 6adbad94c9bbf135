"""SentenceTransformer: sentence-transformers' class by name, argument and meaning, on our encoder.

Deliberate differences, each for a reason: an empty list gives a float32 array of shape (0, dim);
similarity gives an array for arrays and a tensor for tensors; batch_size bounds memory and never
changes a bit; token_embeddings come as arrays unless convert_to_tensor is asked.
docs/differences.md lists them all.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, overload

import numpy as np
import numpy.typing as npt

from minifuse.base_model import either, progress_bar
from minifuse.embedding_model import EmbeddingModel
from minifuse.models.folder import read_model_folder
from minifuse.models.inputs import WINDOW_TEXTS, as_list, checked_batch_size, length_of_call
from minifuse.models.parts import Pooling, Transformer
from minifuse.models.pipeline import EncodeInfo, OutputValue, Request
from minifuse.native.devices import Device
from minifuse.search import similarity
from minifuse.tensors import import_torch, preferred

__all__ = ["Device", "EncodeInfo", "SentenceTransformer"]

logger = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float32]


class SentenceTransformer(EmbeddingModel):
    """A sentence-embedding model.

    Args:
        model_name_or_path: a folder, a Hugging Face name, or a bare name for
            ``sentence-transformers/<name>``.
        device: None or "cpu"; "cuda" or "cuda:N" where this build has the CUDA part.
        dtype: "float32"; "bfloat16": half the memory, cosine with float32 at least 0.9999; "int8":
            the fastest, on the CPU; cosine with float32 at least 0.995 on every sentence and 0.999
            on average for English (its scales come from English sample text, so check with
            `minifuse evaluate` on your own where the texts are others); "float16": on a CUDA
            device; "auto": the fastest one of these on this CPU, bfloat16 on a device; None:
            "float32", or "int8" for a folder of `minifuse quantize`.
        num_threads: at most this many threads for a call; None takes the least of CPU affinity,
            cgroup quota, OMP_NUM_THREADS and physical cores.
        prompts: name -> text put before every input; merged over the model's own.
        default_prompt_name: the prompt that applies where none is given.
        similarity_fn_name: "cosine", "dot", "euclidean" or "manhattan".
        truncate_dim: keep only the first dimensions of every embedding.
        cache_folder, revision, token, local_files_only: as huggingface_hub takes them.
        backend, model_kwargs, processor_kwargs (or tokenizer_kwargs), config_kwargs,
            model_card_data, trust_remote_code: accepted where they change nothing here.

    Attributes:
        pipeline: tokenizer, native encoder and modules (minifuse.models.pipeline).

    Raises:
        FileNotFoundError: no such model, or a file of it is missing.
        ValueError: the model or an argument asks for what minifuse does not compute.
    """

    _lists_modules = True
    model_type = "SentenceTransformer"
    _read_folder = staticmethod(read_model_folder)
    _known_prompts: ClassVar[dict[str, str]] = {"query": "", "document": ""}

    def __init__(
        self,
        model_name_or_path: str | Path | None = None,
        *,
        modules: Any = None,
        device: Any = None,
        dtype: str | None = None,
        num_threads: int | None = None,
        prompts: dict[str, str] | None = None,
        default_prompt_name: str | None = None,
        cache_folder: str | Path | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
        local_files_only: bool = False,
        token: bool | str | None = None,
        use_auth_token: bool | str | None = None,
        model_kwargs: dict[str, Any] | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        tokenizer_kwargs: dict[str, Any] | None = None,
        config_kwargs: dict[str, Any] | None = None,
        model_card_data: Any = None,
        backend: str = "torch",
        similarity_fn_name: Any = None,
        truncate_dim: int | None = None,
    ) -> None:
        super().__init__(
            model_name_or_path,
            modules=modules,
            device=device,
            dtype=dtype,
            num_threads=num_threads,
            prompts=prompts,
            default_prompt_name=default_prompt_name,
            cache_folder=cache_folder,
            trust_remote_code=trust_remote_code,
            revision=revision,
            local_files_only=local_files_only,
            token=token,
            use_auth_token=use_auth_token,
            model_kwargs=model_kwargs,
            processor_kwargs=processor_kwargs,
            tokenizer_kwargs=tokenizer_kwargs,
            config_kwargs=config_kwargs,
            model_card_data=model_card_data,
            backend=backend,
        )
        folder = self.pipeline.folder
        self.truncate_dim = truncate_dim if truncate_dim is not None else folder.truncate_dim
        self.similarity_fn_name = similarity_fn_name or folder.similarity_fn_name or "cosine"

    # ---- properties -------------------------------------------------------------------------

    def get_embedding_dimension(self) -> int:
        """The width of what encode gives, truncate_dim considered."""
        if self.truncate_dim is None:
            return self.pipeline.width
        return min(self.pipeline.width, self.truncate_dim)

    def get_sentence_embedding_dimension(self) -> int:
        """The same as get_embedding_dimension, by its old name."""
        return self.get_embedding_dimension()

    @contextlib.contextmanager
    def truncate_embeddings(self, truncate_dim: int | None) -> Iterator[None]:
        """Within the block, keep only the first truncate_dim dimensions."""
        previous = self.truncate_dim
        self.truncate_dim = truncate_dim
        try:
            yield
        finally:
            self.truncate_dim = previous

    truncate_sentence_embeddings = truncate_embeddings

    def set_pooling_include_prompt(self, include_prompt: bool) -> None:
        """Set whether the tokens of a prompt take part in the pooling."""
        for one in self.pipeline.every():
            one.include_prompt = bool(include_prompt)

    def __repr__(self) -> str:
        return (
            f"SentenceTransformer({self._name!r}, max_seq_length={self.max_seq_length}, "
            f"dim={self.get_embedding_dimension()}, dtype='{self.dtype}', isa='{self.isa}', "
            f"num_threads={self._num_threads})"
        )

    def _state(self) -> dict[str, Any]:
        return super()._state() | {
            "truncate_dim": self.truncate_dim,
            "similarity_fn_name": self._similarity_fn_name,
            "include_prompt": [one.include_prompt for one in self.pipeline.every()],
        }

    def _restore(self, state: dict[str, Any]) -> None:
        super()._restore(state)
        self.truncate_dim = state["truncate_dim"]
        self._similarity_fn_name = state["similarity_fn_name"]
        for one, includes in zip(self.pipeline.every(), state["include_prompt"], strict=True):
            one.include_prompt = includes

    def _parts(self) -> list[Any]:
        folder = self.pipeline.folder
        return [Transformer(self), *([] if folder.is_static else [Pooling(self)]), *folder.modules]

    # ---- encode -----------------------------------------------------------------------------

    @overload
    def encode(
        self,
        inputs: Any = ...,
        prompt_name: str | None = ...,
        prompt: str | None = ...,
        batch_size: int = ...,
        show_progress_bar: bool | None = ...,
        output_value: Literal["sentence_embedding"] = ...,
        precision: Literal["float32"] = ...,
        *,
        normalize_embeddings: bool = ...,
        truncate_dim: int | None = ...,
        num_threads: int | None = ...,
        truncation: Literal["cut", "error"] = ...,
    ) -> FloatArray: ...

    @overload
    def encode(self, *args: Any, **kwargs: Any) -> Any: ...

    def encode(
        self,
        inputs: Any = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: OutputValue | None = "sentence_embedding",
        precision: str | None = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        pool: Any = None,
        chunk_size: int | None = None,
        *,
        sentences: Any = None,
        num_threads: int | None = None,
        truncation: Literal["cut", "error"] = "cut",
        return_info: bool = False,
        ranges: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Embed texts.

        Args:
            inputs: a string, or a list, tuple, NumPy string array, pandas Series or other iterable
                of strings. ``sentences`` is its old name.
            prompt_name: the name of a prompt that is put before every text.
            prompt: the prompt itself; it wins over prompt_name.
            batch_size: at most so many texts share one pass of a thread. It bounds memory and never
                changes a bit of the result. A CUDA device takes as many as fit its own limit.
            show_progress_bar: None shows one where this logger's level is INFO or DEBUG.
            output_value: "sentence_embedding"; "token_embeddings" (a list of [seqlen, H], one a
                text); None (a list of dicts with all of it).
            precision: "float32", "int8", "uint8", "binary" or "ubinary" embeddings. "int8" and
                "uint8" want ranges: without them each call makes its own from its texts, as
                sentence-transformers does, and a warning says that codes of different calls cannot
                be compared.
            convert_to_numpy: False gives a list of tensors.
            convert_to_tensor: one tensor, on the model's device, which its vectors never leave.
            device: None or the model's own.
            normalize_embeddings: divide every vector by its length, after truncate_dim.
            truncate_dim: keep only the first dimensions.
            pool, chunk_size: accepted and ignored, because threads serve.
            num_threads: for this call; None takes the model's.
            truncation: "error" raises where a text would be cut, instead of cutting it.
            return_info: give (embeddings, EncodeInfo).
            ranges: float [2, dim], minimum and maximum of each dimension, for precision "int8" and
                "uint8": those of embeddings of typical texts. The same for a whole corpus.
            task: "query" or "document", which models with a Router tell apart; None: their default.
            processing_kwargs: {"text": {"max_length": n}} cuts texts at n tokens in this call.

        Returns:
            float32 [batch, dim]; [dim] for a single string; (0, dim) for no text.

        Raises:
            TypeError: an input is not a string.
            ValueError: an argument that is unknown or out of range, a lone surrogate.
            ImportError: a tensor is asked and PyTorch is not installed.
            FloatingPointError: in float16 a number is out of range.
            KeyboardInterrupt: within a second of Ctrl-C.
        """
        inputs = either(inputs, sentences, "inputs", "sentences")
        if inputs is None:
            raise TypeError("inputs is None, wanted a string or a list of strings")
        batch_size = checked_batch_size(batch_size)
        _check_choices(output_value, precision, truncation, ranges)
        task = kwargs.pop("task", None)
        if task not in (None, "query", "document"):
            raise ValueError(f"task is {task!r}, wanted 'query', 'document' or None")
        self._check_device(device)
        width = self.truncate_dim if truncate_dim is None else truncate_dim
        if width is not None and width < 1:
            raise ValueError(f"truncate_dim is {width}, wanted >= 1")
        torch: Any = import_torch() if convert_to_tensor or not convert_to_numpy else None

        is_single = isinstance(inputs, str)
        texts = [inputs] if is_single else as_list(inputs)
        is_whole = output_value == "sentence_embedding" and precision in (None, "float32")
        request = Request(
            num_threads=self._threads_of_call(num_threads),
            prompt=self._resolve_prompt(prompt, prompt_name) or "",
            batch_size=batch_size,
            output=output_value,
            truncate_dim=width,
            normalizes=normalize_embeddings,
            refuses_long=truncation == "error",
            stays_on_device=convert_to_tensor and is_whole and self.pipeline.vectors_can_stay(),
            max_length=length_of_call(f"{type(self).__name__}.encode()", kwargs),
            task=task,
        )
        with progress_bar(len(texts), show_progress_bar) as advance:
            result, info = self.pipeline.encode(texts, request, advance)

        if output_value != "sentence_embedding":
            result = [_rows_of_tokens(one, torch) for one in result]
        else:
            if not is_whole:
                result = _quantized(result, str(precision), ranges)
            if convert_to_tensor and not request.stays_on_device:
                result = torch.from_numpy(result).to(self.device)
            elif not convert_to_tensor and not convert_to_numpy:
                result = list(torch.from_numpy(result))
        if is_single:
            result = result[0]
        return (result, info) if return_info else result

    def encode_iter(
        self, inputs: Iterable[str], *, window: int = WINDOW_TEXTS, **kwargs: Any
    ) -> Iterator[FloatArray]:
        """Embed any iterable in constant memory.

        Args:
            inputs: texts; read as needed, a window ahead at most.
            window: texts that are encoded together.
            kwargs: encode's arguments.

        Yields:
            One embedding [dim] a text, in order.
        """
        if window <= 0:
            raise ValueError(f"window is {window}, wanted > 0")
        if isinstance(inputs, str):
            raise TypeError("inputs is one string, wanted an iterable of strings")
        if kwargs.get("precision") in ("int8", "uint8") and kwargs.get("ranges") is None:
            raise ValueError(
                f"precision={kwargs['precision']!r} makes ranges of its own for every window, "
                "whose codes cannot be compared: pass ranges=, float [2, dim]"
            )
        pending: list[str] = []
        for text in inputs:
            pending.append(text)
            if len(pending) == window:
                yield from self.encode(pending, **kwargs)
                pending = []
        if pending:
            yield from self.encode(pending, **kwargs)

    # ---- saving -----------------------------------------------------------------------------

    def _settings(self) -> dict[str, Any]:
        settings = super()._settings()
        if self.truncate_dim is not None:
            settings["truncate_dim"] = self.truncate_dim
        return settings


def _check_choices(
    output_value: Any,
    precision: Any,
    truncation: Any,
    ranges: Any,
) -> None:
    """Refuse what encode does not know, by name."""
    if precision is not None and precision not in similarity.PRECISIONS:
        raise ValueError(
            f"Precision {precision!r} is not supported, must be one of "
            f"{list(similarity.PRECISIONS)}"
        )
    if output_value not in ("sentence_embedding", "token_embeddings", None):
        raise ValueError(
            f"output_value is {output_value!r}, wanted 'sentence_embedding', "
            "'token_embeddings' or None"
        )
    if truncation not in ("cut", "error"):
        raise ValueError(f"truncation is {truncation!r}, wanted 'cut' or 'error'")
    if ranges is not None and precision not in ("int8", "uint8"):
        raise ValueError(f"ranges are given, but precision is {precision!r}, which has none")


def _quantized(vectors: Any, precision: str, ranges: Any) -> Any:
    if ranges is None and precision in ("int8", "uint8"):
        logger.warning(
            "precision=%r without ranges: the codes of this call cannot be compared "
            "with those of another one; pass ranges=",
            precision,
        )
    return similarity.quantize_embeddings(vectors, precision, ranges)


def _rows_of_tokens(value: Any, torch: Any) -> Any:
    """Rows of a text's tokens and more, as tensors where torch is given or tensors preferred."""
    if isinstance(value, dict):
        return {key: _rows_of_tokens(one, torch) for key, one in value.items()}
    if not isinstance(value, np.ndarray):
        return value
    return preferred(value) if torch is None else torch.from_numpy(value)
