"""Folders with int8 matrices: the bits of quantising at load, and no other way to read them."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from minifuse import SentenceTransformer
from minifuse.bench import reference, sample_text
from minifuse.cli import main
from minifuse.files.safetensors_file import SafetensorsFile, write_safetensors
from minifuse.models import calibration_text, quantization
from minifuse.models.quantization import quantize
from minifuse.native import core
from tiny_model import write_tiny_model

GROUP = core.INT8_GROUP
TEXTS = ["the cat sat on the mat", "a dog", "", "the dog ran in the park with a cat"]
CODES = "layers.1.qkv.weight.codes"


@pytest.fixture
def source(tmp_path):
    return write_tiny_model(tmp_path / "source", extra_modules=("Dense", "Normalize"))


@pytest.fixture
def wide(tmp_path):
    """W2 has three groups of inputs, the last one of five."""
    return write_tiny_model(tmp_path / "wide", intermediate_size=2 * GROUP + 5)


@pytest.fixture
def quantized(source, tmp_path):
    return quantize(source, tmp_path / "new" / "quantized")


def rewrite(folder, change, **metadata):
    """The folder's tensors once more, after change(tensors)."""
    path = folder / "model.int8.safetensors"
    with SafetensorsFile(path) as file:
        tensors = {
            name: file.read_int8(name) if name.endswith(".codes") else file.read(name)
            for name in file.names()
        }
        metadata = file.metadata | metadata
    change(tensors)
    write_safetensors(path, tensors, metadata)


