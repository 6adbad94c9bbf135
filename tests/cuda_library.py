"""The CUDA kernels and their encoder as a library: on the emulator, built here, or on a real device.

Arrays go in as float32 and are rounded to the element type; results come back as float32. What the
emulator finds wrong with a kernel, or the table with a shape, raises ``Fault``.
"""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import os
import subprocess
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import Structure, byref, c_float, c_int, c_int32, c_int64, c_void_p
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import numpy as np
import pytest

from minifuse.models.folder import read_model_folder
from minifuse.models.weights import set_weights

__all__ = ["ELEMENTS", "EMULATOR", "INTERFACE", "ROOT", "UNIT_ROUNDOFF", "DeviceEncoder", "Fault", "Ops",
           "build_emulated", "build_emulated_module",
           "compile_objects", "float32_bound", "rounded"]  # fmt: skip

ROOT = Path(__file__).parent.parent
INTERFACE = ("tests/native/cuda_interface.cpp", "csrc/model/batch.cpp",
             "csrc/model/cuda/cuda_encoder.cpp", "csrc/model/cuda/cuda_weights.cpp",
             "csrc/linear/packed_linear.cpp", "csrc/linear/quantize.cpp",
             "csrc/model/weights/rotary.cpp", "csrc/model/weights/weights.cpp")  # fmt: skip
MODULE = ("csrc/bindings/cuda/cuda.cpp", "csrc/bindings/cuda/cuda_ops.cpp", "csrc/bindings/names.cpp",
          "tests/cuda_emulator/device.cpp", "tests/cuda_emulator/runtime.cpp",
          "tests/cuda_emulator/warpgroup.cpp",
          "csrc/model/batch.cpp", "csrc/model/cuda/cuda_encoder.cpp",
          "csrc/model/cuda/cuda_weights.cpp", "csrc/model/weights/rotary.cpp",
          "csrc/model/weights/weights.cpp",
          "csrc/linear/packed_linear.cpp", "csrc/linear/quantize.cpp")  # fmt: skip
EMULATOR = ("tests/native/cuda_emulated.cpp", "tests/cuda_emulator/device.cpp",
            "tests/cuda_emulator/warpgroup.cpp")  # fmt: skip

ELEMENTS = ("float32", "bfloat16", "float16")
# The largest relative error of one rounding.
UNIT_ROUNDOFF = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}
ACTIVATIONS = {None: 0, "gelu": 1, "gelu_new": 2, "relu": 3}
POOLINGS = {"mean": 0, "cls": 1, "max": 2, "mean_sqrt_len": 3, "weightedmean": 4, "lasttoken": 5}


def float32_bound(K: int) -> float:
    """The relative error that float32's arithmetic explains, behind sums over K.

    The emulator rounds each instruction's sum to nearest. A tensor core cuts it off: three chains of
    K / 8 instructions lose up to a unit in the last place of the sum each time, all in one
    direction, of sums that have on average half their last length.
    """
    if "MINIFUSE_CUDA_LIBRARY" in os.environ:
        return max(1e-6, 3 * K / 8 * 2.0**-24)
    return max(1e-6, 2.5e-8 * K**0.5)


class Fault(RuntimeError):
    """Error that the emulator found in a kernel, or the table in a shape."""


class LinearParams(Structure):
    _fields_ = [("x", c_void_p), ("ldx", c_int64), ("weight", c_void_p), ("bias", c_void_p),
                ("y", c_void_p), ("ldy", c_int64), ("M", c_int), ("N", c_int), ("K", c_int),
                ("activation", c_int32)]  # fmt: skip


class NormParams(Structure):
    _fields_ = [("residual", c_void_p), ("ldr", c_int64), ("gamma", c_void_p), ("beta", c_void_p),
                ("eps", c_float)]  # fmt: skip


class RowNormParams(Structure):
    _fields_ = [("x", c_void_p), ("ldx", c_int64), ("y", c_void_p), ("ldy", c_int64),
                ("M", c_int), ("H", c_int), ("norm", NormParams)]  # fmt: skip


class LinearNormParams(Structure):
    _fields_ = [("linear", LinearParams), ("norm", NormParams)]


class FfnParams(Structure):
    _fields_ = [("x", c_void_p), ("ldx", c_int64), ("w1", c_void_p), ("b1", c_void_p),
                ("w2", c_void_p), ("b2", c_void_p), ("y", c_void_p), ("ldy", c_int64),
                ("M", c_int), ("H", c_int), ("F", c_int), ("activation", c_int32),
                ("norm", NormParams)]  # fmt: skip


