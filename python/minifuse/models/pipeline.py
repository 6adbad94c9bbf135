"""The one way from texts to vectors, which every public class uses: tokens, encoder, modules.

A call's texts are sorted by length and cut into windows; a window's tokens are sorted again, so
that sentences of a length share a chunk; vectors return to the places of their texts. Neither
order nor windows change a bit.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from minifuse.hardware import DTYPES
from minifuse.models.folder import ModelFolder
from minifuse.models.inputs import checked, length_of, one_ahead, windows, with_prompt
from minifuse.models.modules import DenseModule, LayerNormModule, NormalizeModule
from minifuse.models.quantization import load_quantized_encoder
from minifuse.models.static import StaticEncoder
from minifuse.models.weights import load_encoder
from minifuse.native import core
from minifuse.native.devices import CUDA_DTYPES, Device, new_tensor
from minifuse.tokens.pairs import Pair
from minifuse.tokens.token_batch import TokenBatch
from minifuse.tokens.tokenization import LoneSurrogate, TextTokenizer, surrogate_of

__all__ = ["CudaPipeline", "EncodeInfo", "OutputValue", "Pipeline", "Request", "pipeline_of"]

FloatArray = npt.NDArray[np.float32]
OutputValue = Literal["sentence_embedding", "token_embeddings"]
# Places of texts in a call, and their tokens, longest first.
_Window = tuple[npt.NDArray[np.intp], TokenBatch]
_DAMAGED_PROMPT = "the prompt holds a lone surrogate: it is not valid Unicode"


class EncodeInfo(NamedTuple):
    """Additional result of encode(..., return_info=True).

    Attributes:
        num_tokens: int64 [batch], tokens embedded, special tokens included.
        truncated: bool [batch], whether the text was cut at max_seq_length.
    """

    num_tokens: npt.NDArray[np.int64]
    truncated: npt.NDArray[np.bool_]


class Request(NamedTuple):
    """The wishes of a call, checked and converted.

    Attributes:
        num_threads: at most this many.
        prompt: put before every text.
        batch_size: at most so many texts share one pass of a thread.
        output: vectors, the rows of the tokens, or (None) both.
        truncate_dim: keep only the first dimensions of a vector.
        normalizes: whether vectors are divided by their length.
        refuses_long: whether a text that would be cut is an error.
        stays_on_device: whether vectors become a tensor there.
        max_length: where texts are cut; None: at the model's max_seq_length.
        task: "query" or "document", which some models tell apart.
    """

    num_threads: int
    prompt: str = ""
    batch_size: int = 32
    output: OutputValue | None = "sentence_embedding"
    truncate_dim: int | None = None
    normalizes: bool = False
    refuses_long: bool = False
    stays_on_device: bool = False
    max_length: int | None = None
    task: str | None = None


class Pipeline:
    """A model's tokenizer, encoder and modules, on the CPU.

    Args:
        folder: of the model.
        dtype: of the weights; None: as the folder has them.
        device: where the encoder runs.
        num_threads: that load the model, at most.
        encoder: that another pipeline has of the same folder; None: it is loaded.

    Attributes:
        tokenizer: changed by set_tokenizer.
        encoder: the native one.
        max_seq_length: where texts are cut, special tokens included.
        include_prompt: whether the tokens of a prompt take part in the pooling.
        width: of a vector behind the modules.
        routes: of a model that tells queries from documents: the pipeline of each, itself one.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or files belong to different models.
    """

    dtypes: ClassVar[tuple[str, ...]] = DTYPES
    # Windows take so many times what threads want at a time.
    window_scale: ClassVar[int] = 1

    def __init__(
        self,
        folder: ModelFolder,
        dtype: str | None,
        device: Device,
        num_threads: int,
        encoder: Any = None,
    ) -> None:
        self.folder = folder
        self.device = device
        self.dtype = dtype or ("int8" if folder.is_quantized else "float32")
        self.max_seq_length = folder.max_seq_length
        self.include_prompt = folder.include_prompt
        self.set_tokenizer(
            TextTokenizer.from_folder(folder.transformer_path, **folder.tokenizer_settings())
        )
        self.encoder: Any = self._load_encoder(num_threads) if encoder is None else encoder
        self.width = self._width_behind_modules()
        self.routes: dict[str, Pipeline] = {
            name: self if route is folder else self._route(route, num_threads)
            for name, route in folder.routes.items()
        }

    def _route(self, folder: ModelFolder, num_threads: int) -> Pipeline:
        """Return the pipeline of the other route."""
        is_same = folder.transformer_path == self.folder.transformer_path
        encoder = self.encoder if is_same else None
        route = type(self)(folder, self.dtype, self.device, num_threads, encoder)
        if route.width != self.width:
            raise ValueError(
                f"{folder.path}: vectors of queries and documents have {route.width} and "
                f"{self.width} dimensions, wanted the same number"
            )
        return route

    def every(self) -> list[Pipeline]:
        """Return this pipeline and that of the other route, where there is one."""
        return [self, *(one for one in self.routes.values() if one is not self)]

    @staticmethod
    def fastest_dtype() -> str:
        """The type of weights that "auto" means here."""
        return "int8"  # on every instruction set; it costs nothing that the evaluations can tell

    def _load_encoder(self, num_threads: int) -> Any:
        if self.folder.table is not None:  # which has no matrices to round
            return StaticEncoder(self.folder.table)
        if self.dtype == "int8":
            return load_quantized_encoder(self.folder, self.tokenizer, num_threads)
        return load_encoder(self.folder, self.dtype)

    def set_tokenizer(self, tokenizer: TextTokenizer) -> None:
        """Use another tokenizer.

        Raises:
            ValueError: it has ids that the model has no rows for, or ends texts with a token that
                the model's head does not read.
        """
        rows = self.folder.description.vocab_size
        if tokenizer.vocab_size > rows:
            raise ValueError(
                f"{self.folder.path}: the tokenizer has ids up to {tokenizer.vocab_size - 1} but "
                f"config.json says vocab_size={rows}: they belong to different models"
            )
        if self.folder.passed_over in tokenizer.suffix:
            raise ValueError(
                f"{self.folder.path}: texts end with token {self.folder.passed_over}, which is "
                "config.json's pad_token_id: transformers scores the token before it, and minifuse "
                "does not (set another pad_token_id, which is a change of the model)"
            )
        self.tokenizer = tokenizer

    def _pooled_width(self) -> int:
        return self.folder.description.hidden_size * len(self.folder.poolings)

    def _width_behind_modules(self) -> int:
        width = self._pooled_width()
        for module in self.folder.modules:
            if isinstance(module, DenseModule):
                if module.weight.in_features != width:
                    raise ValueError(
                        f"{self.folder.path}: Dense takes {module.weight.in_features} inputs, "
                        f"what comes before it gives {width}"
                    )
                width = module.out_features
            elif isinstance(module, LayerNormModule) and len(module.gamma) != width:
                raise ValueError(
                    f"{self.folder.path}: LayerNorm takes {len(module.gamma)} columns, what comes "
                    f"before it gives {width}"
                )
        return width

    def vectors_can_stay(self) -> bool:
        """Return whether vectors can be computed without leaving a device."""
        return False

    # ---- texts to tokens --------------------------------------------------------------------

    def tokenize(
        self,
        texts: Sequence[str | Pair],
        num_threads: int | None = None,
        max_length: int | None = None,
    ) -> TokenBatch:
        """The ids of every text or pair, cut at max_length; None: at max_seq_length."""
        limit = self.folder.description.max_position_embeddings
        most = self.max_seq_length if max_length is None else min(max_length, limit)
        return self.tokenizer.encode(texts, most, num_threads)

    def prompt_length(self, prompt: str) -> int:
        """Tokens of the prompt that stay out of the pooling: all but the closing one."""
        try:
            return len(self.tokenize([prompt]).ids) - self.tokenizer.suffix_length
        except LoneSurrogate:
            raise ValueError(_DAMAGED_PROMPT) from None

    def _windows(self, texts: list[str | Pair], request: Request) -> Iterator[_Window]:
        lengths = [length_of(text) for text in texts]
        by_length = np.argsort(np.negative(lengths), kind="stable")
        for places in windows(by_length, lengths, self.window_scale):
            yield self._window(texts, places, request)

    def _window(
        self, texts: list[str | Pair], places: npt.NDArray[np.intp], request: Request
    ) -> _Window:
        tokens = self._tokens(texts, places.tolist(), request, request.num_threads)
        ordered, order = tokens.sorted_by_length()
        return places[order], ordered

    def _tokens(
        self,
        texts: list[str | Pair],
        places: list[int],
        request: Request,
        num_threads: int | None = None,
    ) -> TokenBatch:
        """Tokens of the texts at these places, each behind the prompt."""
        prompted = [with_prompt(request.prompt, texts[place]) for place in places]
        try:
            tokens = self.tokenize(prompted, num_threads, request.max_length)
        except LoneSurrogate as error:
            place = places[error.index]
            character = surrogate_of(texts[place])
            if character is None:
                raise ValueError(_DAMAGED_PROMPT) from None
            raise LoneSurrogate(place, character) from None
        if request.refuses_long:
            self._refuse_long(tokens, places, request)
        return tokens

    def _refuse_long(self, tokens: TokenBatch, places: Any, request: Request) -> None:
        if not tokens.truncated.any():
            return
        place = places[int(np.flatnonzero(tokens.truncated)[0])]
        most = request.max_length
        limit = f"max_seq_length={self.max_seq_length}" if most is None else f"max_length={most}"
        raise ValueError(
            f"sentences[{place}] has more than {limit} tokens and truncation='error' was asked: "
            "shorten it"
        )

    # ---- tokens to vectors ------------------------------------------------------------------

    def encode(
        self,
        texts: list[Any],
        request: Request,
        advance: Callable[[int], Any] = lambda count: None,
    ) -> tuple[Any, EncodeInfo]:
        """Embed texts or pairs; advance is told how many are done, now and then.

        Returns:
            float32 [batch, dim], or a list of what each text gives, as request.output says.

        Raises:
            TypeError: an input is neither a string nor a pair of strings.
            ValueError: a text is too long and request.refuses_long, or it is not valid Unicode.
            FloatingPointError: in float16 a number is out of range.
            KeyboardInterrupt: within a second of Ctrl-C.
        """
        route = self if request.task is None else self.routes.get(request.task, self)
        if route is not self:
            return route.encode(texts, request, advance)
        texts = checked(texts)
        pool_from = 0
        if request.prompt and not self.include_prompt:
            pool_from = self.prompt_length(request.prompt)
        if len(texts) == 1:  # a query: nothing to sort or to put together
            tokens = self._tokens(texts, [0], request)
            encoded = self._encode_tokens(tokens, pool_from, request)
            return encoded, EncodeInfo(tokens.seqlens, tokens.truncated)
        result = self._room(len(texts), request)
        info = EncodeInfo(np.zeros(len(texts), np.int64), np.zeros(len(texts), np.bool_))
        for places, tokens in self._prepared(self._windows(texts, request)):
            info.num_tokens[places] = tokens.seqlens
            info.truncated[places] = tokens.truncated
            encoded = self._encode_tokens(tokens, pool_from, request)
            if isinstance(result, list):
                for place, one in zip(places.tolist(), encoded, strict=True):
                    result[place] = one
            else:
                result[places] = encoded
            advance(len(places))
        return result, info

    def _prepared(self, windows: Iterator[_Window]) -> Iterator[_Window]:
        return windows

    def _room(self, num_texts: int, request: Request) -> Any:
        """Return an array or a list that the results are put into."""
        if request.output == "sentence_embedding":
            return np.empty((num_texts, self._width(request)), np.float32)
        return [None] * num_texts

    def _width(self, request: Request) -> int:
        return min(self.width, self.width if request.truncate_dim is None else request.truncate_dim)

    def _limits(self, request: Request) -> dict[str, Any]:
        """Return the arguments that bound a call of the encoder."""
        return {"batch_size": request.batch_size, "num_threads": request.num_threads}

    def _encode_tokens(self, tokens: TokenBatch, pool_from: int, request: Request) -> Any:
        """Tokens of a window -> vectors [batch, dim], or a list for the other outputs."""
        ids, cu_seqlens, types = tokens.ids, tokens.cu_seqlens(), tokens.token_types
        limits = {"token_types": types, **self._limits(request)}
        if request.output == "token_embeddings":
            rows = self.encoder.token_embeddings(ids, cu_seqlens, **limits)
            return [one.copy() for one in np.split(rows, cu_seqlens[1:-1])]
        pooling = {"poolings": self.folder.poolings, "pool_from": pool_from}
        if request.output == "sentence_embedding":
            pooled = self.encoder.encode(ids, cu_seqlens, **pooling, **limits)
            return self._behind_modules(pooled, request)
        pooled, rows = self.encoder.encode_with_tokens(ids, cu_seqlens, **pooling, **limits)
        # As sentence-transformers gives them: with all outputs, vectors keep their length.
        vectors = self._behind_modules(pooled, request._replace(normalizes=False))
        beside: dict[str, Any] = {"modality": "text"}
        if request.prompt:
            beside["prompt_length"] = self.prompt_length(request.prompt)
        return [
            beside
            | {
                "input_ids": ids[begin:end].astype(np.int64),
                "token_type_ids": tokens.types()[begin:end].astype(np.int64),
                "attention_mask": np.ones(end - begin, np.int64),
                "token_embeddings": rows[begin:end].copy(),
                "sentence_embedding": vector.copy(),
            }
            for vector, (begin, end) in zip(vectors, itertools.pairwise(cu_seqlens), strict=True)
        ]

    def _behind_modules(self, pooled: FloatArray, request: Request) -> FloatArray:
        for module in self.folder.modules:
            pooled = module(pooled)
        width = self._width(request)
        if width < pooled.shape[1]:
            pooled = np.ascontiguousarray(pooled[:, :width])
        return core.l2_normalize(pooled) if request.normalizes else pooled


class CudaPipeline(Pipeline):
    """The same with the encoder on a CUDA device."""

    dtypes = CUDA_DTYPES
    window_scale = 8  # passes of 32,768 tokens

    @staticmethod
    def fastest_dtype() -> str:
        """The type of weights that "auto" means here."""
        return "bfloat16"  # float16's range is exceeded by some models

    def _load_encoder(self, num_threads: int) -> Any:
        if self.folder.is_static:
            raise ValueError(f"{self.folder.path}: a static model runs on the CPU: device='cpu'")
        return load_encoder(self.folder, self.dtype, self.device)

    def vectors_can_stay(self) -> bool:
        """Return whether the device's kernels and torch suffice to compute the vectors."""
        return all(isinstance(module, NormalizeModule) for module in self.folder.modules)

    def _prepared(self, windows: Iterator[_Window]) -> Iterator[_Window]:
        return one_ahead(windows)  # tokenise while the device computes

    def _room(self, num_texts: int, request: Request) -> Any:
        if request.stays_on_device:
            return new_tensor(num_texts, self._width(request), self.device)
        return super()._room(num_texts, request)

    def _limits(self, request: Request) -> dict[str, Any]:
        return {}  # a pass has as many texts as fit

    def _encode_tokens(self, tokens: TokenBatch, pool_from: int, request: Request) -> Any:
        if not request.stays_on_device:
            return super()._encode_tokens(tokens, pool_from, request)
        pooled = new_tensor(len(tokens.seqlens), self._pooled_width(), self.device)
        self.encoder.encode_into(
            tokens.ids,
            tokens.cu_seqlens(),
            pooled.data_ptr(),
            poolings=self.folder.poolings,
            pool_from=pool_from,
            token_types=tokens.token_types,
        )
        self._check_range(pooled)
        normalize = sys.modules["torch"].nn.functional.normalize
        for _ in self.folder.modules:
            pooled = normalize(pooled, eps=1e-12)
        pooled = pooled[:, : self._width(request)]
        return normalize(pooled, eps=1e-12) if request.normalizes else pooled

    def _behind_modules(self, pooled: FloatArray, request: Request) -> FloatArray:
        self._check_range(pooled)
        return super()._behind_modules(pooled, request)

    def _check_range(self, vectors: Any) -> None:
        """Refuse vectors on whose way float16 was too narrow for a number."""
        if self.dtype != "float16":
            return
        library: Any = np if isinstance(vectors, np.ndarray) else sys.modules["torch"]
        if not bool(library.isfinite(vectors).all()):
            raise FloatingPointError(
                f"{self.folder.path}: numbers exceed float16's range for some of these texts: "
                "load the model with dtype='bfloat16' or 'float32'"
            )


def pipeline_of(device: Device) -> type[Pipeline]:
    """The kind of pipeline that runs on a device."""
    return Pipeline if device == "cpu" else CudaPipeline
