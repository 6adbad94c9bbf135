"""Fuzz what reads strangers' bytes, and compare what must agree, guided by coverage.

    python tools/fuzz.py TARGET [--minutes M] [--seed N]      one target
    python tools/fuzz.py --list                               their names

A target turns bytes into a call; any error but the ones that its interface names, a difference, or
a time out ends the run with the input, which belongs into a regression test once it is understood.
Inputs that reach new code are kept in build/fuzz/TARGET and serve the next run. Needs atheris
(`make fuzz` installs it).
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import csv
import functools
import io
import json
import random
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris
import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

with atheris.instrument_imports(include=["minifuse"]):
    import minifuse
    from minifuse import Index, ops
    from minifuse.files.safetensors_file import SafetensorsFile, write_safetensors
    from minifuse.files.texts import read_header, read_rows, read_texts
    from minifuse.files.torch_file import TorchFile
    from minifuse.models.folder import read_model_folder
    from minifuse.models.weights import new_encoder
    from minifuse.native import core
    from minifuse.tokens.tokenization import TextTokenizer

from random_models import (  # noqa: E402
    SMALL_CONFIGS,
    random_description,
    random_weights,
    set_weights,
)

from tiny_model import write_tiny_model  # noqa: E402
from tokenizer_kinds import TOKENIZERS, cut, random_text  # noqa: E402

Target = Callable[[bytes], None]


class Fuzz:
    """The targets, with the files that they start from in a folder of their own."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.model = write_tiny_model(work / "model")
        self.tokenizer = TextTokenizer.from_folder(self.model)
        self.header = json.dumps(
            {
                "__metadata__": {"format": "pt"},
                "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
                "b": {"dtype": "I8", "shape": [4], "data_offsets": [24, 28]},
            }
        ).encode()
        self.config_files = [
            "config.json",
            "modules.json",
            "config_sentence_transformers.json",
            "sentence_bert_config.json",
            "1_Pooling/config.json",
            "tokenizer_config.json",
        ]
        self.originals = {
            name: (self.model / name).read_bytes() if (self.model / name).is_file() else b"{}"
            for name in [*self.config_files, "tokenizer.json"]
        }
        state = json.loads(self.originals["tokenizer.json"])
        state["model"]["vocab"] = dict(list(state["model"]["vocab"].items())[:12])
        self.small_tokenizer = json.dumps(state).encode()
        self.indexes = [self._index(dtype, texts) for dtype, texts in
                        (("float32", True), ("bfloat16", False), ("int8", True))]  # fmt: skip

    def _index(self, dtype: str, with_texts: bool) -> bytes:
        path = self.work / "seed.index"
        path.unlink(missing_ok=True)
        index = Index(5, dtype=dtype, metric="dot", rescore=dtype == "int8")
        for first in range(3):
            texts = [f"text {first} {i}" for i in range(4)] if with_texts else None
            index.add(np.arange(20, dtype=np.float32).reshape(4, 5) + first, texts)
            index.save(path)
        return path.read_bytes()

    # ---- readers ---------------------------------------------------------------------------------

    def safetensors(self, data: bytes) -> None:
        """A file of weights: a length, a header of JSON, tensors."""
        path = self.work / "x.safetensors"
        if data[:1] == b"\0":  # a header with wrong values in it, of the right length
            header = _edited_json(self.header, data[1:])
            data = len(header).to_bytes(8, "little") + header + bytes(64)
        path.write_bytes(data)
        with contextlib.suppress(ValueError), SafetensorsFile(path) as file:
            for name in file.names():
                with contextlib.suppress(ValueError):
                    file.read(name)
                with contextlib.suppress(ValueError):
                    file.read_int8(name)

    def torch_file(self, data: bytes) -> None:
        """A file of torch.save: an archive, or one whole but for its pickle."""
        path = self.work / "x.bin"
        if data[:1] == b"\0":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("archive/data.pkl", data[1:])
                archive.writestr("archive/data/0", bytes(64))
        else:
            path.write_bytes(data)
        with contextlib.suppress(ValueError), TorchFile(path) as file:
            for name in file.names():
                with contextlib.suppress(ValueError):
                    file.read(name)

    def configs(self, data: bytes) -> None:
        """One of the JSON files of a model folder, the others being whole."""
        if not data:
            return
        place = data[0] % (len(self.config_files) + len(SMALL_CONFIGS))
        if place < len(self.config_files):
            name = self.config_files[place]
            original = self.originals[name]
        else:
            name = "config.json"
            original = json.dumps(SMALL_CONFIGS[place - len(self.config_files)]).encode()
        (self.model / name).write_bytes(_edited_json(original, data[1:]))
        try:
            with contextlib.suppress(ValueError, FileNotFoundError):
                folder = read_model_folder(self.model)
                with contextlib.suppress(ValueError):
                    config = folder.description
                    if config.vocab_size * config.hidden_size < 1 << 20:
                        new_encoder(config, "float32")
        finally:
            (self.model / name).write_bytes(self.originals[name])

    def tokenizer_json(self, data: bytes) -> None:
        """tokenizer.json, and a text for it."""
        folder = self.work / "tokenizer"
        folder.mkdir(exist_ok=True)
        (folder / "tokenizer.json").write_bytes(
            _edited_json(self.small_tokenizer, data) if data[:1] < b"\x80" else data[1:]
        )
        with contextlib.suppress(ValueError):
            tokenizer = TextTokenizer.from_folder(folder)
            tokenizer.encode(["the sky is blue", "a\n中 é" * 50], 16)

    def index(self, data: bytes) -> None:
        """An index file with ranges overwritten, zeroed, cut out, inserted, or cut off."""
        provider = atheris.FuzzedDataProvider(data)
        whole = bytearray(self.indexes[provider.ConsumeIntInRange(0, 2)])
        for _ in range(provider.ConsumeIntInRange(0, 6)):
            at = provider.ConsumeIntInRange(0, len(whole))
            length = provider.ConsumeIntInRange(0, 700)
            how = provider.ConsumeIntInRange(0, 5)
            if how == 0:
                whole[at : at + length] = bytes(len(whole[at : at + length]))
            elif how == 1:
                del whole[at : at + length]
            elif how == 2:
                whole[at:at] = provider.ConsumeBytes(length)
            elif how == 3:
                new = provider.ConsumeBytes(length)
                whole[at : at + len(new)] = new
            elif how == 4:
                del whole[at:]
            else:  # a header or head with numbers of its own and a right checksum
                self._reseal(whole, provider)
        path, output = self.work / "x.index", self.work / "repaired.index"
        path.write_bytes(whole)
        with contextlib.suppress(ValueError):
            self._use(Index.load(path, verify=provider.ConsumeBool(), mmap=provider.ConsumeBool()))
        output.unlink(missing_ok=True)
        with contextlib.suppress(ValueError):
            Index.repair(path, output)
            self._use(Index.load(output, verify=True))

    @staticmethod
    def _reseal(whole: bytearray, provider: Any) -> None:
        at = whole.find(b"vectors\0", provider.ConsumeIntInRange(0, len(whole)))
        if at < 0 or at + 84 > len(whole):
            return
        field = at + 16 + 8 * provider.ConsumeIntInRange(0, 6)
        whole[field : field + 8] = struct.pack("<Q", provider.ConsumeIntInRange(0, 1 << 63))
        whole[at + 80 : at + 84] = struct.pack("<I", zlib.crc32(whole[at : at + 80]))

    @staticmethod
    def _use(index: Index) -> None:
        count = len(index)
        if not count:
            return
        index.reconstruct(range(count))
        if index.has_texts:
            for i in range(count):
                with contextlib.suppress(ValueError):  # bytes that are no UTF-8, without verify
                    index.text(i)
        with contextlib.suppress(ValueError):
            index.search(np.ones(index.dim), min(3, count))

    def tables(self, data: bytes) -> None:
        """CSV, TSV and JSON lines; and rows written by csv come back."""
        if not data:
            return
        path = self.work / ("x.csv", "x.tsv", "x.jsonl", "x.txt")[data[0] % 4]
        path.write_bytes(data[1:])
        with contextlib.suppress(ValueError):
            for _ in read_texts(str(path), "text"):
                pass
        if path.suffix in (".csv", ".tsv"):
            with contextlib.suppress(ValueError):
                for name in read_header(path):
                    with contextlib.suppress(ValueError):
                        list(read_rows(path, [name]))
        provider = atheris.FuzzedDataProvider(data)
        texts = [
            provider.ConsumeUnicodeNoSurrogates(20) for _ in range(provider.ConsumeIntInRange(0, 5))
        ]
        texts = [text.replace("\0", "") for text in texts]
        buffer = io.StringIO(newline="")
        rows = csv.writer(buffer)
        rows.writerow(["id", "text"])
        rows.writerows(enumerate(texts))
        path = self.work / "written.csv"
        path.write_bytes(buffer.getvalue().encode())
        found = list(read_texts(str(path), "text"))
        assert found == texts, (found, texts)

    def shorten(self, data: bytes) -> None:
        """A long text cut early has the ids of the whole, in time that its length does not rule."""
        provider = atheris.FuzzedDataProvider(data)
        limit = provider.ConsumeIntInRange(1, 12)
        text = ""
        while len(text) < 40 * limit and provider.remaining_bytes():
            unit = provider.ConsumeUnicodeNoSurrogates(provider.ConsumeIntInRange(1, 8))
            text += unit * provider.ConsumeIntInRange(1, 700)
        if not text:
            return
        text *= 1 + 33 * limit // len(text)
        wanted = cut(self.tokenizer.backend.encode(text).ids, limit)
        start = time.perf_counter()
        (ours,) = self.tokenizer.encode([text], limit).rows()
        assert time.perf_counter() - start < 2, "too slow"
        assert ours == wanted, (ours, wanted, ascii(text[:200]))

    # ---- what must agree -------------------------------------------------------------------------

    def ops(self, data: bytes) -> None:
        """The fused operations on shapes with zeros and on any strides, against NumPy."""
        draw = random.Random(data)
        rng = np.random.default_rng(draw.getrandbits(32))

        def number(most: int) -> int:
            return draw.randint(0, most)

        def size() -> int:  # mostly small: edges are found there, and it is fast
            return number(draw.choice((1, 20, 70, 70, 70, 600)))

        def array(*shape: int) -> np.ndarray:
            wide = rng.standard_normal([n * (1 + number(2)) for n in shape]).astype(np.float32)
            steps = [wide.shape[i] // n if n else 1 for i, n in enumerate(shape)]
            view = wide[tuple(slice(None, None, step) for step in steps)]
            view = view[tuple(slice(n) for n in shape)]
            return view[::-1] if number(1) and len(view) else view

        M, N, K = size(), size(), size()
        x, w, b = array(M, K), array(N, K), array(N)
        bias = b if number(1) else None
        which = number(5)
        try:
            if which == 0:
                dtype = ("float32", "bfloat16", "int8")[number(2)]
                y = ops.linear(x, ops.pack_linear(w, dtype=dtype), bias)
                exact = x.astype(float) @ w.T.astype(float) + (0 if bias is None else bias)
                bound = {"float32": 1e-5, "bfloat16": 4e-2, "int8": 8e-2}[dtype]
                norms = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(w, axis=1)
                assert y.shape == exact.shape
                assert (np.abs(y - exact) <= bound * (norms + 1)).all()
            elif which == 1:
                y = ops.layer_norm(x, array(K), array(K), residual=array(M, K))
                assert y.shape == (M, K)
            elif which == 2:
                y = ops.linear_residual_layer_norm(x, w, bias, array(M, N), array(N), array(N))
                assert y.shape == (M, N)
            elif which == 3:
                D = 1 + number(66)
                S, T = number(40), number(40)
                q, k, v = array(2, 3, S, D), array(2, 3, T, D), array(2, 3, T, D)
                mask = rng.random((2, T)) < 0.7 if number(1) else None
                y = ops.attention(q, k, v, mask)
                assert y.shape == q.shape
                assert np.isfinite(y).all()
            elif which == 4:
                lengths = rng.integers(0, 20, number(5))
                offsets = np.cumsum([0, *lengths]).astype(np.int32)
                y = ops.mean_pool_varlen(array(int(offsets[-1]), K), offsets)
                assert y.shape == (len(lengths), K)
            else:
                y = ops.gelu_ffn(x, w, bias, array(number(9), N), None)
                assert y.shape[0] == M
        except (ValueError, TypeError):
            pass

    def differential(self, data: bytes) -> None:
        """An encoder of any shape: alone, in a batch, on any threads and any set: the same bits."""
        draw = random.Random(data)
        number = draw.randint
        config = random_description(draw)
        dtype = ("float32", "bfloat16", "int8")[number(0, 2)]
        rng = np.random.default_rng(number(0, 1 << 30))
        longest = draw.choice((5, 20, 40, 80, 300))  # the scalar set takes its time
        lengths = [number(0, longest) for _ in range(number(1, 6))]
        ids = rng.integers(0, 20, sum(lengths)).astype(np.int32)
        offsets = np.cumsum([0, *lengths]).astype(np.int32)
        weights = None
        expected = None
        before = core.isa()
        try:
            for isa in core.supported_isas():
                core.select_isa(isa)
                encoder = new_encoder(config, dtype)
                weights = weights or random_weights(encoder, dtype, rng)
                set_weights(encoder, weights)
                is_own = dtype == "bfloat16" and core.isa_of(dtype) in ("avx512_bf16", "amx")
                first = None
                for threads in (1, number(2, 8)):
                    got = _encode(encoder, ids, offsets, threads, number(1, 8))
                    first = got if first is None else first
                    assert np.array_equal(got, first), (isa, threads, lengths)
                for i, length in enumerate(lengths):
                    part = ids[offsets[i] : offsets[i + 1]]
                    alone = _encode(encoder, part, np.array([0, length], np.int32), number(1, 3), 1)
                    assert np.array_equal(alone[0], first[i]), (isa, i, lengths)
                if not is_own:
                    expected = first if expected is None else expected
                    assert np.array_equal(first, expected), (isa, lengths)
        finally:
            core.select_isa(before)

    def tokens(self, data: bytes) -> None:
        """The native tokenizers against the package, 500 random texts for one of each kind."""
        rng = random.Random(data)
        for tokenizer in self.tokenizers:
            texts = [random_text(rng) for _ in range(500)]
            limit = rng.choice((0, 1, 2, 3, 5, 64, 10**9))
            tokens = tokenizer.encode(texts, limit, rng.choice((1, 2)))
            whole = tokenizer.backend.encode_batch_fast(texts)
            for text, ours, theirs in zip(texts, tokens.rows(), whole, strict=True):
                assert ours == cut(theirs.ids, limit), (ours, theirs.ids, ascii(text))

    @functools.cached_property
    def tokenizers(self) -> list[TextTokenizer]:
        """One of each kind that the native core has."""
        return [TextTokenizer(TOKENIZERS[name]) for name in TOKENIZERS]

    # ---- what a run starts from ------------------------------------------------------------------

    def seeds(self, name: str) -> list[bytes]:
        """Valid inputs of a target."""
        if name == "safetensors":
            path = self.work / "seed.safetensors"
            tensors = {"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.int8)}
            write_safetensors(path, tensors, {"format": "pt"})
            return [path.read_bytes()]
        if name == "torch_file":
            return [b"\0" + _TORCH_PICKLE]
        if name == "configs":
            files = [self.originals[name] for name in self.config_files]
            files += [json.dumps(config).encode() for config in SMALL_CONFIGS]
            return [bytes([i]) + b"\xff" + file for i, file in enumerate(files)] + [bytes(40)]
        if name == "tokenizer_json":
            return [b"\x80" + self.small_tokenizer, bytes(40)]
        if name == "tables":
            rows = [
                b'id,text\n1,a\n2,"b\nc"\n',
                b"id\ttext\n1\ta\n",
                b'{"text": "a"}\n{"text": 3}\n',
            ]
            return [bytes([i]) + row for i, row in enumerate(rows)]
        return [bytes(64), bytes(range(256))]


# As torch.save writes {"x": a tensor of float32 [2, 3]}.
_TORCH_PICKLE = (
    b"\x80\x02}X\x01\0\0\0xctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\n"
    b"FloatStorage\nX\x01\0\0\0\x30X\x03\0\0\0cpuK\x10tQK\0K\x02K\x03\x86K\x03K\x01\x86\x89"
    b"ccollections\nOrderedDict\n)RtRs."
)

# These targets call native code, whose coverage is not recorded: an input seeds a generator.
_AT_RANDOM = ("ops", "differential", "tokens")

# Values where others are wanted.
_ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 48, 1 << 31, 1 << 63, 1 << 70, 10**30, 0.5, 1e308, 1e400,
    -1e400, "", "x", "gelu", "..", "../x", "/", "~", "a" * 300, "\ud800", [], [[]], {}, [1], ["a"],
    {"a": 1}, [0, 4], [None], "mean", "cls", "F32", "I8", "BF16", "bert",
]  # fmt: skip


def _edited_json(original: bytes, data: bytes) -> bytes:
    """JSON with some of its values replaced, removed or put in other places; data[0] = 255: data as
    it is.
    """
    if data[:1] == b"\xff":
        return data[1:]
    provider = atheris.FuzzedDataProvider(data)
    value = json.loads(original)
    for _ in range(provider.ConsumeIntInRange(1, 4)):
        spot = value
        while True:
            keys = list(spot) if isinstance(spot, dict) else list(range(len(spot)))
            if not keys:
                break
            key = keys[provider.ConsumeIntInRange(0, len(keys) - 1)]
            if isinstance(spot[key], (dict, list)) and spot[key] and provider.ConsumeBool():
                spot = spot[key]
                continue
            how = provider.ConsumeIntInRange(0, 3)
            if how == 0:
                del spot[key]
            elif how == 1:
                spot[key] = provider.ConsumeInt(8)
            else:
                spot[key] = copy.deepcopy(_ODD[provider.ConsumeIntInRange(0, len(_ODD) - 1)])
            break
    return json.dumps(value).encode()


def _encode(encoder: Any, ids: Any, offsets: Any, threads: int, batch_size: int) -> Any:
    return encoder.encode(
        ids, offsets, poolings=["mean", "max"], pool_from=0, batch_size=batch_size,
        num_threads=threads,
    )  # fmt: skip


TARGETS = (
    "safetensors",
    "torch_file",
    "configs",
    "tokenizer_json",
    "index",
    "tables",
    "shorten",
    "ops",
    "differential",
    "tokens",
)


def main() -> None:
    """Run one target for some minutes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("target", nargs="?", choices=TARGETS)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--max-len", type=int, default=8192)
    parser.add_argument("--timeout", type=int, default=30, help="seconds that one input may take")
    arguments = parser.parse_args()
    if arguments.list or arguments.target is None:
        print("\n".join(TARGETS))
        return
    corpus = ROOT / "build" / "fuzz" / arguments.target
    corpus.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="fuzz-"))
    fuzz = Fuzz(work)
    for number, seed in enumerate(fuzz.seeds(arguments.target)):
        (corpus / f"seed-{number}").write_bytes(seed)
    target: Target = getattr(fuzz, arguments.target)
    options = [
        sys.argv[0], str(corpus), f"-max_total_time={int(60 * arguments.minutes)}",
        f"-seed={arguments.seed}", f"-max_len={arguments.max_len}", f"-timeout={arguments.timeout}",
        "-rss_limit_mb=4096", f"-artifact_prefix={ROOT / 'build' / 'fuzz'}/{arguments.target}-",
        "-print_final_stats=1",
    ]  # fmt: skip
    if arguments.target in _AT_RANDOM:
        options += ["-len_control=0", "-reduce_inputs=0", "-max_len=64"]
    print(f"{arguments.target}: minifuse {minifuse.__version__}, {core.isa()}", flush=True)
    atheris.Setup(options, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