def moments_of(x):
    """[groups, GROUP, GROUP], zeros past the last input."""
    groups = -(-x.shape[1] // GROUP)
    padded = np.zeros((len(x), groups * GROUP))
    padded[:, : x.shape[1]] = x
    parts = padded.reshape(len(x), groups, GROUP).transpose(1, 2, 0)
    return (parts @ parts.transpose(0, 2, 1) / len(x)).astype(np.float32)


def restored(codes, scale, input_scale):
    """The weights that codes stand for."""
    scales = np.repeat(scale.astype(np.float64), GROUP, axis=0)[: codes.shape[1]]
    return codes * scales.T * input_scale


@pytest.mark.parametrize("k", [1, 2, 7, 64, GROUP, GROUP + 1, 2 * GROUP + 5])
def test_rounding_follows_the_equations(rng, k):
    """Against float64 NumPy: the factor of the damped moments, and one code after the other."""
    x = rng.standard_normal((300, k)) @ rng.standard_normal((k, k)) + rng.standard_normal(k)
    w = rng.standard_normal((11, k)).astype(np.float32)
    max_input = np.abs(x).max(0).astype(np.float32)
    codes, scale, input_scale = core.quantize_linear(w, max_input, moments_of(x))
    smoothed = w.astype(np.float64) / input_scale
    differing = 0
    for group, begin in enumerate(range(0, k, GROUP)):
        end = min(k, begin + GROUP)
        part = x[:, begin:end] * input_scale[begin:end]
        h = part.T @ part / len(x)
        factor = np.linalg.cholesky(h + np.trace(h) / len(h) * np.eye(len(h)))
        feedback = factor / np.diag(factor)
        for row in range(len(w)):
            step, error = float(scale[group, row]), np.zeros(end - begin)
            for i in reversed(range(end - begin)):
                target = smoothed[row, begin + i] + error[i + 1 :] @ feedback[i + 1 :, i]
                code = int(codes[row, begin + i])
                error[i] = smoothed[row, begin + i] - step * code
                nearest = np.clip(np.rint(target / step), -127, 127)
                mate = int(codes[row, other]) if (other := (begin + i) ^ 1) < k else 0
                if nearest != code and abs(code + mate) < 127:
                    differing += 1
    # float32 rounds a target in the middle of two codes to either side.
    assert differing <= 0.002 * w.size


def test_rounding_lets_errors_cancel(rng):
    """The error is lower on correlated inputs, on text that the moments never saw."""
    mixing = rng.standard_normal((24, 300))

    def rows():
        return rng.standard_normal((900, 24)) @ mixing + 0.3 * rng.standard_normal((900, 300))

    x, unseen = rows(), rows()
    w = rng.standard_normal((64, 300)).astype(np.float32)
    max_input = np.abs(x).max(0).astype(np.float32)
    moments = moments_of(x)
    errors = []
    for given in (moments, np.zeros_like(moments)):
        matrix = core.quantize_linear(w, max_input, given)
        errors.append(np.linalg.norm(unseen @ (restored(*matrix) - w).T))
    assert errors[0] < 0.6 * errors[1]


@pytest.mark.parametrize("bad", [np.inf, np.nan, 0.0, "indefinite"])
def test_without_moments_each_code_is_the_nearest(rng, bad):
    w = rng.uniform(-1, 1, (5, 40)).astype(np.float32)
    if bad == "indefinite":
        moments = np.ones((1, GROUP, GROUP), np.float32) * 100 + np.eye(GROUP, dtype=np.float32)
        moments -= 100 * np.eye(GROUP, dtype=np.float32)
    else:
        moments = np.full((1, GROUP, GROUP), bad, np.float32)
    codes, scale, input_scale = core.quantize_linear(w, np.ones(40, np.float32), moments)
    error = np.abs(w / input_scale - codes * scale.T)
    pairs = np.abs(codes.reshape(5, 20, 2).astype(int).sum(2)).repeat(2, axis=1)
    inside = (pairs < 128) & (np.abs(codes) < 127)
    assert (error <= 0.5001 * scale.T)[inside].all()


def test_the_calibration_text_is_frozen():
    """Another text would give other int8 vectors."""
    digest = hashlib.sha256("\n".join(calibration_text.TEXTS).encode()).hexdigest()
    assert digest == "a57f53dbb51c5890d22bbaf9089459292ae0acad7a74134dfd587b3ef18f468b"


def test_statistics_of_the_calibration_text(wide, monkeypatch):
    """At once, or as many texts at a time as the limit lets in; against NumPy."""
    model = SentenceTransformer(wide)
    found = []
    for limit in (quantization._MAX_INPUT_FLOATS, 20_000, 1):
        monkeypatch.setattr(quantization, "_MAX_INPUT_FLOATS", limit)
        found.append(
            quantization._input_statistics(model.pipeline.folder, model.pipeline.tokenizer, 2)
        )
    texts = calibration_text.TEXTS
    tokens = model.pipeline.tokenizer.encode(texts, model.max_seq_length)
    inputs = model.pipeline.encoder.matrix_inputs(tokens.ids, tokens.cu_seqlens(), num_threads=1)
    hidden = model.pipeline.encoder.hidden_states(tokens.ids, tokens.cu_seqlens(), num_threads=1)
    width = hidden.shape[2]
    np.testing.assert_array_equal(inputs[:, :, :width], hidden[:-1])
    with SafetensorsFile(wide / "model.safetensors") as file:
        one = {n: file.read(n) for n in file.names() if n.startswith("encoder.layer.1.")}
    x, context, y, activated = np.split(inputs[1], [width, 2 * width, 3 * width], axis=1)
    p = "encoder.layer.1."
    norm = p + "attention.output.LayerNorm."
    out = reference.linear(
        context, one[p + "attention.output.dense.weight"], one[p + "attention.output.dense.bias"]
    )
    wanted = reference.layer_norm(out + x, one[norm + "weight"], one[norm + "bias"])
    np.testing.assert_allclose(y, wanted, atol=1e-5)
    up = p + "intermediate.dense."
    wanted = reference.linear(y, one[up + "weight"], one[up + "bias"], "gelu")
    np.testing.assert_allclose(activated, wanted, atol=1e-5)
    for one, *others in zip(*(statistics.values() for statistics in found), strict=True):
        for other in others:
            np.testing.assert_array_equal(one.max_input, other.max_input)
            np.testing.assert_allclose(one.moments, other.moments, atol=1e-5)
    name = "layers.1.ffn_output.weight"
    rows = inputs[1, :, 3 * width :]
    np.testing.assert_array_equal(found[0][name].max_input, np.abs(rows).max(0))
    np.testing.assert_allclose(found[0][name].moments, moments_of(rows), atol=1e-5)


def test_the_same_codes_on_every_instruction_set(isa, wide):
    """The statistics of the inputs come from float32's kernels, which agree in every bit."""
    model = SentenceTransformer(wide)
    matrices = dict(
        quantization.quantized_matrices(model.pipeline.folder, model.pipeline.tokenizer, 1)
    )
    core.select_isa("scalar")
    wanted = quantization.quantized_matrices(model.pipeline.folder, model.pipeline.tokenizer, 2)
    for name, matrix in wanted:
        for ours, theirs in zip(matrices[name], matrix, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", [None, "int8", "auto"])
def test_the_bits_of_quantising_at_load(source, quantized, dtype):
    model = SentenceTransformer(quantized, dtype=dtype)
    assert (model.dtype, model.is_quantized) == ("int8", True)
    wanted = SentenceTransformer(source, dtype="int8")
    assert not wanted.is_quantized
    np.testing.assert_array_equal(model.encode(TEXTS), wanted.encode(TEXTS))
    assert not (quantized / "model.safetensors").exists()


def test_prefixed_names_and_half_precision(tmp_path):
    source = write_tiny_model(tmp_path / "m", prefix="bert.", dtype="float16")
    model = SentenceTransformer(quantize(source, tmp_path / "q"))
    wanted = SentenceTransformer(source, dtype="int8").encode(TEXTS)
    np.testing.assert_array_equal(model.encode(TEXTS), wanted)


def test_the_real_model(minilm_folder, tmp_path):
    texts = sample_text.sentences(50)
    model = SentenceTransformer(quantize(minilm_folder, tmp_path / "q"))
    wanted = SentenceTransformer(minilm_folder, dtype="int8").encode(texts)
    np.testing.assert_array_equal(model.encode(texts), wanted)


def test_saved_again_it_is_the_same(quantized, tmp_path):
    model = SentenceTransformer(quantized)
    model.save_pretrained(tmp_path / "copy")
    again = SentenceTransformer(tmp_path / "copy")
    assert again.is_quantized
    np.testing.assert_array_equal(again.encode(TEXTS), model.encode(TEXTS))


@pytest.mark.parametrize("name", ["model.safetensors", "model.int8.safetensors"])
def test_without_its_weights_nothing_is_saved(source, quantized, tmp_path, name):
    folder = source if name == "model.safetensors" else quantized
    model = SentenceTransformer(folder)
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match="what the model came from is gone"):
        model.save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_other_dtypes_are_refused(quantized, dtype):
    with pytest.raises(ValueError, match=f"int8 weights only, dtype='{dtype}' needs the model"):
        SentenceTransformer(quantized, dtype=dtype)


def test_where_it_cannot_be_written(source, quantized, tmp_path):
    with pytest.raises(FileExistsError, match="is not empty"):
        quantize(source, quantized)
    with pytest.raises(ValueError, match="is quantised already"):
        quantize(quantized, tmp_path / "twice")
    assert not (tmp_path / "twice").exists()


def test_an_interrupted_run_leaves_nothing(source, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(quantization, "write_safetensors", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quantize(source, tmp_path / "q")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_an_empty_folder_is_filled(source, tmp_path):
    (tmp_path / "q").mkdir()
    assert SentenceTransformer(quantize(source, tmp_path / "q")).is_quantized


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t.pop(CODES), f"lacks the tensor '{CODES}'"),
        (lambda t: t.pop("encoder.layer.0.output.dense.bias"), "lacks 'encoder.layer.0.output"),
        (lambda t: t.update({CODES: t[CODES][:, :-1]}), "input scales of .* are misshapen"),
        (lambda t: t.update({CODES: t[CODES][:-1]}), "scales of .* are misshapen"),
        (lambda t: t[CODES].fill(127), "codes beyond what int8 kernels multiply exactly"),
        (lambda t: t[CODES].fill(-128), "codes beyond what int8 kernels multiply exactly"),
        (lambda t: t.update({CODES: t[CODES].astype(np.float32)}), "dtype F32, wanted one of I8"),
    ],
)
def test_damaged_files_are_refused(quantized, change, text):
    rewrite(quantized, change)
    with pytest.raises(ValueError, match=text):
        SentenceTransformer(quantized)


