"""The engines that `minifuse bench` compares: ours and every peer that is installed.

Each peer runs at its best published setting: PyTorch as sentence-transformers uses it and under
torch.compile (zentorch where it is installed); ONNX Runtime on the graph that its own optimiser
fuses, in int8 dynamically quantised as it recommends for the CPU; OpenVINO with its throughput hint
(its latency hint for one query), in int8 statically quantised by NNCF; CTranslate2 converted, with
AVX-512 where the CPU has it (CT2_FORCE_CPU_ISA says otherwise). Texts
are tokenised by the `tokenizers` package, sorted by length and padded to the longest of a batch of
32; mean pooling and normalisation are NumPy's. What a peer needs to convert is kept in minifuse's
cache.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from minifuse.bench import sample_text
from minifuse.hardware import describe
from minifuse.models.folder import read_model_folder
from minifuse.models.resolve import cache_folder, resolve_model
from minifuse.sentence_transformer import SentenceTransformer
from minifuse.tokens.token_batch import TokenBatch
from minifuse.tokens.tokenization import TextTokenizer

__all__ = ["ENGINES", "Engine", "installed_engines", "start_engine"]

FloatArray = npt.NDArray[np.float32]
_BATCH_SIZE = 32


class Engine(ABC):
    """Texts to normalised embeddings [n, dim]; `packages` must be importable."""

    name = ""
    # dtype -> what must be importable for it
    packages: ClassVar[dict[str, tuple[str, ...]]] = {}
    dtype = "float32"

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Embed many texts."""

    def encode_one(self, text: str) -> FloatArray:
        """Embed one query at the engine's lowest latency."""
        return np.asarray(self.encode([text])[0])


class MinifuseEngine(Engine):
    """This package."""

    name = "minifuse"
    packages: ClassVar = {"float32": (), "bfloat16": (), "int8": ()}

    def __init__(self, model: Path, num_threads: int, dtype: str) -> None:
        self._model = SentenceTransformer(model, num_threads=num_threads, dtype=dtype)

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Embed many texts."""
        return np.asarray(self._model.encode(list(texts), normalize_embeddings=True))

    def encode_one(self, text: str) -> FloatArray:
        """Embed one query."""
        return np.asarray(self._model.encode(text, normalize_embeddings=True))


class SentenceTransformersEngine(Engine):
    """sentence-transformers on PyTorch."""

    name = "sentence-transformers"
    packages = dict.fromkeys(("float32", "bfloat16"), ("torch", "sentence_transformers"))

    def __init__(self, model: Path, num_threads: int, dtype: str) -> None:
        import sentence_transformers
        import torch

        torch.set_num_threads(num_threads)
        self._model = sentence_transformers.SentenceTransformer(
            str(model), device="cpu", model_kwargs={"dtype": getattr(torch, dtype)}
        )

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Embed many texts."""
        return self._encode(list(texts))

    def encode_one(self, text: str) -> FloatArray:
        """Embed one query."""
        return self._encode(text)

    def _encode(self, texts: Any) -> FloatArray:
        vectors = self._model.encode(texts, show_progress_bar=False, convert_to_tensor=True)
        vectors = vectors.float()  # a norm in bfloat16 is off by a thousandth
        return np.asarray((vectors / vectors.norm(dim=-1, keepdim=True)).numpy())


class CompiledTorchEngine(SentenceTransformersEngine):
    """The same with its encoder compiled by torch.compile, for any shape."""

    name = "torch.compile"

    def __init__(self, model: Path, num_threads: int, dtype: str) -> None:
        super().__init__(model, num_threads, dtype)
        import torch

        bert = self._model[0].auto_model
        bert.forward = torch.compile(bert.forward, dynamic=True)


