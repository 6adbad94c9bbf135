"""SentenceTransformer(device="cuda"): the module _cuda with the emulator in place of a device."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

import minifuse
from minifuse import SentenceTransformer, hardware
from minifuse.bench.sample_text import SENTENCES
from minifuse.cli import main
from minifuse.models import inputs, pipeline
from minifuse.tokens.tokenization import TextTokenizer
from tiny_model import write_tiny_model


def test_encode_agrees_with_the_cpu(cuda_device, cuda_folder):
    texts = [*SENTENCES[:9], ""]
    wanted = SentenceTransformer(cuda_folder).encode(texts)
    model = SentenceTransformer(cuda_folder, device="cuda")
    assert model.device == "cuda:0"
    assert model.device.type == "cuda"
    assert model.device.index == 0
    assert model.isa == "sm_80"
    assert np.abs(model.encode(texts) - wanted).max() <= 1e-5
    for dtype, least in (("float16", 0.99999), ("bfloat16", 0.9999), ("auto", 0.9999)):
        fast = SentenceTransformer(cuda_folder, device="cuda:0", dtype=dtype)
        assert (fast.encode(texts) * wanted).sum(1).min() >= least
    rows = model.encode(texts[:2], output_value="token_embeddings")
    assert [len(one) for one in rows] == model.encode(texts[:2], return_info=True)[
        1
    ].num_tokens.tolist()


def test_token_types_of_pairs(cuda_device, cuda_folder):
    pairs = list(zip(SENTENCES[:7], SENTENCES[7:14], strict=True))
    wanted = SentenceTransformer(cuda_folder).encode(pairs)
    model = SentenceTransformer(cuda_folder, device="cuda")
    assert model.pipeline.tokenize(pairs).types().any()
    assert np.abs(model.encode(pairs) - wanted).max() <= 1e-5
    model.pipeline.set_tokenizer(TextTokenizer(model.pipeline.tokenizer.backend))
    assert np.abs(model.encode(pairs) - wanted).max() > 1e-3


def test_one_text_and_no_text(cuda_device, cuda_folder):
    model = SentenceTransformer(cuda_folder, device="cuda")
    assert np.array_equal(model.encode(SENTENCES[0]), model.encode(SENTENCES[:3])[0])
    assert model.encode([]).shape == (0, 64)


def test_vectors_stay_on_the_device(cuda_device, cuda_folder, monkeypatch):
    """As one tensor, with the values that arrays have; what needs the host's help goes there."""
    torch = pytest.importorskip("torch", reason="asks for tensors")
    made = []

    def new_tensor(num_rows, width, device):
        made.append((num_rows, width, str(device)))
        return torch.empty((num_rows, width))

    monkeypatch.setattr(pipeline, "new_tensor", new_tensor)
    monkeypatch.setattr(inputs, "WINDOW_TEXTS", 2)
    model = SentenceTransformer(cuda_folder, device="cuda")
    texts = list(SENTENCES[:19])
    for options in ({}, {"normalize_embeddings": True}, {"truncate_dim": 5}):
        wanted = model.encode(texts, **options)
        vectors = model.encode(texts, convert_to_tensor=True, **options)
        assert torch.is_tensor(vectors)
        np.testing.assert_allclose(vectors.numpy(), wanted, rtol=2e-6, atol=2e-7)
        one = model.encode(texts[0], convert_to_tensor=True, **options)
        assert torch.equal(one, vectors[0])
    assert (19, 64, "cuda:0") in made
    assert (16, 64, "cuda:0") in made  # a window
    assert (19, 5, "cuda:0") in made
    raw = SentenceTransformer(cuda_folder, device="cuda")
    raw.pipeline.folder.modules.clear()
    plain = raw.encode(texts, convert_to_tensor=True).numpy()
    assert np.array_equal(plain.view(np.uint32), raw.encode(texts).view(np.uint32))
    made.clear()
    model.pipeline.folder.modules.append(lambda x: x + 1)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: self)
    assert torch.is_tensor(model.encode(texts[:3], convert_to_tensor=True))
    assert not made


