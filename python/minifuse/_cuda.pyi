"""The native module of CUDA devices, where it was built. Arrays as _core's."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from minifuse.models.description import ModelDescription

_F32 = npt.NDArray[np.float32]
_I32 = npt.NDArray[np.int32]
# A matrix on the device: address, rows, columns, elements from row to row.
_View = tuple[int, int, int, int]

class Encoder:
    def __init__(self, description: ModelDescription, dtype: str, device: int) -> None: ...
    @property
    def isa(self) -> str: ...
    @property
    def device_name(self) -> str: ...
    @property
    def hidden_size(self) -> int: ...
    def weight_slots(self) -> dict[str, list[int]]: ...
    def set_weight(self, name: str, array: _F32) -> None: ...
    def set_weight_rows(self, name: str, rows: _F32, first_row: int) -> None: ...
    def finish_weights(self) -> None: ...
    def encode(
        self,
        ids: _I32,
        cu_seqlens: _I32,
        *,
        poolings: Sequence[str],
        pool_from: int,
        token_types: _I32 | None = None,
    ) -> _F32: ...
    def encode_with_tokens(
        self,
        ids: _I32,
        cu_seqlens: _I32,
        *,
        poolings: Sequence[str],
        pool_from: int,
        token_types: _I32 | None = None,
    ) -> tuple[_F32, _F32]: ...
    def encode_into(
        self,
        ids: _I32,
        cu_seqlens: _I32,
        address: int,
        *,
        poolings: Sequence[str],
        pool_from: int,
        token_types: _I32 | None = None,
    ) -> None: ...
    def token_embeddings(self, ids: _I32, cu_seqlens: _I32) -> _F32: ...

class Ops:
    def __init__(self, device: int, dtype: str) -> None: ...
    def layer_norm(
        self,
        stream: int,
        x: _View,
        gamma: _View,
        beta: _View,
        eps: float,
        residual: _View | None,
        y: _View,
        /,
    ) -> None: ...
    def linear(
        self,
        stream: int,
        x: _View,
        weight: _View,
        bias: _View | None,
        activation: str,
        y: _View,
        /,
    ) -> None: ...
    def linear_residual_layer_norm(
        self,
        stream: int,
        x: _View,
        weight: _View,
        bias: _View | None,
        residual: _View,
        gamma: _View,
        beta: _View,
        eps: float,
        y: _View,
        /,
    ) -> None: ...
    def attention(
        self,
        stream: int,
        q: _View,
        k: _View,
        v: _View,
        mask: _View | None,
        tiles: _View | None,
        batch: int,
        num_heads: int,
        scale: float,
        out: _View,
        /,
    ) -> None: ...
    def mean_pool(
        self, stream: int, x: _View, cu_seqlens: _View, mask: _View | None, y: _View, /
    ) -> None: ...

def attention_tiles(cu_seqlens: _I32) -> _I32: ...
def check_offsets(name: str, offsets: _I32, num_rows: int) -> None: ...
def devices() -> list[dict[str, Any]]: ...