class ZentorchEngine(SentenceTransformersEngine):
    """The same compiled by AMD's extension of PyTorch, where it is installed."""

    name = "zentorch"
    packages = dict.fromkeys(
        ("float32", "bfloat16"), ("torch", "sentence_transformers", "zentorch")
    )

    def __init__(self, model: Path, num_threads: int, dtype: str) -> None:
        super().__init__(model, num_threads, dtype)
        import torch
        import zentorch  # noqa: F401  (registers itself as a backend)

        bert = self._model[0].auto_model
        bert.forward = torch.compile(bert.forward, backend="zentorch", dynamic=True)


class _PaddedEngine(Engine):
    """Base of the engines on padded batches: tokenising, sorting, pooling."""

    def __init__(self, model: Path) -> None:
        self._tokenizer = TextTokenizer.from_folder(model)
        self._max_seq_length = read_model_folder(model).max_seq_length

    @staticmethod
    def _padded(tokens: TokenBatch) -> tuple[Any, Any]:
        mask = np.arange(int(tokens.seqlens.max())) < tokens.seqlens[:, None]
        ids = np.zeros(mask.shape, np.int64)
        ids[mask] = tokens.ids
        return ids, mask.astype(np.int64)

    @staticmethod
    def _pool(states: Any, mask: Any) -> FloatArray:
        weights = mask[..., None].astype(np.float32)
        pooled = (np.asarray(states) * weights).sum(1) / weights.sum(1)
        return np.asarray(pooled / np.linalg.norm(pooled, axis=1, keepdims=True))

    def _batches(self, texts: Sequence[str]) -> Iterator[tuple[Any, Any, Any]]:
        order = np.argsort([-len(text) for text in texts], kind="stable")
        tokens = self._tokenizer.encode([texts[i] for i in order], self._max_seq_length)
        offsets = tokens.cu_seqlens()
        for first in range(0, len(order), _BATCH_SIZE):
            last = min(first + _BATCH_SIZE, len(order))
            part = TokenBatch(
                tokens.ids[offsets[first] : offsets[last]],
                tokens.seqlens[first:last],
                tokens.truncated[first:last],
            )
            yield order[first:last], *self._padded(part)


