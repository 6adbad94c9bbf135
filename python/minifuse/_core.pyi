"""The native module. Arrays are C-contiguous and of exactly the dtype shown."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from minifuse.models.description import ModelDescription

_F32 = npt.NDArray[np.float32]
_I8 = npt.NDArray[np.int8]
_I32 = npt.NDArray[np.int32]
_I64 = npt.NDArray[np.int64]
_U8 = npt.NDArray[np.uint8]

class PackedLinear:
    @property
    def in_features(self) -> int: ...
    @property
    def out_features(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def isa(self) -> str: ...

class Encoder:
    def __init__(self, description: ModelDescription, dtype: str) -> None: ...
    @property
    def isa(self) -> str: ...
    @property
    def hidden_size(self) -> int: ...
    def layer_matrices(self) -> list[tuple[str, list[str], int]]: ...
    def weight_slots(self) -> dict[str, list[int]]: ...
    def set_weight(self, name: str, array: _F32) -> None: ...
    def set_weight_rows(self, name: str, rows: _F32, first_row: int) -> None: ...
    def set_quantized_weight(
        self, name: str, codes: _I8, scale: _F32, input_scale: _F32
    ) -> None: ...
    def finish_weights(self) -> None: ...
    def encode(
        self,
        ids: _I32,
        cu_seqlens: _I32,
        *,
        poolings: Sequence[str],
        pool_from: int,
        batch_size: int,
        num_threads: int,
        token_types: _I32 | None = None,
    ) -> _F32: ...
    def encode_with_tokens(
        self,
        ids: _I32,
        cu_seqlens: _I32,
        *,
        poolings: Sequence[str],
        pool_from: int,
        batch_size: int,
        num_threads: int,
        token_types: _I32 | None = None,
    ) -> tuple[_F32, _F32]: ...
    def token_embeddings(
        self,
        ids: _I32,
        cu_seqlens: _I32,
        *,
        batch_size: int,
        num_threads: int,
        token_types: _I32 | None = None,
    ) -> _F32: ...
    def hidden_states(
        self, ids: _I32, cu_seqlens: _I32, *, num_threads: int, token_types: _I32 | None = None
    ) -> _F32: ...
    def profile(
        self, ids: _I32, cu_seqlens: _I32, *, batch_size: int, num_threads: int
    ) -> dict[str, float]: ...
    def plan(
        self, cu_seqlens: _I32, *, batch_size: int, num_threads: int
    ) -> list[tuple[int, int, int, float]]: ...
    def matrix_inputs(
        self, ids: _I32, cu_seqlens: _I32, *, num_threads: int, token_types: _I32 | None = None
    ) -> _F32: ...

class Tokenizer:
    def encode(
        self,
        sentences: Sequence[str],
        *,
        prefix: list[int],
        suffix: list[int],
        max_length: int,
        num_threads: int,
    ) -> tuple[_I32, _I64, npt.NDArray[np.bool_], list[int]] | None: ...

class BertTokenizer(Tokenizer):
    def __init__(
        self,
        vocabulary: dict[str, int],
        *,
        continuation_prefix: str,
        unknown_id: int,
        max_word_characters: int,
        cleans_text: bool,
        separates_chinese: bool,
        strips_accents: bool,
        lowers: bool,
        added_tokens: list[tuple[str, int]],
        added_normalized: list[tuple[str, int]],
    ) -> None: ...

class UnigramTokenizer(Tokenizer):
    def __init__(
        self,
        vocabulary: list[tuple[str, float]],
        *,
        unknown_id: int,
        map: bytes | None,
        strips_end: bool,
        spaces_become: str | None,
        splits_at_white_space: bool,
        prepends: bool,
        added_tokens: list[tuple[str, int]],
        added_normalized: list[tuple[str, int]],
    ) -> None: ...

class ByteLevelTokenizer(Tokenizer):
    def __init__(
        self,
        vocabulary: dict[str, int],
        merges: list[tuple[str, str]],
        *,
        composes: bool,
        adds_prefix_space: bool,
        pattern: str,
        takes_words_whole: bool,
        added_tokens: list[tuple[str, int]],
        added_normalized: list[tuple[str, int]],
    ) -> None: ...

def isa() -> str: ...
def isa_of(dtype: str) -> str: ...
def select_isa(name: str = "") -> None: ...
def supported_isas() -> list[str]: ...
def cpu_features() -> list[str]: ...
def default_num_threads() -> int: ...
def measure_peak(dtype: str, num_threads: int, seconds: float) -> float: ...
def measure_tile(dtype: str, num_threads: int, seconds: float) -> float: ...
def shutdown_threads() -> None: ...
def pack_linear(weight: _F32, dtype: str) -> PackedLinear: ...
def quantize_linear(weight: _F32, max_input: _F32, moments: _F32) -> tuple[_I8, _F32, _F32]: ...

INT8_GROUP: int

def layer_norm(x: _F32, gamma: _F32, beta: _F32, eps: float, residual: _F32 | None) -> _F32: ...
def linear(x: _F32, weight: PackedLinear, bias: _F32 | None, activation: str) -> _F32: ...
def linear_residual_layer_norm(
    x: _F32,
    weight: PackedLinear,
    bias: _F32 | None,
    residual: _F32,
    gamma: _F32,
    beta: _F32,
    eps: float,
) -> _F32: ...
def gelu_ffn(
    x: _F32, w1: PackedLinear, b1: _F32 | None, w2: PackedLinear, b2: _F32 | None
) -> _F32: ...
def attention(q: _F32, k: _F32, v: _F32, mask: _U8 | None, scale: float) -> _F32: ...
def attention_varlen(
    q: _F32, k: _F32, v: _F32, cu_seqlens: _I32, scale: float, relative_bias: _F32 | None
) -> _F32: ...
def splade_weights(
    x: _F32, cu_seqlens: _I32, weight: PackedLinear, bias: _F32, is_twice: bool
) -> _F32: ...
def masked_mean_pool(x: _F32, attention_mask: _U8) -> _F32: ...
def mean_pool_varlen(x: _F32, cu_seqlens: _I32) -> _F32: ...
def l2_normalize(x: _F32) -> _F32: ...
def search(
    segments: Sequence[tuple[npt.NDArray[Any], _F32 | None]],
    dtype: str,
    dim: int,
    stride: int,
    queries: _F32,
    k: int,
    num_threads: int,
) -> tuple[_F32, _I64]: ...
def rescore(
    segments: Sequence[tuple[npt.NDArray[Any], _F32 | None]],
    dim: int,
    queries: _F32,
    candidates: _I64,
    k: int,
    num_threads: int,
) -> tuple[_F32, _I64]: ...
def quantize_vectors(x: _F32, stride: int) -> tuple[_U8, _F32]: ...
def to_bfloat16(x: _F32) -> npt.NDArray[np.uint16]: ...
def attention_forward(
    qkv: _F32, cu_seqlens: _I32, numbers: _I64, *, num_heads: int, dropout: float, seed: int
) -> _F32: ...
def attention_backward(
    qkv: _F32,
    out: _F32,
    dout: _F32,
    cu_seqlens: _I32,
    numbers: _I64,
    *,
    num_heads: int,
    dropout: float,
    seed: int,
) -> _F32: ...
def dropout(x: _F32, numbers: _I64, p: float, seed: int) -> _F32: ...
def contrastive_loss(
    a: _F32,
    b: _F32,
    scale: float,
    weight: float,
    group_a: _I64 | None = None,
    group_b: _I64 | None = None,
) -> tuple[float, _F32, _F32]: ...
def vector_math(name: str, x: _F32) -> _F32: ...
