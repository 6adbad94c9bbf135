"""The native module of CUDA devices, where it was built. Arrays as _core's."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_F32 = npt.NDArray[np.float32]
_I32 = npt.NDArray[np.int32]

class Encoder:
    def __init__(
        self,
        *,
        vocab_size: int,
        max_position_embeddings: int,
        hidden_size: int,
        num_hidden_layers: int,
        num_attention_heads: int,
        intermediate_size: int,
        layer_norm_eps: float,
        activation: str,
        dtype: str,
        device: int,
    ) -> None: ...
    @property
    def isa(self) -> str: ...
    @property
    def device_name(self) -> str: ...
    @property
    def hidden_size(self) -> int: ...
    def missing_weights(self) -> list[str]: ...
    def set_weight(self, name: str, array: _F32) -> None: ...
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
    ) -> _F32: ...
    def token_embeddings(
        self, ids: _I32, cu_seqlens: _I32, *, batch_size: int, num_threads: int
    ) -> _F32: ...

def devices() -> list[dict[str, Any]]: ...
