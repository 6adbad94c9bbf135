"""The CUDA encoder, run by the emulator, against the CPU's; its bits in other company; its errors."""

from __future__ import annotations

import numpy as np
import pytest

from cuda_library import ELEMENTS, DeviceEncoder, Fault
from minifuse import SentenceTransformer
from minifuse.bench.sample_text import SENTENCES
from tiny_model import write_tiny_model

# Largest difference from float32 on the CPU of a component of a normalised vector, and the least
# cosine: DESIGN section 3 for float32 on CUDA and bfloat16; float16 has three bits more.
BOUNDS = {"float32": (1e-5, 1 - 1e-9), "bfloat16": (None, 0.9999), "float16": (None, 0.99999)}


def normalized(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def assert_agrees(element, actual, wanted):
    actual, wanted = normalized(actual.astype(float)), normalized(wanted.astype(float))
    most, least_cosine = BOUNDS[element]
    if most is not None:
        assert np.abs(actual - wanted).max() <= most
    assert (actual * wanted).sum(1).min() >= least_cosine


@pytest.fixture(params=ELEMENTS)
def element(request):
    return request.param


@pytest.fixture
def encoder(cuda_library, cuda_folder, element):
    return DeviceEncoder(cuda_library, cuda_folder, element)


@pytest.fixture(scope="module")
def batch(cuda_folder):
    """Ids of sentences of 2 to 32 tokens, one of them empty of words."""
    model = SentenceTransformer(cuda_folder)
    tokens = model.pipeline.tokenize([*SENTENCES[:6], "", "a dog " * 40])
    return tokens.ids, tokens.cu_seqlens()


def test_two_layers_agree_with_the_cpu(encoder, element, cuda_folder, batch):
    ids, cu_seqlens = batch
    cpu = SentenceTransformer(cuda_folder).pipeline.encoder
    wanted = cpu.encode(
        ids, cu_seqlens, poolings=["mean"], pool_from=0, batch_size=8, num_threads=1
    )
    assert_agrees(element, encoder.encode(ids, cu_seqlens), wanted)
    rows = cpu.token_embeddings(ids, cu_seqlens, batch_size=8, num_threads=1)
    assert_agrees(element, encoder.encode(ids, cu_seqlens, rows=True), rows)


@pytest.mark.parametrize("element", ["bfloat16", "float16"])
def test_sm_90a_agrees_with_the_cpu(cuda_library, cuda_folder, batch, element, monkeypatch):
    """By wgmma and TMA; alone and batched in the same bits."""
    ids, cu_seqlens = batch
    cpu = SentenceTransformer(cuda_folder).pipeline.encoder
    wanted = cpu.encode(
        ids, cu_seqlens, poolings=["mean"], pool_from=0, batch_size=8, num_threads=1
    )
    monkeypatch.setenv("MINIFUSE_CUDA_ISA", "sm_90a")
    encoder = DeviceEncoder(cuda_library, cuda_folder, element)
    whole = encoder.encode(ids, cu_seqlens)
    assert_agrees(element, whole, wanted)
    alone = encoder.encode(ids[: cu_seqlens[1]], cu_seqlens[:2])
    assert np.array_equal(alone[0].view(np.uint32), whole[0].view(np.uint32))
    monkeypatch.setenv("MINIFUSE_CUDA_ISA", "sm_70")
    with pytest.raises(Fault, match="MINIFUSE_CUDA_ISA is 'sm_70', wanted sm_80 or sm_90a"):
        DeviceEncoder(cuda_library, cuda_folder, element)


def test_two_kernels_where_one_does_not_fit(cuda_library, tmp_path, element, batch):
    """768 columns: W1 and W2 by themselves, the intermediate through memory."""
    folder = write_tiny_model(
        tmp_path / "wide", hidden_size=768, num_attention_heads=12, intermediate_size=128
    )
    ids, cu_seqlens = batch[0][: batch[1][2]], batch[1][:3]
    cpu = SentenceTransformer(folder).pipeline.encoder
    wanted = cpu.encode(
        ids, cu_seqlens, poolings=["mean"], pool_from=0, batch_size=8, num_threads=1
    )
    assert_agrees(
        element, DeviceEncoder(cuda_library, folder, element).encode(ids, cu_seqlens), wanted
    )


def test_the_real_model(cuda_library, minilm, minilm_folder, element):
    tokens = minilm.pipeline.tokenize([SENTENCES[3], SENTENCES[7]])
    encoder = DeviceEncoder(cuda_library, minilm_folder, element)
    vectors = encoder.encode(tokens.ids, tokens.cu_seqlens())
    assert_agrees(element, vectors, minilm.encode([SENTENCES[3], SENTENCES[7]]))


def test_the_same_bits_alone_in_any_order_and_in_any_chunks(encoder, batch):
    ids, cu_seqlens = batch
    whole = encoder.encode(ids, cu_seqlens)
    lengths = np.diff(cu_seqlens)
    for i in range(len(lengths)):
        alone = encoder.encode(ids[cu_seqlens[i] : cu_seqlens[i + 1]], [0, lengths[i]])
        assert np.array_equal(alone[0].view(np.uint32), whole[i].view(np.uint32))
    order = np.arange(len(lengths))[::-1]
    shuffled = np.concatenate([ids[cu_seqlens[i] : cu_seqlens[i + 1]] for i in order])
    offsets = np.concatenate([[0], np.cumsum(lengths[order])])
    for max_sentences in (1, 3, 100):
        vectors = encoder.encode(shuffled, offsets, max_sentences)
        assert np.array_equal(vectors.view(np.uint32), whole[order].view(np.uint32))


def test_less_memory_means_smaller_chunks_then_an_error(
    cuda_library, is_emulated, cuda_folder, batch
):
    if not is_emulated:
        pytest.skip("runs out of memory on purpose, which only the emulator can be told to do")
    ids, cu_seqlens = batch
    many = np.tile(ids, 12)
    offsets = np.concatenate([[0], np.cumsum(np.tile(np.diff(cu_seqlens), 12))])
    roomy = DeviceEncoder(cuda_library, cuda_folder, "float32").encode(many, offsets)
    small = DeviceEncoder(cuda_library, cuda_folder, "float32", most_bytes=2_500_000)
    assert np.array_equal(small.encode(many, offsets), roomy)
    with pytest.raises(Fault, match="no room for"):
        DeviceEncoder(cuda_library, cuda_folder, "float32", most_bytes=500_000).encode(
            many, offsets
        )
    with pytest.raises((Fault, RuntimeError), match="no room for the weights"):
        DeviceEncoder(cuda_library, cuda_folder, "float32", most_bytes=10_000)


def test_models_and_batches_that_it_does_not_take(cuda_library, tmp_path, cuda_folder):
    narrow = write_tiny_model(tmp_path / "narrow")
    with pytest.raises(Fault, match="heads of 16, wanted 32 or 64; use device='cpu'"):
        DeviceEncoder(cuda_library, narrow, "float32")
    with pytest.raises(Fault, match="dtype is 'int8', wanted float32, bfloat16 or float16"):
        DeviceEncoder(cuda_library, cuda_folder, "int8")
    encoder = DeviceEncoder(cuda_library, cuda_folder, "float32")
    with pytest.raises(Fault, match="cu_seqlens descends at 2"):
        encoder.encode([1, 2, 3], [0, 2, 1])
    with pytest.raises(Fault, match=r"ids\[1\] is 99999"):
        encoder.encode([1, 99999], [0, 2])
    assert encoder.encode([], [0, 0]).tolist() == [[0.0] * 64]
    assert encoder.encode([], [0]).shape == (0, 64)


@pytest.mark.parametrize("element", ["float16"])
def test_a_graph_serves_again(encoder, is_emulated, batch):
    """The same shape twice, with other ids, and shapes that push the first out of the cache."""
    ids, _ = batch
    for _ in range(3):
        encoder.encode(ids[:12], [0, 5, 12])
    if is_emulated:
        assert (encoder.count("graph"), encoder.count("graph launch")) == (1, 3)
    first = encoder.encode(ids[:12], [0, 5, 12])
    for length in range(1, 65):
        encoder.encode(ids[:length], [0, length])
    again = encoder.encode(ids[3:15], [0, 5, 12])
    assert not np.array_equal(again, first)
    assert np.array_equal(encoder.encode(ids[:12], [0, 5, 12]), first)
    assert np.array_equal(encoder.encode(ids[3:15], [0, 5, 12]), again)


@pytest.mark.parametrize("element", ["bfloat16", "float16"])
def test_many_tokens_take_the_fused_kernel_and_give_the_same_bits(
    cuda_library, tmp_path, element, rng
):
    """More than kSplitTokens in a pass, and the same sentences among few."""
    folder = write_tiny_model(tmp_path / "model", hidden_size=32, num_attention_heads=1,
                              intermediate_size=64, num_hidden_layers=1)  # fmt: skip
    encoder = DeviceEncoder(cuda_library, folder, element)
    ids, cu_seqlens = rng.integers(0, 20, 4160), np.arange(0, 4161, 64)
    whole = encoder.encode(ids, cu_seqlens)
    few = encoder.encode(ids[:128], cu_seqlens[:3])
    assert np.array_equal(whole[:2].view(np.uint32), few.view(np.uint32))
