"""Other models than all-MiniLM-L6-v2 beside their peers, in one run, in turn.

    python benchmarks/bench_models.py rerank|shapes|sparse [--texts FILE:LINES] [--json FILE]

rerank: 100 passages by a cross-encoder of MiniLM's shape, against sentence-transformers and ONNX
Runtime. shapes: encoders of the sizes that people use, of random weights, against every peer that
is installed. sparse: short texts by a SPLADE model, against sentence-transformers.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from minifuse import CrossEncoder, SentenceTransformer, SparseEncoder, hardware
from minifuse.bench import sample_text
from minifuse.bench.engines import SentenceTransformersEngine, installed_engines
from minifuse.bench.report import format_table, write_json
from minifuse.bench.timing import interleaved, machine
from minifuse.models.resolve import resolve_model

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
QUERY = "what is known about the flow of air around a thin wing"
# CTranslate2 asks for the positions' kind.
ABSOLUTE = {"position_embedding_type": "absolute"}
MINILM_12 = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 12,
             "intermediate_size": 1536}  # fmt: skip
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "intermediate_size": 3072}  # fmt: skip
FROM_TWO = {"pad_token_id": 1, "max_position_embeddings": 514}
# Name -> transformers' class, its configuration, whether only sentence-transformers is a peer.
SHAPES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "L12-384": ("Bert", MINILM_12 | ABSOLUTE, False),
    "BERT-base": ("Bert", BASE | ABSOLUTE, False),
    "XLM-R-base": ("XLMRoberta", BASE | ABSOLUTE | FROM_TWO | {"type_vocab_size": 1}, False),
    "MPNet-base": ("MPNet", BASE | FROM_TWO, True),
    "ModernBERT-base": (
        "ModernBert",
        BASE | {"num_hidden_layers": 22, "intermediate_size": 1152, "pad_token_id": 0,
                "cls_token_id": 101, "sep_token_id": 102, "bos_token_id": None,
                "eos_token_id": None},
        True,
    ),
}  # fmt: skip
DTYPES = ("float32", "int8")


def passages(source: str | None, count: int) -> list[str]:
    """Lines of a file, FILE:LINES, or sentences of our own put together; each of some 100 words."""
    if source is not None:
        file, _, lines = source.rpartition(":")
        return Path(file).read_text(encoding="utf-8").splitlines()[: int(lines)]
    sentences = itertools.cycle(sample_text.SENTENCES)
    return [" ".join(itertools.islice(sentences, 6 + i % 13)) for i in range(count)]


def with_tokenizer(folder: Path) -> Path:
    """The folder with all-MiniLM-L6-v2's tokenizer: the ids matter to nobody's speed."""
    source = resolve_model(MINILM)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (source / name).is_file():
            shutil.copy(source / name, folder / name)
    return folder


def random_model(folder: Path, kind: str, sizes: dict[str, Any]) -> Path:
    """A model of random weights with mean pooling, as sentence-transformers saves one."""
    import sentence_transformers
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": 30_522, "max_position_embeddings": 512} | sizes
    config = getattr(transformers, f"{kind}Config")(**sizes)
    plain = folder / "plain"
    getattr(transformers, f"{kind}Model")(config).eval().save_pretrained(plain)
    with_tokenizer(plain)
    modules = sentence_transformers.sentence_transformer.modules
    parts = [modules.Transformer(str(plain), max_seq_length=512)]
    parts.append(modules.Pooling(sizes["hidden_size"], "mean"))
    sentence_transformers.SentenceTransformer(modules=parts, device="cpu").save(str(folder / "st"))
    return folder / "st"


def onnx_scores(folder: Path, threads: int, scratch: Path) -> Callable[[list[Any]], Any]:
    """A function of pairs on ONNX Runtime's fused graph, in padded batches of pairs of a length."""
    import onnxruntime
    import torch
    import transformers
    from onnxruntime.transformers import optimizer

    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        str(folder), attn_implementation="eager"
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    names = ["input_ids", "attention_mask", "token_type_ids"]
    ids = torch.ones((2, 16), dtype=torch.int64)
    axes = {name: {0: "batch", 1: "seqlen"} for name in names}
    with torch.inference_mode():
        torch.onnx.export(
            model, (ids, ids, torch.zeros_like(ids)), str(scratch / "model.onnx"),
            input_names=names, output_names=["logits"], dynamic_axes=axes, opset_version=17,
            dynamo=False,
        )  # fmt: skip
    fused = optimizer.optimize_model(
        str(scratch / "model.onnx"), model_type="bert",
        num_heads=model.config.num_attention_heads, hidden_size=model.config.hidden_size,
    )  # fmt: skip
    fused.save_model_to_file(str(scratch / "fused.onnx"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        str(scratch / "fused.onnx"), options, providers=["CPUExecutionProvider"]
    )

    def scores(pairs: list[Any]) -> np.ndarray:
        order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][1]))
        found = np.empty(len(pairs), np.float32)
        for begin in range(0, len(order), 32):
            places = order[begin : begin + 32]
            features = tokenizer(
                [pairs[i][0] for i in places], [pairs[i][1] for i in places],
                padding=True, truncation=True, max_length=512, return_tensors="np",
            )  # fmt: skip
            feed = {name: features[name] for name in names}
            found[places] = session.run(None, feed)[0][:, 0]
        return found

    return scores