def test_vectors_and_tokens_of_one_pass(cuda_device, cuda_folder):
    """Each is what a call that asks for it alone gives, in any mixture of lengths."""
    model = SentenceTransformer(cuda_folder, device="cuda")
    texts = [*SENTENCES[:7], "", "a dog " * 20]
    vectors, rows = model.encode(texts), model.encode(texts, output_value="token_embeddings")
    both = model.encode(texts, output_value=None)
    assert len(both) == len(texts)
    for one, vector, tokens in zip(both, vectors, rows, strict=True):
        np.testing.assert_array_equal(one["sentence_embedding"], vector)
        np.testing.assert_array_equal(one["token_embeddings"], tokens)
        assert len(one["input_ids"]) == len(tokens)


def test_windows_are_tokenised_ahead_and_come_back_in_order(cuda_device, cuda_folder, monkeypatch):
    texts = list(SENTENCES[:9])
    model = SentenceTransformer(cuda_folder, device="cuda")
    whole = model.encode(texts)
    monkeypatch.setattr(inputs, "WINDOW_TEXTS", 2)
    monkeypatch.setattr(pipeline.CudaPipeline, "window_scale", 1)
    assert np.array_equal(model.encode(texts), whole)
    with pytest.raises(ValueError, match=r"sentences\[\d\] has more than max_seq_length"):
        model.encode([*texts, "a dog " * 50], truncation="error")


def test_one_ahead_gives_all_in_order_and_passes_errors_on():
    def numbers():
        yield from range(5)
        raise KeyError("behind the last")

    seen = []
    with pytest.raises(KeyError, match="behind the last"):
        seen.extend(inputs.one_ahead(numbers()))
    assert seen == [0, 1, 2, 3, 4]
    assert list(inputs.one_ahead(iter([]))) == []


def test_devices_are_told(cuda_device, cuda_folder):
    assert hardware.describe()["devices"] == ["cpu", "cuda:0"]
    with pytest.raises(ValueError, match=r"there is no cuda:3, wanted cuda:0\.\.0"):
        SentenceTransformer(cuda_folder, device="cuda:3")
    model = SentenceTransformer(cuda_folder, device="cuda")
    assert model.to("cuda") is model
    with pytest.raises(ValueError, match="device is 'cpu', but the model is on cuda:0"):
        model.encode("a dog", device="cpu")
    with pytest.raises(
        ValueError, match="dtype is 'int8', wanted one of float32, bfloat16, float16"
    ):
        SentenceTransformer(cuda_folder, device="cuda", dtype="int8")


def test_what_its_kernels_do_not_take(cuda_device, tmp_path):
    narrow = write_tiny_model(tmp_path / "narrow")
    with pytest.raises(ValueError, match="heads of 16, wanted 32 or 64; use device='cpu'"):
        SentenceTransformer(narrow, device="cuda")


def test_a_build_without_the_part_says_how_to_get_it(cuda_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "minifuse._cuda", None)
    monkeypatch.delattr(minifuse, "_cuda", raising=False)
    with pytest.raises(ValueError, match="this build of minifuse has no CUDA part"):
        SentenceTransformer(cuda_folder, device="cuda")
    assert hardware.describe()["devices"] == ["cpu"]


@pytest.mark.parametrize("device", ["cuda:x", "tpu", "cpu:1"])
def test_unknown_devices(cuda_folder, device):
    with pytest.raises(ValueError, match="wanted 'cpu', 'cuda' or 'cuda:N'"):
        SentenceTransformer(cuda_folder, device=device)


def test_the_command_line_takes_a_device(cuda_device, cuda_folder, capsys):
    arguments = ["similarity", "a dog", "the sky", "--json", "--model", str(cuda_folder)]
    assert main(arguments) == 0
    wanted = json.loads(capsys.readouterr().out)["similarity"]
    assert main([*arguments, "--device", "cuda", "--dtype", "float16"]) == 0
    actual = json.loads(capsys.readouterr().out)["similarity"]
    np.testing.assert_allclose(actual, wanted, atol=2e-3)
    assert main([*arguments, "--device", "tpu"]) == 2
    assert "device is 'tpu', wanted 'cpu', 'cuda' or 'cuda:N'" in capsys.readouterr().err