class AttentionParams(Structure):
    _fields_ = [("q", c_void_p), ("k", c_void_p), ("v", c_void_p), ("ldq", c_int64),
                ("ldk", c_int64), ("ldv", c_int64), ("mask", c_void_p), ("out", c_void_p), ("ldout", c_int64),
                ("tiles", c_void_p), ("seqlen_q", c_int), ("seqlen_k", c_int), ("num_tiles", c_int),
                ("num_heads", c_int),
                ("head_dim", c_int), ("scale", c_float)]  # fmt: skip


class EmbedParams(Structure):
    _fields_ = [("ids", c_void_p), ("positions", c_void_p), ("word", c_void_p),
                ("position", c_void_p), ("gamma", c_void_p), ("beta", c_void_p), ("eps", c_float),
                ("y", c_void_p), ("ldy", c_int64), ("M", c_int), ("H", c_int)]  # fmt: skip


class PoolParams(Structure):
    _fields_ = [("x", c_void_p), ("ldx", c_int64), ("cu_seqlens", c_void_p),
                ("mask", c_void_p), ("y", c_void_p),
                ("ldy", c_int64), ("batch", c_int), ("H", c_int), ("first_row", c_int),
                ("pooling", c_int32)]  # fmt: skip


def compile_objects(root: Path, sources: Sequence[str], folder: Path, *flags: str) -> list[Path]:
    """Objects of the sources below root, two at a time."""

    def compile_one(source: str) -> Path:
        target = folder / (Path(source).name + ".o")
        command = ["g++", "-std=c++20", "-O1", "-g0", "-fPIC", "-Wall", "-Wextra",
                   "-Wno-unknown-pragmas", "-ffp-contract=off", f"-I{root / 'csrc'}", f"-I{root / 'tests'}", *flags, "-c",
                   str(root / source), "-o", str(target)]  # fmt: skip
        subprocess.run(command, check=True)
        return target

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compile_one, sources))


def build_emulated(root: Path, output: Path, known: Sequence[Path] = ()) -> Path:
    """Build the library on the emulator from the sources below root, but for known objects."""
    names = {path.name for path in known}
    sources = [s for s in (*EMULATOR, *INTERFACE) if Path(s).name + ".o" not in names]
    objects = [*known, *compile_objects(root, sources, output.parent)]
    subprocess.run(["g++", "-shared", *map(str, objects), "-o", str(output)], check=True)
    return output


