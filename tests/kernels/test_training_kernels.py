"""Native kernels of fine-tuning, against PyTorch's autograd in float64 and finite differences."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from minifuse.native import core

torch = pytest.importorskip("torch", reason="autograd is the referee")

SEED = 0x1234_5678_9ABC_DEF0


def hashed(numbers, seed):
    """lowbias32 as csrc/cpu/attention/dropout.inl.h mixes it."""
    numbers = np.asarray(numbers, np.uint64)
    low = np.uint32(seed & 0xFFFFFFFF)
    high = (np.uint64(seed >> 32) + (numbers >> np.uint64(32))).astype(np.uint32)
    h = numbers.astype(np.uint32) ^ low
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D)
    h = (h ^ (h >> np.uint32(15)) ^ high) * np.uint32(0x846CA68B)
    return h ^ (h >> np.uint32(16))


def keep(numbers, p, seed=SEED):
    """0 or 1 / (1 - p) for each number."""
    threshold = np.uint32(np.float32(p) * np.float32(4294967040.0))
    dropped = hashed(numbers, seed) < threshold
    return np.where(dropped, np.float32(0), np.float32(1) / (np.float32(1) - np.float32(p)))


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_dropout_is_the_hash_of_the_elements_number(isa, rng, p):
    for width in (1, 7, 8, 33, 384):
        x = rng.standard_normal((5, width)).astype(np.float32)
        rows = np.array([0, 3, 7, 2**32 // width - 1, 2**35 // width + 5])
        numbers = rows[:, None] * width + np.arange(width)
        np.testing.assert_array_equal(core.dropout(x, rows, p, SEED), x * keep(numbers, p))


def test_dropout_drops_as_many_as_asked():
    ones = np.ones((1000, 1000), np.float32)
    for p in (0.1, 0.5):
        for seed in (0, 1, 2**63):
            y = core.dropout(ones, np.arange(1000), p, seed)
            assert (y == 0).mean() == pytest.approx(p, abs=5 * (p * (1 - p)) ** 0.5 / 1000)
            # Neighbours, rows and seeds have nothing to do with each other.
            dropped = (y == 0).astype(np.float64) - p
            for a, b in ((dropped[:, 1:], dropped[:, :-1]), (dropped[1:], dropped[:-1])):
                assert abs((a * b).mean()) < 5e-3 * p * (1 - p)
        other = core.dropout(ones, np.arange(1000), p, 12345)
        assert ((y == 0) & (other == 0)).mean() == pytest.approx(p * p, abs=3e-3)


def reference_attention(qkv, cu_seqlens, numbers, num_heads, p, seed):
    """In float64, with the same draws."""
    hidden = qkv.shape[1] // 3
    head_dim = hidden // num_heads
    outs = []
    for sentence, (begin, end) in enumerate(itertools.pairwise(cu_seqlens)):
        length = end - begin
        q, k, v = (
            part.reshape(length, num_heads, head_dim).transpose(0, 1)
            for part in qkv[begin:end].split(hidden, dim=1)
        )
        weights = torch.softmax(q @ k.transpose(1, 2) / head_dim**0.5, dim=-1)
        if p > 0:
            drawn = numbers[sentence] + np.arange(num_heads * length * length)
            mask = keep(drawn, p, seed).reshape(num_heads, length, length).astype(np.float64)
            weights = weights * torch.from_numpy(mask)
        outs.append((weights @ v).transpose(0, 1).reshape(length, hidden))
    return torch.cat(outs) if outs else qkv[:, :hidden]


@pytest.mark.parametrize("head_dim", [1, 5, 16, 26, 32, 64])
@pytest.mark.parametrize("p", [0.0, 0.1])
def test_attention_and_its_gradient(isa, rng, head_dim, p):
    num_heads = 3
    seqlens = [1, 2, 7, 0, 15, 16, 17, 33, 50]
    if isa == "scalar":
        seqlens = seqlens[:7]
    cu_seqlens = np.concatenate([[0], np.cumsum(seqlens)]).astype(np.int32)
    numbers = np.arange(len(seqlens)) * 100_000 + 2**32 - 200_000
    hidden = num_heads * head_dim
    qkv = rng.standard_normal((cu_seqlens[-1], 3 * hidden)).astype(np.float32)
    dout = rng.standard_normal((cu_seqlens[-1], hidden)).astype(np.float32)

    exact = torch.from_numpy(qkv.astype(np.float64)).requires_grad_()
    wanted = reference_attention(exact, cu_seqlens, numbers, num_heads, p, SEED)
    wanted.backward(torch.from_numpy(dout.astype(np.float64)))

    arguments = {"num_heads": num_heads, "dropout": p, "seed": SEED}
    out = core.attention_forward(qkv, cu_seqlens, numbers, **arguments)
    dqkv = core.attention_backward(qkv, out, dout, cu_seqlens, numbers, **arguments)
    for ours, theirs in ((out, wanted.detach()), (dqkv, exact.grad)):
        theirs = theirs.numpy()
        assert np.linalg.norm(ours - theirs) <= 2e-6 * np.linalg.norm(theirs)


def test_attention_gradient_by_finite_differences(rng):
    cu_seqlens, numbers = np.array([0, 5, 9], np.int32), np.array([0, 50])
    qkv = rng.standard_normal((9, 24))
    dout = rng.standard_normal((9, 8))

    def value(x):
        out = reference_attention(torch.from_numpy(x), cu_seqlens, numbers, 2, 0.3, 7)
        return float((out.numpy() * dout).sum())

    single = qkv.astype(np.float32)
    arguments = {"num_heads": 2, "dropout": 0.3, "seed": 7}
    out = core.attention_forward(single, cu_seqlens, numbers, **arguments)
    ours = core.attention_backward(
        single, out, dout.astype(np.float32), cu_seqlens, numbers, **arguments
    )
    for _ in range(40):
        i, j = rng.integers(0, 9), rng.integers(0, 24)
        step = np.zeros_like(qkv)
        step[i, j] = 1e-5
        difference = (value(qkv + step) - value(qkv - step)) / 2e-5
        assert ours[i, j] == pytest.approx(difference, abs=2e-5)


def reference_contrastive(a, b, scale, groups=None):
    scores = scale * a @ b.T
    if groups is not None:
        same = torch.from_numpy(groups[0][:, None] == groups[1][None, :])
        same &= ~torch.eye(len(a), len(b), dtype=torch.bool)
        scores = scores.masked_fill(same, -torch.inf)
    return torch.nn.functional.cross_entropy(scores, torch.arange(len(a)))


@pytest.mark.parametrize(
    ("n", "m", "d"), [(1, 1, 4), (2, 5, 3), (16, 16, 33), (49, 130, 64), (200, 400, 384)]
)
@pytest.mark.parametrize("scale", [1.0, 20.0, 100.0])
@pytest.mark.parametrize("masked", [False, True])
def test_the_contrastive_loss_and_its_gradient(isa, rng, n, m, d, scale, masked):
    a, b = rng.standard_normal((n, d)), rng.standard_normal((m, d))
    b[:n] += a
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    a, b = a.astype(np.float32), b.astype(np.float32)
    groups = (rng.integers(0, n, n), rng.integers(0, n, m)) if masked else None
    x, y = (torch.from_numpy(z.astype(np.float64)).requires_grad_() for z in (a, b))
    wanted = reference_contrastive(x, y, scale, groups)
    wanted.backward()
    loss, da, db = core.contrastive_loss(a, b, scale, 1 / n, *(groups or (None, None)))
    assert loss == pytest.approx(wanted.item(), rel=1e-5, abs=1e-6)
    for ours, theirs in ((da, x.grad), (db, y.grad)):
        error = np.linalg.norm(ours - theirs.numpy())
        # A score of scale 100 is off by 1e-5, and so is its exponential.
        assert error <= 1e-6 * scale * np.linalg.norm(theirs.numpy()) + 1e-7 * scale / n**0.5


def test_wrong_arguments(rng):
    qkv = np.zeros((4, 24), np.float32)
    cu_seqlens, numbers = np.array([0, 4], np.int32), np.array([0])
    for change, message in (
        ({"num_heads": 3}, "num_heads is 3"),
        ({"dropout": 1.0}, "dropout is 1"),
        ({"dropout": -0.1}, "dropout is -0.1"),
    ):
        with pytest.raises(ValueError, match=message):
            core.attention_forward(
                qkv, cu_seqlens, numbers, **{"num_heads": 2, "dropout": 0.0, "seed": 0} | change
            )
    with pytest.raises(ValueError, match="cu_seqlens reaches from 0 to 3, wanted 0 to 4"):
        core.attention_forward(
            qkv, np.array([0, 3], np.int32), numbers, num_heads=2, dropout=0.0, seed=0
        )
    with pytest.raises(ValueError, match="m >= n"):
        core.contrastive_loss(np.zeros((2, 3), np.float32), np.zeros((1, 3), np.float32), 1.0, 1.0)
    with pytest.raises(ValueError, match="numbers: wanted one a row, 4"):
        core.dropout(qkv, numbers, 0.1, 0)
