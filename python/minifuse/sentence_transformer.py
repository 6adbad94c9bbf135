"""SentenceTransformer: sentence-transformers' class by name, argument and meaning, on our encoder.

Deliberate differences, each for a reason: an empty list gives a float32 array of shape (0, dim);
similarity gives an array for arrays and a tensor for tensors; batch_size bounds memory and never
changes a bit; token_embeddings come as arrays unless convert_to_tensor is asked.
docs/differences.md lists them all.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from minifuse.files.whole import ignore_other_engines, new_folder
from minifuse.models.folder import read_model_folder
from minifuse.models.inputs import WINDOW_TEXTS, as_list, checked
from minifuse.models.pipeline import EncodeInfo, OutputValue, Pipeline, Request, pipeline_of
from minifuse.models.resolve import resolve_model
from minifuse.models.tokenization import TextTokenizer
from minifuse.native import core
from minifuse.native.devices import Device, resolve_device
from minifuse.search import similarity

__all__ = ["Device", "EncodeInfo", "SentenceTransformer"]

logger = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float32]


def _either(new: Any, old: Any, new_name: str, old_name: str) -> Any:
    if new is not None and old is not None:
        raise ValueError(f"both {new_name} and {old_name} are given; they mean the same: pass one")
    return old if new is None else new


class SentenceTransformer:
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
        if modules is not None:
            raise ValueError(
                "modules: minifuse builds a model from a folder; save it and pass that"
            )
        if model_name_or_path is None:
            raise ValueError("model_name_or_path is None, wanted a folder or a model name")
        if use_auth_token is not None:
            warnings.warn("use_auth_token is deprecated, use token", FutureWarning, stacklevel=2)
            token = _either(token, use_auth_token, "token", "use_auth_token")
        placed = resolve_device(device)
        kind = pipeline_of(placed)
        asked_dtype = _asked_dtype(dtype, model_kwargs, kind, placed)
        if backend not in ("torch", "minifuse"):
            raise ValueError(f"backend is {backend!r}: minifuse is the backend; leave it out")
        for name in sorted(set(config_kwargs or {})):
            raise ValueError(f"config_kwargs[{name!r}] is not supported; edit config.json instead")
        options = dict(
            _either(processor_kwargs, tokenizer_kwargs, "processor_kwargs", "tokenizer_kwargs")
            or {}
        )
        model_max_length = options.pop("model_max_length", None)
        options.pop("use_fast", None)
        for name in sorted(options):
            raise ValueError(f"processor_kwargs[{name!r}] is not supported; set model.tokenizer")

        self._name = str(model_name_or_path)
        path = resolve_model(
            str(model_name_or_path),
            cache_dir=cache_folder,
            revision=revision,
            token=token,
            local_files_only=local_files_only,
        )
        self._num_threads = core.default_num_threads()
        if num_threads is not None:
            self._num_threads = self._check_num_threads(num_threads)
        folder = read_model_folder(path)
        self.pipeline: Pipeline = kind(folder, asked_dtype, placed, self._num_threads)
        if model_max_length is not None:
            self.max_seq_length = min(int(model_max_length), self.max_seq_length)

        saved = {"query": "", "document": ""} | folder.prompts
        self.prompts: dict[str, str] = saved | {k: v or "" for k, v in (prompts or {}).items()}
        self.default_prompt_name = default_prompt_name or folder.default_prompt_name
        if self.default_prompt_name is not None and self.default_prompt_name not in self.prompts:
            raise ValueError(
                f"Default prompt name '{self.default_prompt_name}' not found in the configured "
                f"prompts dictionary with keys {list(self.prompts)!r}."
            )
        self.truncate_dim = truncate_dim if truncate_dim is not None else folder.truncate_dim
        self._similarity_fn_name = "cosine"
        self.similarity_fn_name = similarity_fn_name or folder.similarity_fn_name or "cosine"
        self.model_card_data = model_card_data

    @staticmethod
    def _check_num_threads(num_threads: Any) -> int:
        if isinstance(num_threads, bool) or not isinstance(num_threads, (int, np.integer)):
            raise TypeError(f"num_threads is {num_threads!r}, wanted an integer or None")
        if not 0 < num_threads <= 1024:
            raise ValueError(f"num_threads is {num_threads}, wanted 1..1024")
        return int(num_threads)

    # ---- properties -------------------------------------------------------------------------

    @property
    def device(self) -> Device:
        """Device that the model runs on: "cpu" or "cuda:N"."""
        return self.pipeline.device

    @property
    def name(self) -> str:
        """Name or path that the model was loaded from."""
        return self._name

    @property
    def is_quantized(self) -> bool:
        """True if the folder was written by `minifuse quantize`: it has int8 weights only."""
        return self.pipeline.folder.is_quantized

    @property
    def dtype(self) -> str:
        """The type of the weights: "float32", "bfloat16" or "int8"."""
        return self.pipeline.dtype

    @property
    def isa(self) -> str:
        """The instruction set of the kernels that this model was packed for."""
        return str(self.pipeline.encoder.isa)

    @property
    def num_threads(self) -> int:
        """At most this many threads work on a call."""
        return self._num_threads

    @num_threads.setter
    def num_threads(self, value: int) -> None:
        self._num_threads = self._check_num_threads(value)

    @property
    def max_seq_length(self) -> int:
        """Texts are cut at this many tokens, special tokens included."""
        return self.pipeline.max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        limit = self.pipeline.folder.description.max_position_embeddings
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(f"max_seq_length is {value!r}, wanted an integer")
        if not 1 <= value <= limit:
            raise ValueError(f"max_seq_length is {value}, wanted 1..{limit} (the positions it has)")
        self.pipeline.max_seq_length = int(value)

    def get_max_seq_length(self) -> int:
        """The same as max_seq_length."""
        return self.max_seq_length

    @property
    def tokenizer(self) -> Any:
        """The ``tokenizers.Tokenizer`` in use, truncation and padding switched off."""
        return self.pipeline.tokenizer.backend

    @tokenizer.setter
    def tokenizer(self, value: Any) -> None:
        backend = getattr(value, "backend_tokenizer", value)  # transformers' fast tokenizers
        lowers = self.pipeline.folder.do_lower_case
        self.pipeline.set_tokenizer(TextTokenizer(backend, lowers))

    @property
    def similarity_fn_name(self) -> str:
        """ "cosine", "dot", "euclidean" or "manhattan": what similarity() computes."""
        return self._similarity_fn_name

    @similarity_fn_name.setter
    def similarity_fn_name(self, value: Any) -> None:
        name = str(getattr(value, "value", value))
        if name not in similarity.SIMILARITIES:
            raise ValueError(
                f"similarity_fn_name is {name!r}, wanted one of "
                + ", ".join(similarity.SIMILARITIES)
            )
        self._similarity_fn_name = name

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
        self.pipeline.include_prompt = bool(include_prompt)

    def _check_device(self, device: Any) -> None:
        if device is not None and resolve_device(device) != self.device:
            raise ValueError(
                f"device is {str(device)!r}, but the model is on {self.device}: load it again "
                "with device="
            )

    def to(self, device: Any = None) -> SentenceTransformer:
        """Returns the model; any device but its own raises ValueError."""
        self._check_device(device)
        return self

    def cpu(self) -> SentenceTransformer:
        """The same as to("cpu")."""
        return self.to("cpu")

    def eval(self) -> SentenceTransformer:
        """Returns the model: there is nothing but inference."""
        return self

    def get_backend(self) -> str:
        """ "minifuse" """
        return "minifuse"

    def start_multi_process_pool(self, target_devices: Any = None) -> dict[str, Any]:
        """Not needed: always raises ValueError."""
        raise ValueError(
            "minifuse uses threads of one process: call encode with num_threads, without a pool"
        )

    def __repr__(self) -> str:
        return (
            f"SentenceTransformer({self._name!r}, max_seq_length={self.max_seq_length}, "
            f"dim={self.get_embedding_dimension()}, dtype='{self.dtype}', isa='{self.isa}', "
            f"num_threads={self._num_threads})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # Weights are read again from the folder; all that can be changed after loading travels
        # along.
        state = {
            "name": self._name,
            "prompts": dict(self.prompts),
            "default_prompt_name": self.default_prompt_name,
            "truncate_dim": self.truncate_dim,
            "similarity_fn_name": self._similarity_fn_name,
            "max_seq_length": self.max_seq_length,
            "include_prompt": self.pipeline.include_prompt,
            "num_threads": self._num_threads,
            "tokenizer": self._own_tokenizer(),
            "model_card_data": self.model_card_data,
        }
        return (_reload, (str(self.pipeline.folder.path), str(self.device), self.dtype, state))

    def _own_tokenizer(self) -> str | None:
        """The tokenizer in use, where it is not the folder's, or has been changed in place."""
        text: str = self.tokenizer.to_str()
        folder = self.pipeline.folder.transformer_path
        saved = TextTokenizer.from_folder(folder).backend.to_str()
        return None if text == saved else text

    def _restore(self, state: dict[str, Any]) -> None:
        """Take over what __reduce__ kept."""
        self._name = state["name"]
        if state["tokenizer"] is not None:
            self.tokenizer = Tokenizer.from_str(state["tokenizer"])
        self.prompts = state["prompts"]
        self.default_prompt_name = state["default_prompt_name"]
        self.truncate_dim = state["truncate_dim"]
        self._similarity_fn_name = state["similarity_fn_name"]
        self.pipeline.max_seq_length = state["max_seq_length"]
        self.pipeline.include_prompt = state["include_prompt"]
        self._num_threads = state["num_threads"]
        self.model_card_data = state["model_card_data"]

    # ---- tokens -----------------------------------------------------------------------------

    def preprocess(
        self, inputs: Sequence[str], prompt: str | None = None
    ) -> dict[str, npt.NDArray[np.int64]]:
        """Token ids as the model sees them, padded to the longest.

        Returns:
            "input_ids", "token_type_ids" and "attention_mask", int64 [batch, seqlen]. Empty for no
            input. Padding exists in this view only: encode computes none.
        """
        texts = as_list(inputs)
        if not texts:
            return {}
        tokens = self.pipeline.tokenize([(prompt or "") + text for text in checked(texts)])
        mask = np.arange(int(tokens.seqlens.max())) < tokens.seqlens[:, None]
        input_ids = np.zeros(mask.shape, np.int64)
        input_ids[mask] = tokens.ids
        return {
            "input_ids": input_ids,
            "token_type_ids": np.zeros_like(input_ids),
            "attention_mask": mask.astype(np.int64),
        }

    def tokenize(self, texts: Sequence[str]) -> dict[str, npt.NDArray[np.int64]]:
        """The same as preprocess, by its old name."""
        return self.preprocess(texts)

    def _resolve_prompt(self, prompt: str | None, prompt_name: str | None) -> str | None:
        if prompt is not None:
            if prompt_name is not None:
                logger.warning("Both prompt and prompt_name are given: prompt_name is ignored.")
            return prompt
        if prompt_name is not None:
            if prompt_name not in self.prompts:
                raise ValueError(
                    f"Prompt name '{prompt_name}' not found in the configured prompts dictionary "
                    f"with keys {list(self.prompts)!r}."
                )
            return self.prompts[prompt_name]
        if self.default_prompt_name is not None:
            return self.prompts.get(self.default_prompt_name)
        return None

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
            pool, chunk_size: refused, because threads serve.
            num_threads: for this call; None takes the model's.
            truncation: "error" raises where a text would be cut, instead of cutting it.
            return_info: give (embeddings, EncodeInfo).
            ranges: float [2, dim], minimum and maximum of each dimension, for precision "int8" and
                "uint8": those of embeddings of typical texts. The same for a whole corpus.
            task, processing_kwargs: ``task`` is accepted and changes nothing.

        Returns:
            float32 [batch, dim]; [dim] for a single string; (0, dim) for no text.

        Raises:
            TypeError: an input is not a string.
            ValueError: an argument that is unknown or out of range, a lone surrogate.
            ImportError: a tensor is asked and PyTorch is not installed.
            FloatingPointError: in float16 a number is out of range.
            KeyboardInterrupt: within a second of Ctrl-C.
        """
        inputs = _either(inputs, sentences, "inputs", "sentences")
        if inputs is None:
            raise TypeError("inputs is None, wanted a string or a list of strings")
        if pool is not None or chunk_size is not None:
            raise ValueError("pool and chunk_size: minifuse uses threads; pass num_threads instead")
        _check_choices(batch_size, output_value, precision, truncation, ranges, kwargs)
        self._check_device(device)
        width = self.truncate_dim if truncate_dim is None else truncate_dim
        if width is not None and width < 1:
            raise ValueError(f"truncate_dim is {width}, wanted >= 1")
        torch: Any = _import_torch() if convert_to_tensor or not convert_to_numpy else None

        is_single = isinstance(inputs, str)
        texts = [inputs] if is_single else as_list(inputs)
        is_whole = output_value == "sentence_embedding" and precision in (None, "float32")
        request = Request(
            num_threads=self._num_threads
            if num_threads is None
            else self._check_num_threads(num_threads),
            prompt=self._resolve_prompt(prompt, prompt_name) or "",
            batch_size=int(batch_size),
            output=output_value,
            truncate_dim=width,
            normalizes=normalize_embeddings,
            refuses_long=truncation == "error",
            stays_on_device=convert_to_tensor and is_whole and self.pipeline.vectors_can_stay(),
        )
        with _progress_bar(len(texts), show_progress_bar) as advance:
            result, info = self.pipeline.encode(texts, request, advance)

        if output_value != "sentence_embedding":
            result = [_to_tensors(torch, one) if convert_to_tensor else one for one in result]
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

    def encode_query(self, inputs: Any = None, **kwargs: Any) -> Any:
        """As encode; the prompt named "query" applies unless prompt or prompt_name is given."""
        if kwargs.get("prompt") is None and kwargs.get("prompt_name") is None:
            kwargs["prompt_name"] = "query" if "query" in self.prompts else None
        return self.encode(inputs, **kwargs, task="query")

    def encode_document(self, inputs: Any = None, **kwargs: Any) -> Any:
        """As encode; the first prompt of "document", "passage", "corpus" applies."""
        if kwargs.get("prompt") is None and kwargs.get("prompt_name") is None:
            names = [n for n in ("document", "passage", "corpus") if n in self.prompts]
            kwargs["prompt_name"] = names[0] if names else None
        return self.encode(inputs, **kwargs, task="document")

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

    # ---- comparison and saving --------------------------------------------------------------

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Every row with every row by similarity_fn_name: [n1, n2], an array for arrays."""
        return similarity.SIMILARITIES[self._similarity_fn_name][0](embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Row i with row i by similarity_fn_name: [n], an array for arrays."""
        return similarity.SIMILARITIES[self._similarity_fn_name][1](embeddings1, embeddings2)

    def save_pretrained(self, path: str | Path) -> None:
        """Write the model as a folder that minifuse and sentence-transformers load.

        The files it was loaded from are copied; max_seq_length, prompts, default_prompt_name,
        similarity_fn_name, truncate_dim and the tokenizer are written as they are now. The folder
        appears whole or not at all.

        Raises:
            FileExistsError: path holds files already.
            FileNotFoundError: the folder it was loaded from is gone.
        """
        folder = self.pipeline.folder
        source = folder.path
        try:
            folder.weights_path  # noqa: B018  # a folder without weights would look whole
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{source}: what the model came from is gone") from error
        with new_folder(path) as copy:
            shutil.copytree(source, copy, ignore=ignore_other_engines, dirs_exist_ok=True)
            transformer = copy / folder.transformer_path.relative_to(source)
            sentence = {
                "max_seq_length": self.max_seq_length,
                "do_lower_case": folder.do_lower_case,
            }
            _write_json(transformer / "sentence_bert_config.json", sentence)
            # Not by tokenizers' own save: a full disk would be a plain Exception there.
            text = self.tokenizer.to_str(pretty=True)
            (transformer / "tokenizer.json").write_text(text, encoding="utf-8")
            settings_path = copy / "config_sentence_transformers.json"
            settings: dict[str, Any] = {}
            if settings_path.is_file():
                settings = json.loads(settings_path.read_text(encoding="utf-8"))
            settings |= {
                "prompts": self.prompts,
                "default_prompt_name": self.default_prompt_name,
                "similarity_fn_name": self._similarity_fn_name,
            }
            if self.truncate_dim is not None:
                settings["truncate_dim"] = self.truncate_dim
            _write_json(settings_path, settings)

    save = save_pretrained


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _reload(path: str, device: str, dtype: str, state: dict[str, Any]) -> SentenceTransformer:
    if not Path(path).is_dir():  # never a name: the hub may know another model by it
        raise FileNotFoundError(f"{path}: the folder that the model was loaded from is gone")
    model = SentenceTransformer(path, device=device, dtype=dtype)
    model._restore(state)
    return model


def _ignore(count: int) -> None:
    """Stands for a progress bar that nobody sees."""


def _progress_bar(
    total: int, is_asked: bool | None
) -> contextlib.AbstractContextManager[Callable[[int], Any]]:
    is_talkative = logger.getEffectiveLevel() in (logging.INFO, logging.DEBUG)
    is_shown = is_talkative if is_asked is None else is_asked
    if not is_shown or total == 1:
        return contextlib.nullcontext(_ignore)
    return _shown_bar(total)


@contextlib.contextmanager
def _shown_bar(total: int) -> Iterator[Callable[[int], Any]]:
    from tqdm.auto import tqdm

    with tqdm(total=total, desc="Sentences", unit="sentence") as bar:
        yield bar.update


def _asked_dtype(
    dtype: str | None, model_kwargs: dict[str, Any] | None, kind: type[Pipeline], device: Device
) -> str | None:
    """The one type of weights that the arguments ask for; None: as the folder has them."""
    options = dict(model_kwargs or {})
    asked = [dtype, options.pop("torch_dtype", None), options.pop("dtype", None)]
    asked[1:] = [one for one in asked[1:] if one != "auto"]  # transformers': as the file has it
    options.pop("attn_implementation", None)  # there is one attention, and it is exact
    for name in sorted(options):
        raise ValueError(f"model_kwargs[{name!r}] is not supported")
    names = {str(one).removeprefix("torch.") for one in asked if one is not None}
    if len(names) > 1:
        raise ValueError(f"dtype is given as {sorted(names)}: pass one")
    if not names:
        return None
    name = names.pop()
    if name == "auto":
        return kind.fastest_dtype()
    if name not in kind.dtypes:
        raise ValueError(
            f"dtype is {name!r}, wanted one of {', '.join(kind.dtypes)}, auto on {device}"
        )
    return name


def _check_choices(
    batch_size: int,
    output_value: Any,
    precision: Any,
    truncation: Any,
    ranges: Any,
    others: dict[str, Any],
) -> None:
    """Refuse what encode does not know, by name."""
    if others.pop("task", None) not in (None, "query", "document"):
        raise ValueError("task: wanted 'query', 'document' or None")
    if others.pop("processing_kwargs", None):
        raise ValueError("processing_kwargs is not supported; set model.max_seq_length")
    if others:
        raise ValueError(
            "SentenceTransformer.encode() has been called with additional keyword arguments "
            f"that this model does not use: {list(others)}"
        )
    if batch_size <= 0:
        raise ValueError(f"batch_size must be a positive integer, got {batch_size}.")
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


def _import_torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "tensors need PyTorch, which is not installed: pip install 'minifuse[torch]', or leave "
            "convert_to_tensor=False and convert_to_numpy=True for arrays"
        ) from error
    return torch


def _to_tensors(torch: Any, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: torch.from_numpy(one) for key, one in value.items()}
    return torch.from_numpy(value)