def bench(runs: dict[str, Callable[[], Any]], rounds: int, tokens: int) -> list[dict[str, Any]]:
    """Median seconds of each run, its tokens a second, and ours over theirs in both dtypes."""
    seconds = {name: float(np.median(times)) for name, times in interleaved(runs, rounds).items()}
    ours = {dtype: seconds[f"minifuse, {dtype}"] for dtype in DTYPES}
    return [
        {"engine": name, "seconds": value, "tokens_per_second": tokens / value}
        | {f"{dtype} is faster": value / ours[dtype] for dtype in DTYPES}
        for name, value in seconds.items()
    ]


def bench_rerank(texts: Sequence[str], threads: int, rounds: int) -> list[dict[str, Any]]:
    """Scores of one query with passages, float32 peers; outputs are compared first."""
    import sentence_transformers
    import torch
    import transformers

    torch.set_num_threads(threads)
    pairs = [(QUERY, text) for text in texts]
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        torch.manual_seed(0)
        config = transformers.AutoConfig.from_pretrained(str(resolve_model(MINILM)), num_labels=1)
        model = transformers.BertForSequenceClassification.from_pretrained(
            str(resolve_model(MINILM)), config=config
        )
        model.save_pretrained(scratch / "model")
        folder = with_tokenizer(scratch / "model")
        theirs = sentence_transformers.CrossEncoder(str(folder), device="cpu", max_length=512)
        onnx = onnx_scores(folder, threads, scratch)
        ours = {
            dtype: CrossEncoder(folder, dtype=dtype, num_threads=threads, max_length=512)
            for dtype in DTYPES
        }
        expected = theirs.predict(pairs, activation_fn=torch.nn.Identity())
        for found in (ours["float32"].predict(pairs, activation_fn="identity"), onnx(pairs)):
            assert np.abs(found - expected).max() < 1e-4
        tokens = int(ours["float32"].pipeline.tokenize(pairs).seqlens.sum())
        runs: dict[str, Callable[[], Any]] = {
            f"minifuse, {dtype}": partial(one.predict, pairs) for dtype, one in ours.items()
        }
        runs["sentence-transformers"] = partial(theirs.predict, pairs)
        runs["onnxruntime"] = partial(onnx, pairs)
        return bench(runs, rounds, tokens)


def bench_shapes(
    texts: Sequence[str], threads: int, rounds: int, names: Sequence[str]
) -> list[dict[str, Any]]:
    """Vectors of passages by each shape."""
    rows: list[dict[str, Any]] = []
    for name in names:
        kind, sizes, has_one_peer = SHAPES[name]
        with tempfile.TemporaryDirectory() as scratch:
            folder = random_model(Path(scratch), kind, sizes)
            ours = {
                dtype: SentenceTransformer(folder, dtype=dtype, num_threads=threads)
                for dtype in DTYPES
            }
            tokens = int(ours["float32"].pipeline.tokenize(list(texts)).seqlens.sum())
            runs: dict[str, Callable[[], Any]] = {
                f"minifuse, {dtype}": partial(one.encode, list(texts))
                for dtype, one in ours.items()
            }
            if has_one_peer:
                engines: list[Any] = [SentenceTransformersEngine(folder, threads, "float32")]
            else:
                engines, absent = installed_engines(str(folder), threads, DTYPES)
                print(name, "absent:", json.dumps(absent))
            for engine in engines:
                if engine.name != "minifuse":
                    runs[f"{engine.name}, {engine.dtype}"] = partial(engine.encode, list(texts))
            rows += [{"shape": name} | row for row in bench(runs, rounds, tokens)]
    return rows


def bench_sparse(
    model: str, texts: Sequence[str], threads: int, rounds: int
) -> list[dict[str, Any]]:
    """Weights of words in short texts."""
    import sentence_transformers
    import torch

    torch.set_num_threads(threads)
    folder = str(resolve_model(model))
    theirs = sentence_transformers.SparseEncoder(folder, device="cpu")
    ours = {dtype: SparseEncoder(folder, dtype=dtype, num_threads=threads) for dtype in DTYPES}
    few = list(texts[:50])
    difference = ours["float32"].encode(few).to_dense() - theirs.encode(few).to_dense()
    assert float(difference.abs().max()) < 1e-4
    tokens = int(ours["float32"].pipeline.tokenize(list(texts)).seqlens.sum())
    runs: dict[str, Callable[[], Any]] = {
        f"minifuse, {dtype}": partial(one.encode, list(texts)) for dtype, one in ours.items()
    }
    runs["sentence-transformers"] = partial(theirs.encode, list(texts), show_progress_bar=False)
    return bench(runs, rounds, tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["rerank", "shapes", "sparse"])
    parser.add_argument("--texts", metavar="FILE:LINES")
    parser.add_argument("--model", help="of sparse vectors: a folder or a name")
    parser.add_argument("--shape", action="append", choices=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    threads = hardware.describe()["num_threads"]
    columns = {"engine": "engine", "seconds": "seconds", "tokens_per_second": "tokens/s"}
    columns |= {f"{dtype} is faster": f"ours in {dtype} is faster" for dtype in DTYPES}
    if arguments.what == "rerank":
        rows = bench_rerank(passages(arguments.texts, 100), threads, arguments.rounds)
    elif arguments.what == "shapes":
        names = arguments.shape or list(SHAPES)
        rows = bench_shapes(passages(arguments.texts, 16), threads, arguments.rounds, names)
        columns = {"shape": "shape"} | columns
    else:
        if arguments.model is None:
            parser.error("sparse: give --model")
        texts = passages(arguments.texts, 1000)
        rows = bench_sparse(arguments.model, texts, threads, arguments.rounds)
    print(format_table(rows, columns))
    if arguments.json:
        write_json(arguments.json, {"machine": machine(), "what": arguments.what, "rows": rows})


if __name__ == "__main__":
    main()