def test_other_formats_and_versions_are_refused(quantized):
    rewrite(quantized, lambda tensors: None, version="0")
    with pytest.raises(ValueError, match="version '0', wanted '2': quantise the model again"):
        SentenceTransformer(quantized)
    rewrite(quantized, lambda tensors: None, format="pt")
    with pytest.raises(ValueError, match="not written by 'minifuse quantize'"):
        SentenceTransformer(quantized)
    path = quantized / "model.int8.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="truncated"):
        SentenceTransformer(quantized)


def test_nan_weights_load_and_warn(quantized):
    rewrite(quantized, lambda t: t["embeddings.LayerNorm.bias"].fill(np.nan))
    with pytest.warns(RuntimeWarning, match="LayerNorm.bias' holds NaN"):
        assert np.isnan(SentenceTransformer(quantized).encode("a dog")).all()


def test_command_line(source, tmp_path, capsys):
    assert main(["quantize", str(source), str(tmp_path / "q")]) == 0
    assert " MB" in capsys.readouterr().out
    pairs = tmp_path / "pairs.tsv"
    rows = ["score\tsentence1\tsentence2", *(f"{i}\ta cat\t{text}" for i, text in enumerate(TEXTS))]
    pairs.write_text("\n".join(rows) + "\n")
    assert main(["evaluate", "-m", str(tmp_path / "q"), str(pairs), "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert "spearman" in alone
    assert main(["evaluate", "-m", str(source), "--dtype", "int8", str(pairs), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["int8"] == alone
    assert main(["quantize", str(tmp_path / "q"), str(tmp_path / "r")]) == 2
    assert "is quantised already" in capsys.readouterr().err
    assert main(["parity", "-m", str(tmp_path / "q")]) == 2
    assert "int8 weights only" in capsys.readouterr().err