class _BatchEngine(_PaddedEngine):
    """An engine that runs one padded batch after the other."""

    @abstractmethod
    def _run(self, ids: Any, mask: Any) -> Any:
        """[batch, seqlen] -> last hidden state [batch, seqlen, H]."""

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Embed many texts."""
        result: Any = None
        for places, ids, mask in self._batches(texts):
            pooled = self._pool(self._run(ids, mask), mask)
            if result is None:
                result = np.empty((len(texts), pooled.shape[1]), np.float32)
            result[places] = pooled
        return np.asarray(result)


def _converted(model: Path, name: str, convert: Callable[[Path], None]) -> Path:
    """A cached conversion of the model: made aside, renamed when whole."""
    key = f"{name}-{(model / 'model.safetensors').stat().st_size}"
    target = cache_folder() / "bench" / key
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix="converting-") as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            convert(made)
            shutil.move(str(made), str(target))
    return target


def _export_onnx(model: Path, folder: Path) -> None:
    import torch
    import transformers

    bert = transformers.AutoModel.from_pretrained(str(model), attn_implementation="eager").eval()

    class Wrapper(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.bert = bert

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            return self.bert(
                input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
            ).last_hidden_state

    ids = torch.ones((2, 16), dtype=torch.int64)
    names = ["input_ids", "attention_mask", "token_type_ids"]
    axes = {n: {0: "batch", 1: "seqlen"} for n in [*names, "last_hidden_state"]}
    with torch.inference_mode():
        torch.onnx.export(
            Wrapper(),
            (ids, ids, torch.zeros_like(ids)),
            str(folder / "model.onnx"),
            input_names=names,
            output_names=["last_hidden_state"],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )


class OnnxRuntimeEngine(_BatchEngine):
    """ONNX Runtime on the fused graph."""

    name = "onnxruntime"
    packages = dict.fromkeys(
        ("float32", "int8"), ("onnxruntime", "onnx", "onnxscript", "torch", "transformers")
    )

    def __init__(self, model: Path, num_threads: int, dtype: str) -> None:
        super().__init__(model)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        graph = _converted(model, "onnx-fused", lambda made: self._fuse(model, made)) / "fused.onnx"
        if dtype == "int8":
            fused = graph
            has_vnni = {"avx_vnni", "avx512_vnni"} & set(describe()["features"])
            name = "onnx-qint8" if has_vnni else "onnx-quint8"
            graph = _converted(
                model, name, lambda made: self._quantize(fused, made, bool(has_vnni))
            )
            graph /= "int8.onnx"
        self._session = onnxruntime.InferenceSession(
            str(graph), options, providers=["CPUExecutionProvider"]
        )
        self._inputs = {i.name for i in self._session.get_inputs()}

    @staticmethod
    def _fuse(model: Path, folder: Path) -> None:
        from onnxruntime.transformers import optimizer

        _export_onnx(model, folder)
        config = read_model_folder(model).description
        fused = optimizer.optimize_model(
            str(folder / "model.onnx"),
            model_type="bert",
            num_heads=config.num_attention_heads,
            hidden_size=config.hidden_size,
        )
        fused.save_model_to_file(str(folder / "fused.onnx"))

    @staticmethod
    def _quantize(fused: Path, folder: Path, signed: bool) -> None:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic

        # Signed weights need VNNI: without it the products of the fused pair saturate.
        kind = QuantType.QInt8 if signed else QuantType.QUInt8
        quantize_dynamic(
            str(fused),
            str(folder / "int8.onnx"),
            weight_type=kind,
            # Its shape inference does not know the fused operators' outputs, which are float.
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )

    def _run(self, ids: Any, mask: Any) -> Any:
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        return self._session.run(None, {k: v for k, v in feed.items() if k in self._inputs})[0]


class OpenVinoEngine(_PaddedEngine):
    """OpenVINO: asynchronous streams for many texts, the latency hint for one."""

    name = "openvino"
    packages: ClassVar = {
        "float32": ("openvino", "torch", "transformers", "onnx", "onnxscript"),
        "bfloat16": ("openvino", "torch", "transformers", "onnx", "onnxscript"),
        "int8": ("openvino", "nncf", "torch", "transformers", "onnx", "onnxscript"),
    }

    def __init__(self, model: Path, num_threads: int, dtype: str) -> None:
        super().__init__(model)
        import openvino

        path = _converted(model, "onnx", lambda made: _export_onnx(model, made)) / "model.onnx"
        if dtype == "int8":
            onnx = path
            path = _converted(model, "openvino-int8", lambda made: self._quantize(onnx, made))
            path /= "int8.xml"
        graph = openvino.Core().read_model(str(path))
        precision = "bf16" if dtype == "bfloat16" else "f32"

        def compiled(hint: str) -> Any:
            return openvino.Core().compile_model(
                graph,
                "CPU",
                {
                    "PERFORMANCE_HINT": hint,
                    "INFERENCE_NUM_THREADS": num_threads,
                    "INFERENCE_PRECISION_HINT": precision,
                },
            )

        self._openvino = openvino
        self._throughput = compiled("THROUGHPUT")
        self._latency = compiled("LATENCY").create_infer_request()

    def _quantize(self, onnx: Path, folder: Path) -> None:
        import nncf
        import openvino

        samples = [
            self._feed(ids, mask) for _, ids, mask in self._batches(sample_text.sentences(300))
        ]
        quantized = nncf.quantize(
            openvino.Core().read_model(str(onnx)),
            nncf.Dataset(samples),
            model_type=nncf.ModelType.TRANSFORMER,
        )
        openvino.save_model(quantized, str(folder / "int8.xml"))

    @staticmethod
    def _feed(ids: Any, mask: Any) -> dict[str, Any]:
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Embed many texts."""
        pooled: list[tuple[Any, FloatArray]] = []

        def finished(request: Any, data: tuple[Any, Any]) -> None:
            places, mask = data
            pooled.append((places, self._pool(request.get_output_tensor(0).data, mask)))

        queue = self._openvino.AsyncInferQueue(self._throughput)
        queue.set_callback(finished)
        for places, ids, mask in self._batches(texts):
            queue.start_async(self._feed(ids, mask), (places, mask))
        queue.wait_all()
        result = np.empty((len(texts), pooled[0][1].shape[1]), np.float32)
        for places, vectors in pooled:
            result[places] = vectors
        return result

    def encode_one(self, text: str) -> FloatArray:
        """Embed one query."""
        ids, mask = self._padded(self._tokenizer.encode([text], self._max_seq_length))
        states = self._latency.infer(self._feed(ids, mask))
        return np.asarray(self._pool(next(iter(states.values())), mask)[0])


