"""Speed on a CUDA device: our encoder and ops beside PyTorch's, and the device's measured ceiling.

As encode.py on the CPU: everything in one process, interleaved, medians and ratios, rows that we
lose stay. PyTorch runs at its best published setting: float16 with SDPA at the best of four batch
sizes, with and without torch.compile.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minifuse.bench.encode import encoder_flops
from minifuse.bench.ops import OP_TOKENS, Placement, op_cases
from minifuse.bench.timing import interleaved, machine, repeated, time_once
from minifuse.models.resolve import resolve_model
from minifuse.native.devices import CUDA_DTYPES, cuda_module, resolve_device
from minifuse.sentence_transformer import SentenceTransformer

__all__ = ["bench_device", "bench_device_ops", "measured_peak"]

PEERS = ("sentence-transformers", "torch.compile")
PEER_BATCH_SIZES = (64, 256, 1024, 4096)
_PEAK_SIZE, _QUERY_ROUNDS = 8192, 200


@dataclass(frozen=True)
class Run:
    """Embeds one workload: its tokens alone, and from text to vectors on the device."""

    engine: str
    dtype: str
    encoder: Callable[[], Any]
    encode: Callable[[], Any]
    batch_size: int | None = None


def synchronize() -> None:
    """Wait for all that torch and we have put onto the device."""
    import torch

    torch.cuda.synchronize()


def measured_peak(device: str, dtype: str, rounds: int = 5) -> float:
    """FLOP/s of torch's 8,192-wide matrix product in this dtype; the median of rounds.

    Raises:
        ImportError: PyTorch is not installed.
    """
    import torch

    a, b = (torch.randn(_PEAK_SIZE, _PEAK_SIZE, device=device, dtype=getattr(torch, dtype))
            for _ in range(2))  # fmt: skip

    def products() -> None:
        for _ in range(10):
            a @ b
        synchronize()

    products()
    seconds = float(np.median([time_once(products) for _ in range(rounds)]))
    return 10 * 2 * _PEAK_SIZE**3 / seconds


def bench_device(
    model_name: str,
    workloads: dict[str, Sequence[str]],
    query: str,
    device: str = "cuda",
    rounds: int = 7,
    peers: Sequence[str] = PEERS,
) -> dict[str, Any]:
    """The encoder and whole encodes on a device, ours in three dtypes and PyTorch's in float16.

    Args:
        model_name: a folder or a name.
        workloads: name -> texts.
        query: the text that is timed alone.
        device: "cuda" or "cuda:N".
        rounds: of which the medians are taken.
        peers: the forms of PyTorch's; compiling takes a minute a workload.

    Returns:
        ``machine`` with the ``device``, ``absent`` (what did not run -> why), ``peak`` (dtype ->
        FLOP/s), ``workloads`` (name -> rows with engine, dtype, tokens/s of the encoder alone and
        of encode, cosine min against float32 on the CPU, the encoder's share of the peak) and
        ``query`` (rows with microseconds of the encoder and of encode; medians).

    Raises:
        ValueError: there is no such device, or this build has no CUDA part.
    """
    place = resolve_device(device)
    model = resolve_model(model_name)
    ours = {dtype: SentenceTransformer(model, device=place, dtype=dtype) for dtype in CUDA_DTYPES}
    absent: dict[str, str] = {}
    peak = _peaks(place, absent)
    result: dict[str, Any] = {
        "machine": machine() | {"device": cuda_module().devices()[place.index or 0]["name"]},
        "absent": absent, "peak": peak, "workloads": {},
    }  # fmt: skip
    referee = SentenceTransformer(model)
    for name, texts in workloads.items():
        listed = list(texts)
        tokens = referee.pipeline.tokenize(listed)
        wanted = referee.encode(listed, normalize_embeddings=True)
        flops = encoder_flops(referee, tokens.seqlens)
        runs = [_ours(one, listed) for one in ours.values()]
        runs += _peers(model, place, listed, peers, absent)
        encoder = _medians([run.encoder for run in runs], rounds)
        encode = _medians([run.encode for run in runs], rounds)
        rows = []
        for run, alone, whole in zip(runs, encoder, encode, strict=True):
            rows.append({
                "engine": run.engine,
                "dtype": run.dtype,
                "batch_size": run.batch_size,
                "encoder_tokens_per_second": len(tokens.ids) / alone,
                "encode_tokens_per_second": len(tokens.ids) / whole,
                "cosine_min": float((_host(run.encode()) * wanted).sum(1).min()),
                "share_of_peak": flops / alone / peak[run.dtype] if run.dtype in peak else None,
            })  # fmt: skip
        result["workloads"][name] = {
            "num_texts": len(listed), "num_tokens": len(tokens.ids), "rows": rows,
        }  # fmt: skip
    result["query"] = [_query_row(one, query) for one in ours.values()]
    return result


def _peaks(device: str, absent: dict[str, str]) -> dict[str, float]:
    peaks: dict[str, float] = {}
    for dtype in CUDA_DTYPES:
        try:
            peaks[dtype] = measured_peak(device, dtype)
        except Exception as error:  # without torch, or its memory: our figures still come
            absent[f"peak, {dtype}"] = f"{type(error).__name__}: {str(error)[:300]}"
    return peaks


def _medians(calls: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
    runs = {str(i): call for i, call in enumerate(calls)}
    return [float(np.median(seconds)) for seconds in interleaved(runs, rounds).values()]


def _host(vectors: Any) -> Any:
    return vectors.float().cpu().numpy() if hasattr(vectors, "cpu") else vectors


def _ours(model: SentenceTransformer, texts: list[str]) -> Run:
    tokens, _ = model.pipeline.tokenize(texts).sorted_by_length()
    cu_seqlens = tokens.cu_seqlens()

    def encoder() -> Any:
        return model.pipeline.encoder.encode(
            tokens.ids, cu_seqlens, poolings=model.pipeline.folder.poolings, pool_from=0
        )

    return Run("minifuse", model.dtype, encoder,
               lambda: model.encode(texts, normalize_embeddings=True))  # fmt: skip


def _query_row(model: SentenceTransformer, query: str) -> dict[str, Any]:
    run = _ours(model, [query])

    def encode() -> Any:
        return model.encode(query, normalize_embeddings=True)

    return {
        "engine": "minifuse",
        "dtype": model.dtype,
        "encoder_us": 1e6 * _median_of(run.encoder, _QUERY_ROUNDS),
        "encode_us": 1e6 * _median_of(encode, _QUERY_ROUNDS),
    }


def _median_of(call: Callable[[], Any], rounds: int) -> float:
    call()
    return float(np.median([time_once(call) for _ in range(rounds)]))


def _peers(
    model: Any, device: str, texts: list[str], names: Sequence[str], absent: dict[str, str]
) -> list[Run]:
    """sentence-transformers in float16 with SDPA, as it is and compiled."""
    runs = []
    for name in names:
        try:
            runs.append(_peer(model, device, texts, name))
        except Exception as error:  # a peer that fails is named, and the others still run
            absent[name] = f"{type(error).__name__}: {str(error)[:300]}"
    return runs


def _peer(model: Any, device: str, texts: list[str], name: str) -> Run:
    """The peer at its best batch size."""
    import sentence_transformers
    import torch

    peer = sentence_transformers.SentenceTransformer(
        str(model), device=str(device),
        model_kwargs={"dtype": torch.float16, "attn_implementation": "sdpa"},
    )  # fmt: skip
    if name == "torch.compile":
        bert = peer[0].auto_model
        bert.forward = torch.compile(bert.forward, dynamic=True)
    tokenize = getattr(peer, "preprocess", None) or peer.tokenize
    ordered = sorted(texts, key=len, reverse=True)

    def forward_of(batch_size: int) -> Callable[[], Any]:
        batches = [tokenize(ordered[i : i + batch_size])
                   for i in range(0, len(ordered), batch_size)]  # fmt: skip
        batches = [{k: v.to(device) if hasattr(v, "to") else v for k, v in batch.items()}
                   for batch in batches]  # fmt: skip

        def forward() -> None:
            with torch.inference_mode():
                for batch in batches:
                    peer(dict(batch))
            synchronize()

        return forward

    def encode_of(batch_size: int) -> Callable[[], Any]:
        def encode() -> Any:
            vectors = peer.encode(texts, batch_size=batch_size, show_progress_bar=False,
                                  convert_to_tensor=True)  # fmt: skip
            return torch.nn.functional.normalize(vectors.float()).cpu().numpy()

        return encode

    forwards = {size: forward_of(size) for size in PEER_BATCH_SIZES}
    seconds = {size: _median_of(forward, 3) for size, forward in forwards.items()}
    best = min(seconds, key=lambda size: seconds[size])
    return Run(name, "float16", forwards[best], encode_of(best), best)


def bench_device_ops(
    device: str = "cuda",
    dtype: str = "bfloat16",
    rounds: int = 30,
    tokens: Sequence[int] = (*OP_TOKENS, 32768),
    compiles: bool = True,
) -> list[dict[str, Any]]:
    """Each fused op on CUDA tensors against PyTorch, eager (SDPA for attention) and compiled.

    Args:
        device: "cuda" or "cuda:N".
        dtype: of the tensors.
        rounds: of which the medians are taken.
        tokens: the sizes.
        compiles: whether to compile PyTorch's form, too: seconds for each op and size.

    Returns:
        Rows with op, tokens, microseconds of PyTorch, of PyTorch compiled (None where that fails)
        and of ours, our speed-up over the faster of the two, and the share of the measured peak.

    Raises:
        ImportError: PyTorch is not installed.
    """
    import torch

    place = resolve_device(device)
    kind = getattr(torch, dtype)

    def tensor(array: Any) -> Any:
        one = torch.from_numpy(array)
        return one.to(place, kind) if one.is_floating_point() else one.to(place)

    peak = measured_peak(place, dtype)
    rows: list[dict[str, Any]] = []
    for count in tokens:
        for case in op_cases(count, placement=Placement(ours=tensor, theirs=tensor)):
            runs = {"torch": case.torch, "ours": case.packed}
            with torch.inference_mode():
                with contextlib.suppress(Exception):  # no compiler for it: its column stays empty
                    if compiles:
                        compiled = torch.compile(case.torch)
                        compiled()
                        runs["compiled"] = compiled
                case.packed()
                synchronize()
                repeat = max(1, int(2e-3 / max(_once(case.packed), 1e-6)))
                calls = {name: _waited(repeated(run, repeat)) for name, run in runs.items()}
                times = interleaved(calls, rounds, True)
            us = {name: float(np.median(v)) / repeat * 1e6 for name, v in times.items()}
            best = min(us["torch"], us.get("compiled", us["torch"]))
            rows.append({
                "op": case.name,
                "tokens": count,
                "torch_us": us["torch"],
                "compiled_us": us.get("compiled"),
                "ours_us": us["ours"],
                "speedup": best / us["ours"],
                "share_of_peak": case.flops / (us["ours"] * 1e-6) / peak,
            })  # fmt: skip
    return rows


def _once(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - start


def _waited(call: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        call()
        synchronize()

    return run
