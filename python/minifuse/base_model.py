"""The part that the public classes of models share: loading by name, where and in what type a model
runs, its tokenizer and prompts, copies and saving.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from minifuse.drop_in import DropIn, ModelCard
from minifuse.files.whole import ignore_other_engines, new_folder
from minifuse.models.description import read_object
from minifuse.models.folder import ModelFolder
from minifuse.models.inputs import as_list, checked, max_length_of, with_prompt
from minifuse.models.pipeline import Pipeline, pipeline_of
from minifuse.models.resolve import resolve_model
from minifuse.native import core
from minifuse.native.devices import Device, Dtype, resolve_device
from minifuse.tensors import preferred
from minifuse.tokens.tokenization import TextTokenizer
from minifuse.tokens.tokenizer_files import (
    TOKENIZER_CONFIG,
    normalizer_settings,
    with_truncation,
)

if TYPE_CHECKING:
    from minifuse.tokens.model_tokenizer import ModelTokenizer

__all__ = ["BaseModel", "either", "progress_bar", "update_json"]

logger = logging.getLogger(__name__)

_CARD = """---
library_name: sentence-transformers
---

# {name}

A {kind} model. It loads in minifuse and in sentence-transformers:

```python
from minifuse import {kind}

model = {kind}("{name}")
```
"""
Model = TypeVar("Model", bound="BaseModel")


def either(new: Any, old: Any, new_name: str, old_name: str) -> Any:
    """Return the argument that is given by one of its two names.

    Raises:
        ValueError: both are given.
    """
    if new is not None and old is not None:
        raise ValueError(f"both {new_name} and {old_name} are given; they mean the same: pass one")
    return old if new is None else new


class BaseModel(DropIn, ABC):
    """A model that is loaded from a folder.

    Args:
        model_name_or_path: a folder, a Hugging Face name, or a bare name for
            ``sentence-transformers/<name>``.
        device, dtype, num_threads, prompts, default_prompt_name and others: see
            SentenceTransformer.

    Attributes:
        pipeline: tokenizer, native encoder and modules (minifuse.models.pipeline).

    Raises:
        FileNotFoundError: no such model, or a file of it is missing.
        ValueError: the model or an argument asks for what minifuse does not compute.
    """

    @staticmethod
    @abstractmethod
    def _read_folder(folder: Path) -> ModelFolder:
        """Everything of a folder but weights and tokenizer, as this kind of model reads it."""

    @staticmethod
    def _pipeline_of(device: Device) -> type[Pipeline]:
        """The kind of pipeline that computes on a device."""
        return pipeline_of(device)

    _lists_modules: ClassVar[bool] = False  # a folder without modules.json may be another model
    model_type: ClassVar[str]  # of sentence-transformers' classes, as a folder's settings name it
    _known_prompts: ClassVar[dict[str, str]] = {}

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
    ) -> None:
        if modules is not None:
            raise ValueError(
                "modules: minifuse builds a model from a folder; save it and pass that"
            )
        if model_name_or_path is None:
            raise ValueError("model_name_or_path is None, wanted a folder or a model name")
        if use_auth_token is not None:
            warnings.warn("use_auth_token is deprecated, use token", FutureWarning, stacklevel=3)
            token = either(token, use_auth_token, "token", "use_auth_token")
        placed = resolve_device(device)
        kind = self._pipeline_of(placed)
        asked_dtype = _asked_dtype(dtype, model_kwargs, kind, placed)
        if backend not in ("torch", "minifuse"):
            raise ValueError(f"backend is {backend!r}: minifuse is the backend; leave it out")
        for name in sorted(set(config_kwargs or {})):
            raise ValueError(f"config_kwargs[{name!r}] is not supported; edit config.json instead")
        options = dict(
            either(processor_kwargs, tokenizer_kwargs, "processor_kwargs", "tokenizer_kwargs") or {}
        )
        model_max_length = options.pop("model_max_length", None)
        for name in ("use_fast", "padding_side"):  # nothing is padded
            options.pop(name, None)
        for name in sorted(options):
            raise ValueError(f"processor_kwargs[{name!r}] is not supported; set model.tokenizer")

        self._name = str(model_name_or_path)
        logger.info("Loading %s model from %s.", self.model_type, self._name)
        path = resolve_model(
            str(model_name_or_path),
            cache_dir=cache_folder,
            revision=revision,
            token=token,
            local_files_only=local_files_only,
            lists_modules=self._lists_modules,
        )
        self._num_threads = core.default_num_threads()
        if num_threads is not None:
            self._num_threads = self._check_num_threads(num_threads)
        folder = self._read_folder(path)
        self._loaded_files = {path: _stamp(path) for path in _weight_files(folder)}
        self.pipeline: Pipeline = kind(folder, asked_dtype, placed, self._num_threads)
        if model_max_length is not None:
            limit = folder.description.max_position_embeddings
            if model_max_length < 1 or model_max_length != int(model_max_length):
                raise ValueError(f"model_max_length is {model_max_length!r:.60}, wanted >= 1")
            self.max_seq_length = min(int(model_max_length), limit)

        saved = self._known_prompts | folder.prompts
        self.prompts: dict[str, str] = saved | {k: v or "" for k, v in (prompts or {}).items()}
        self.default_prompt_name = default_prompt_name or folder.default_prompt_name
        if self.default_prompt_name is not None and self.default_prompt_name not in self.prompts:
            raise ValueError(
                f"Default prompt name '{self.default_prompt_name}' not found in the configured "
                f"prompts dictionary with keys {list(self.prompts)!r}."
            )
        self.model_card_data = ModelCard() if model_card_data is None else model_card_data

    @staticmethod
    def _check_num_threads(num_threads: Any) -> int:
        if isinstance(num_threads, bool) or not isinstance(num_threads, (int, np.integer)):
            raise TypeError(f"num_threads is {num_threads!r}, wanted an integer or None")
        if not 0 < num_threads <= 1024:
            raise ValueError(f"num_threads is {num_threads}, wanted 1..1024")
        return int(num_threads)

    def _threads_of_call(self, num_threads: Any) -> int:
        """The threads that a call asks for; None takes the model's."""
        return self._num_threads if num_threads is None else self._check_num_threads(num_threads)

    # ---- properties -------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Name or path that the model was loaded from."""
        return self._name

    @property
    def is_quantized(self) -> bool:
        """True if the folder was written by `minifuse quantize`: it has int8 weights only."""
        return self.pipeline.folder.is_quantized

    @property
    def dtype(self) -> Dtype:
        """The type of the weights: "float32", "bfloat16" or "int8"."""
        return Dtype(self.pipeline.dtype)

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
    def max_seq_length(self, value: int | None) -> None:
        limit = self.pipeline.folder.description.max_position_embeddings
        value = limit if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(f"max_seq_length is {value!r}, wanted an integer")
        if not 1 <= value <= limit:
            raise ValueError(f"max_seq_length is {value}, wanted 1..{limit} (the positions it has)")
        for one in self.pipeline.every():
            own = one.folder.description.max_position_embeddings
            one.max_seq_length = min(int(value), own)

    def get_max_seq_length(self) -> int:
        """The same as max_seq_length."""
        return self.max_seq_length

    @property
    def tokenizer(self) -> ModelTokenizer:
        """The tokenizer in use. Any of transformers' fast ones or of tokenizers' can be set."""
        from minifuse.tokens.model_tokenizer import ModelTokenizer

        folder = self.pipeline.folder.transformer_path
        return ModelTokenizer(self, self.pipeline.tokenizer, folder)

    @tokenizer.setter
    def tokenizer(self, value: Any) -> None:
        backend = getattr(value, "backend_tokenizer", value)
        folder = self.pipeline.folder
        settings: Any = folder.tokenizer_settings()
        self.pipeline.set_tokenizer(TextTokenizer(backend, **settings))

    # ---- copies -----------------------------------------------------------------------------

    def __reduce__(self) -> tuple[Any, ...]:
        # Weights are read again from the folder; all that can be changed after loading travels
        # along.
        self._check_weights()
        path, device = str(self.pipeline.folder.path), str(self.device)
        return (_reload, (type(self), path, device, self.dtype, self._state()))

    def _check_weights(self) -> None:
        """Raise where the files that a copy is made of are not those that were loaded."""
        for path, stamp in self._loaded_files.items():
            if _stamp(path) not in (stamp, None):  # a file that is gone is named by who reads it
                raise ValueError(
                    f"{path}: the weights have changed since the model was loaded, and a copy is "
                    "made of them: load it again"
                )

    def _state(self) -> dict[str, Any]:
        """All that can be changed after loading."""
        return {
            "name": self._name,
            "prompts": dict(self.prompts),
            "default_prompt_name": self.default_prompt_name,
            "max_seq_lengths": [one.max_seq_length for one in self.pipeline.every()],
            "num_threads": self._num_threads,
            "tokenizer": self._own_tokenizer(),
            "model_card_data": self.model_card_data,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        """Take over what __reduce__ kept."""
        self._name = state["name"]
        if state["tokenizer"] is not None:
            from tokenizers import Tokenizer

            self.tokenizer = Tokenizer.from_str(state["tokenizer"])
        self.prompts = state["prompts"]
        self.default_prompt_name = state["default_prompt_name"]
        for one, length in zip(self.pipeline.every(), state["max_seq_lengths"], strict=True):
            one.max_seq_length = length
        self._num_threads = state["num_threads"]
        self.model_card_data = state["model_card_data"]

    def _own_tokenizer(self) -> str | None:
        """The tokenizer in use, where it is not the folder's, or has been changed in place."""
        tokenizer = self.pipeline.tokenizer
        folder = self.pipeline.folder.transformer_path
        if tokenizer.is_original and tokenizer.folder == folder:
            return None
        text: str = tokenizer.backend.to_str()
        saved: str = TextTokenizer.from_folder(folder).backend.to_str()
        return None if text == saved else text

    def _resolve_prompt(self, prompt: str | None, prompt_name: str | None) -> str | None:
        if prompt is not None:
            if prompt_name is not None:
                logger.warning(
                    "Provide either a `prompt`, a `prompt_name`, or neither, but not both. "
                    "Ignoring the `prompt_name` in favor of `prompt`."
                )
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

    # ---- tokens -----------------------------------------------------------------------------

    def preprocess(
        self,
        inputs: Any,
        prompt: str | None = None,
        task: str | None = None,
        processing_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Token ids as the model sees them, padded to the longest.

        Args:
            inputs: a text, or texts, or pairs of them.
            prompt: put before each.
            task: accepted; the ids are those that the encoder takes.
            processing_kwargs: {"text": {"max_length": n}} cuts at n tokens.

        Returns:
            "input_ids", "token_type_ids" and "attention_mask", int64 [batch, seqlen]; tensors after
            prefer_tensors(). Empty for no input. "prompt_length" as well, where there is a prompt:
            its tokens. Padding exists in this view only: encode computes none.
        """
        texts = [inputs] if isinstance(inputs, str) else as_list(inputs)
        if not texts:
            return {}
        most = max_length_of(processing_kwargs)
        tokens = self.pipeline.tokenize(
            [with_prompt(prompt or "", text) for text in checked(texts)], max_length=most
        )
        mask = np.arange(int(tokens.seqlens.max())) < tokens.seqlens[:, None]
        input_ids = np.full(mask.shape, self.tokenizer.pad_token_id or 0, np.int64)
        input_ids[mask] = tokens.ids
        token_types = np.zeros_like(input_ids)
        token_types[mask] = tokens.types()
        features: dict[str, Any] = {
            "input_ids": preferred(input_ids),
            "token_type_ids": preferred(token_types),
            "attention_mask": preferred(mask.astype(np.int64)),
        }
        if prompt:
            features["prompt_length"] = self.pipeline.prompt_length(prompt)
        return features

    def tokenize(self, texts: Any) -> dict[str, Any]:
        """The same as preprocess, by its old name."""
        return self.preprocess(texts)

    # ---- saving -----------------------------------------------------------------------------

    def save_pretrained(
        self,
        path: str | Path,
        model_name: str | None = None,
        create_model_card: bool = True,
        train_datasets: list[str] | None = None,
        safe_serialization: bool = True,
    ) -> None:
        """Write the model as a folder that minifuse and sentence-transformers load.

        The files it was loaded from are copied; max_seq_length, prompts, default_prompt_name,
        the tokenizer and all else that can be changed after loading are written as they are now. A
        new folder appears whole or not at all. In a folder that is there already, files of the same
        names are replaced and all others stay.

        Args:
            path: the folder.
            model_name: the name in README.md; None takes the folder's.
            create_model_card: write README.md where the model has none; False leaves it out.
            train_datasets: accepted; nothing is trained here.
            safe_serialization: False is accepted, too: the weights' files stay what they are.

        Raises:
            FileExistsError: path is a file.
            FileNotFoundError: the folder it was loaded from is gone.
        """
        folder = self.pipeline.folder
        source = folder.path
        try:
            folder.weights_path  # noqa: B018  # a folder without weights would look whole
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{source}: what the model came from is gone") from error
        self._check_weights()
        with new_folder(path, overwrites=True) as copy:
            shutil.copytree(source, copy, ignore=ignore_other_engines, dirs_exist_ok=True)
            self._write_settings(copy)
            card = copy / "README.md"
            if not create_model_card:
                card.unlink(missing_ok=True)
            elif not card.exists():
                name, kind = model_name or Path(path).name, type(self).__name__
                card.write_text(_CARD.format(name=name, kind=kind), encoding="utf-8")

    save = save_pretrained

    def _write_settings(self, folder: Path) -> None:
        """Write all that can be changed after loading into a copy of the model's folder."""
        for one in reversed(self.pipeline.every()):  # the model's own last: two may share a folder
            source = one.folder
            path = folder / source.transformer_path.relative_to(source.path)
            lengths = {"max_seq_length": one.max_seq_length, "do_lower_case": source.do_lower_case}
            update_json(path / "sentence_bert_config.json", lengths)
            # Not by tokenizers' own save: a full disk would be a plain Exception there.
            text = one.tokenizer.backend.to_str(pretty=True)
            if source.is_static:  # which has its length there
                text = with_truncation(text, one.max_seq_length)
            elif (settings := normalizer_settings(text)) and (path / TOKENIZER_CONFIG).is_file():
                update_json(path / TOKENIZER_CONFIG, settings)  # goes before tokenizer.json
            (path / "tokenizer.json").write_text(text, encoding="utf-8")
        update_json(folder / "config_sentence_transformers.json", self._settings())

    def _settings(self) -> dict[str, Any]:
        """The settings of config_sentence_transformers.json as they are now."""
        return {
            "model_type": self.model_type,
            "prompts": self.prompts,
            "default_prompt_name": self.default_prompt_name,
        }


def _weight_files(folder: ModelFolder) -> set[Path]:
    """Return the files that the weights of a model and its routes lie in."""
    files: set[Path] = set()
    for one in (folder, *folder.routes.values()):
        # Nothing is said here: the file is read later.
        with contextlib.suppress(OSError, ValueError, KeyError, AttributeError):
            path = one.weights_path
            files.add(path)
            if path.name.endswith(".index.json"):
                files |= {path.parent / str(n) for n in read_object(path)["weight_map"].values()}
    return files


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return size and time of a file; None: there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_size, status.st_mtime_ns


def update_json(path: Path, values: dict[str, Any]) -> None:
    """Put values into the object of a file that was read before, or of a new one."""
    own = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(own | values, indent=2) + "\n", encoding="utf-8")


def _reload(
    kind: type[BaseModel], path: str, device: str, dtype: str, state: dict[str, Any]
) -> BaseModel:
    if not Path(path).is_dir():  # never a name: the hub may know another model by it
        raise FileNotFoundError(f"{path}: the folder that the model was loaded from is gone")
    model = kind(path, device=device, dtype=dtype)
    model._restore(state)
    return model


def _ignore(count: int) -> None:
    """Stands for a progress bar that nobody sees."""


_NO_BAR = contextlib.nullcontext(_ignore)


def progress_bar(
    total: int, is_asked: bool | None
) -> contextlib.AbstractContextManager[Callable[[int], Any]]:
    """Return a context that gives what is told how many inputs are done.

    Args:
        total: inputs in all; one alone has no bar.
        is_asked: None shows a bar where the logger's level is INFO or DEBUG.
    """
    if total == 1:  # a query pays for every step
        return _NO_BAR
    is_talkative = logger.getEffectiveLevel() in (logging.INFO, logging.DEBUG)
    is_shown = is_talkative if is_asked is None else is_asked
    return _shown_bar(total) if is_shown else _NO_BAR


@contextlib.contextmanager
def _shown_bar(total: int) -> Iterator[Callable[[int], Any]]:
    from tqdm.auto import tqdm

    with tqdm(total=total, desc="Sentences", unit="sentence") as bar:
        yield bar.update


# Arguments of transformers that change no result here: there is one attention, and it is exact.
_HARMLESS = ("attn_implementation", "low_cpu_mem_usage", "use_safetensors")


def _asked_dtype(
    dtype: str | None, model_kwargs: dict[str, Any] | None, kind: type[Pipeline], device: Device
) -> str | None:
    """The one type of weights that the arguments ask for; None: as the folder has them."""
    options = dict(model_kwargs or {})
    asked = [dtype, options.pop("torch_dtype", None), options.pop("dtype", None)]
    asked[1:] = [one for one in asked[1:] if one != "auto"]  # transformers': as the file has it
    for name in _HARMLESS:
        options.pop(name, None)
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