class CTranslate2Engine(_BatchEngine):
    """CTranslate2's Encoder."""

    name = "ctranslate2"
    packages = dict.fromkeys(("float32", "int8"), ("ctranslate2", "transformers", "torch"))

    def __init__(self, model: Path, num_threads: int, dtype: str) -> None:
        super().__init__(model)
        # It takes AVX2 on AMD's CPUs even where they have more. Read once, when it is loaded.
        if {"avx512f", "avx512bw", "avx512vl"} <= set(describe()["features"]):
            os.environ.setdefault("CT2_FORCE_CPU_ISA", "AVX512")
        import ctranslate2

        def convert(folder: Path) -> None:
            converter = ctranslate2.converters.TransformersConverter(str(model))
            converter.convert(str(folder / "model"))

        folder = _converted(model, "ctranslate2", convert)
        self._ctranslate2 = ctranslate2
        self._encoder = ctranslate2.Encoder(
            str(folder / "model"), device="cpu", intra_threads=num_threads, compute_type=dtype
        )

    def _run(self, ids: Any, mask: Any) -> Any:
        lengths = self._ctranslate2.StorageView.from_array(mask.sum(1).astype(np.int32))
        view = self._ctranslate2.StorageView.from_array(ids.astype(np.int32))
        return np.array(self._encoder.forward_batch(view, lengths).last_hidden_state)


ENGINES: tuple[Any, ...] = (
    MinifuseEngine,
    SentenceTransformersEngine,
    CompiledTorchEngine,
    ZentorchEngine,
    OnnxRuntimeEngine,
    OpenVinoEngine,
    CTranslate2Engine,
)


def start_engine(name: str, model: str | Path, num_threads: int, dtype: str) -> Engine:
    """The engine of that name; raises what its own packages raise where they are missing."""
    kinds = {kind.name: kind for kind in ENGINES}
    if name not in kinds:
        raise ValueError(f"engine is {name!r}, wanted one of {', '.join(kinds)}")
    kind = kinds[name]
    with contextlib.redirect_stdout(None):
        engine: Engine = kind(resolve_model(str(model)), num_threads, dtype)
    engine.dtype = dtype
    return engine


def installed_engines(
    model_name: str, num_threads: int, dtypes: Sequence[str] = ("float32",)
) -> tuple[list[Engine], dict[str, str]]:
    """Every engine that runs here in each of the dtypes, ours first, and why the others do not."""
    model = resolve_model(model_name)
    engines: list[Engine] = []
    absent: dict[str, str] = {}
    has_bfloat16 = "avx512_bf16" in describe()["features"]
    for dtype in dtypes:
        for kind in ENGINES:
            if dtype not in kind.packages:
                continue
            label = f"{kind.name}, {dtype}"
            if dtype == "bfloat16" and kind is not MinifuseEngine and not has_bfloat16:
                absent[label] = "this CPU has no bfloat16 instructions: it would emulate them"
                continue
            missing = [p for p in kind.packages[dtype] if importlib.util.find_spec(p) is None]
            if missing:
                absent[label] = f"not installed: {', '.join(missing)}"
                continue
            try:
                engines.append(start_engine(kind.name, model, num_threads, dtype))
            except Exception as error:  # a peer that fails is named, and the others still run
                if kind is MinifuseEngine:
                    raise
                absent[label] = f"{type(error).__name__}: {str(error)[:300]}"
    return engines, absent