def build_emulated_module(folder: Path) -> ModuleType:
    """Build and load minifuse._cuda on the emulator, by another name."""
    import pybind11

    path = folder / ("_cuda_emulated" + sysconfig.get_config_var("EXT_SUFFIX"))
    objects = compile_objects(
        ROOT, MODULE, folder, "-fvisibility=hidden", "-DMINIFUSE_CUDA_MODULE=_cuda_emulated",
        f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}",
    )  # fmt: skip
    subprocess.run(["g++", "-shared", *map(str, objects), "-o", str(path)], check=True)
    spec = importlib.util.spec_from_file_location("minifuse._cuda_emulated", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def to_bits(x, element: str):
    """A float32 array as the element type stores it, rounded to nearest even."""
    x = np.ascontiguousarray(x, np.float32)
    if element == "float32":
        return x
    if element == "float16":
        return x.astype(np.float16)
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bits(x, element: str):
    """The other way."""
    if element == "bfloat16":
        return (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float32)


def rounded(x, element: str):
    """x as the element type holds it, in float32."""
    return from_bits(to_bits(x, element), element)


def aligned(array):
    """A copy at a multiple of 64 bytes, as allocators of devices give it."""
    raw = np.empty(array.nbytes + 64, np.uint8)
    offset = -raw.ctypes.data % 64
    copy = raw[offset : offset + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def raise_fault(library: ctypes.CDLL) -> NoReturn:
    """The library's last error."""
    error = library.cuda_error().decode()
    if "does not have sm_90a" in error:
        pytest.skip(f"runs instructions that this device lacks: {error}")
    raise Fault(error)


class Ops:
    """The ops of a library in one element type."""

    def __init__(self, library: ctypes.CDLL, element: str, isa: str = "sm_80") -> None:
        self._dll, self.element, self.isa = library, element, isa
        self.table = ELEMENTS.index(element)
        library.cuda_error.restype = ctypes.c_char_p
        self._kept: list[np.ndarray] = []

    @property
    def bytes_per_element(self) -> int:
        return 4 if self.element == "float32" else 2

    def count(self, instruction: str) -> int:
        """Return how often warps ran it in the last call, on the emulator."""
        self._dll.cuda_instruction_count.restype = c_int64
        return int(self._dll.cuda_instruction_count(instruction.encode()))

    def _pointer(self, array) -> int:
        self._kept.append(array)
        return array.ctypes.data

    def _element(self, x) -> int:
        return self._pointer(aligned(to_bits(x, self.element)))

    def _float(self, x) -> int | None:
        return None if x is None else self._pointer(aligned(np.asarray(x, np.float32)))

    def _out(self, shape, dtype=None):
        dtype = dtype or to_bits(np.zeros(1), self.element).dtype
        # A NaN's bits, so that what no kernel wrote is seen.
        return aligned(np.full(shape, 0x7FFF if dtype == np.uint16 else np.nan, dtype))

    def _call(self, name, params, *more):
        status = getattr(self._dll, "cuda_" + name)(
            c_int(self.table), byref(params), *(c_int64(m) for m in more)
        )
        self._kept.clear()
        if status:
            raise_fault(self._dll)

    def _linear_params(self, x, weight, bias, y, activation=None) -> LinearParams:
        (M, K), N = x.shape, len(weight)
        return LinearParams(self._element(x), K, self._element(weight), self._float(bias),
                            y.ctypes.data, N, M, N, K, ACTIVATIONS[activation])  # fmt: skip

    def _norm_params(self, residual, gamma, beta, eps) -> NormParams:
        pointer, width = (
            (None, 0) if residual is None else (self._element(residual), residual.shape[1])
        )
        return NormParams(pointer, width, self._float(gamma), self._float(beta), eps)

    def layer_norm(self, x, gamma, beta, eps=1e-12, residual=None):
        (M, H), norm = x.shape, self._norm_params(residual, gamma, beta, eps)
        y = self._out((M, H))
        self._call("layer_norm", RowNormParams(self._element(x), H, y.ctypes.data, H, M, H, norm))
        return from_bits(y, self.element)

    def linear(self, x, weight, bias=None, activation=None):
        y = self._out((len(x), len(weight)))
        self._call("linear", self._linear_params(x, weight, bias, y, activation))
        return from_bits(y, self.element)

    def linear_residual_layer_norm(self, x, weight, bias, residual, gamma, beta, eps=1e-12):
        y = self._out((len(x), len(weight)))
        params = LinearNormParams(
            self._linear_params(x, weight, bias, y), self._norm_params(residual, gamma, beta, eps)
        )
        self._call("linear_residual_layer_norm", params)
        return from_bits(y, self.element)

    def ffn_residual_layer_norm(self, x, w1, b1, w2, b2, gamma, beta, eps=1e-12, activation="gelu"):
        (M, H), F = x.shape, len(w1)
        y = self._out((M, H))
        norm = self._norm_params(x, gamma, beta, eps)
        params = FfnParams(norm.residual, H, self._element(w1), self._float(b1), self._element(w2),
                           self._float(b2), y.ctypes.data, H, M, H, F, ACTIVATIONS[activation],
                           norm)  # fmt: skip
        self._call("ffn_residual_layer_norm", params)
        return from_bits(y, self.element)

    def attention(self, qkv, cu_seqlens, num_heads, scale, mask=None):
        total, H = len(qkv), qkv.shape[1] // 3
        tiles = [
            (q, min(16, end - q), begin, end - begin)
            for begin, end in itertools.pairwise(cu_seqlens)
            for q in range(begin, end, 16)
        ]
        out = self._out((total, H))
        q, k, v = (self._element(part) for part in np.split(qkv, 3, axis=1))
        keep = None if mask is None else self._pointer(np.asarray(mask, np.uint8))
        params = AttentionParams(q, k, v, H, H, H, keep, out.ctypes.data, H,
                                 self._pointer(aligned(np.array(tiles, np.int32))), 0, 0, len(tiles),
                                 num_heads, H // num_heads, scale)  # fmt: skip
        self._call("attention", params, total, total)
        return from_bits(out, self.element)

    def embed_layer_norm(self, ids, positions, word, position, gamma, beta, eps=1e-12):
        (M,), H = np.shape(ids), word.shape[1]
        y = self._out((M, H))
        params = EmbedParams(self._pointer(aligned(np.asarray(ids, np.int32))),
                             self._pointer(aligned(np.asarray(positions, np.int32))),
                             self._element(word), self._element(position), self._float(gamma),
                             self._float(beta), eps, y.ctypes.data, H, M, H)  # fmt: skip
        self._call("embed_layer_norm", params, len(word), len(position))
        return from_bits(y, self.element)

    def pool(self, x, cu_seqlens, pooling="mean", first_row=0, mask=None):
        batch, H = len(cu_seqlens) - 1, x.shape[1]
        y = self._out((batch, H), np.float32)
        keep = None if mask is None else self._pointer(np.asarray(mask, np.uint8))
        params = PoolParams(self._element(x), H,
                            self._pointer(aligned(np.asarray(cu_seqlens, np.int32))), keep,
                            y.ctypes.data, H, batch, H, first_row, POOLINGS[pooling])  # fmt: skip
        self._call("pool", params, len(x))
        return y.copy()


class DeviceEncoder:
    """CudaEncoder of a model folder; most_bytes is the memory of an emulated device."""

    def __init__(self, library: ctypes.CDLL, folder, element: str, most_bytes=1 << 30) -> None:
        self._pieces: dict[str, np.ndarray] = {}  # of slots that come in pieces
        self._dll = library
        library.cuda_error.restype = library.cuda_encoder_slots.restype = ctypes.c_char_p
        library.cuda_encoder_new.restype = c_void_p
        model = read_model_folder(folder)
        config = model.description
        self.hidden_size = config.hidden_size
        shape = (c_int64 * 7)(config.vocab_size, config.max_position_embeddings, config.hidden_size,
                              config.num_hidden_layers, config.num_attention_heads,
                              config.intermediate_size, config.type_vocab_size)  # fmt: skip
        self._encoder = c_void_p(
            library.cuda_encoder_new(element.encode(), shape, c_float(config.layer_norm_eps),
                                     ACTIVATIONS[config.activation], c_int64(most_bytes))
        )  # fmt: skip
        self._check(not self._encoder)
        set_weights(self, model)

    def __del__(self) -> None:
        if getattr(self, "_encoder", None):
            self._dll.cuda_encoder_delete(self._encoder)

    def _check(self, status: int) -> None:
        if status:
            raise_fault(self._dll)

    def count(self, name: str) -> int:
        """Return how often it happened since this encoder was made, on the emulator."""
        self._dll.cuda_instruction_count.restype = c_int64
        return int(self._dll.cuda_instruction_count(name.encode()))

    def weight_slots(self) -> dict[str, list[int]]:
        lines = self._dll.cuda_encoder_slots(self._encoder).decode().splitlines()
        return {name: list(map(int, shape)) for name, *shape in map(str.split, lines)}

    def set_weight(self, name, array) -> None:
        shape = (c_int64 * array.ndim)(*array.shape)
        self._check(self._dll.cuda_encoder_set(self._encoder, name.encode(),
                                                   c_void_p(array.ctypes.data), shape,
                                                   array.ndim))  # fmt: skip

    def set_weight_rows(self, name, rows, first_row) -> None:
        whole = self._pieces.setdefault(name, np.zeros(self.weight_slots()[name], np.float32))
        whole[first_row : first_row + len(rows)] = rows
        if first_row + len(rows) == len(whole):
            self.set_weight(name, self._pieces.pop(name))

    def finish_weights(self) -> None:
        self._check(self._dll.cuda_encoder_finish(self._encoder))

    def encode(self, ids, cu_seqlens, max_sentences=1 << 20, rows=False):
        """Mean pooled [batch, H]; or the last layer's rows [total_tokens, H]."""
        ids, cu_seqlens = np.asarray(ids, np.int32), np.asarray(cu_seqlens, np.int32)
        out = np.full((len(ids) if rows else len(cu_seqlens) - 1, self.hidden_size), np.nan,
                      np.float32)  # fmt: skip
        to = c_void_p(out.ctypes.data)
        self._check(
            self._dll.cuda_encoder_encode(
                self._encoder, c_void_p(ids.ctypes.data),
                c_void_p(cu_seqlens.ctypes.data), c_int64(len(cu_seqlens) - 1),
                c_int64(max_sentences), None if rows else to, to if rows else None,
            )
        )  # fmt: skip
        return out
