"""bfloat16 and int8: what is rounded, that the rest is exact, and what it costs in quality."""

from __future__ import annotations

import numpy as np
import pytest

import shapes
from minifuse import SentenceTransformer, ops
from minifuse.evaluation import evaluate_pairs, read_scored_pairs
from minifuse.native import core

GROUP = core.INT8_GROUP


def to_bfloat16(x):
    """Rounded to nearest, ties to even, as float32."""
    bits = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16
    return rounded.astype(np.uint32).view(np.float32)


def quantized_rows(x):
    """x through 8 bits and back, every group of a row by itself; and what float32 may change of it.

    Returns:
        Values [M, K]; the magnitude of what is added up to make each, [M, K]; and [M], a step of its
        group for each value so near the middle of two codes that float32 may take either.
    """
    result, magnitude, ties = np.zeros(x.shape), np.zeros(x.shape), np.zeros(len(x))
    for begin in range(0, x.shape[1], GROUP):
        part = x[:, begin : begin + GROUP].astype(np.float64)
        low = np.minimum(part.min(1, keepdims=True), 0)
        span = np.maximum(part.max(1, keepdims=True), 0) - low
        scale = np.where(span > 0, span / 255, 1)
        zero = np.rint(-low / scale)
        values = part / scale + zero
        codes = np.clip(np.rint(values), 0, 255)
        result[:, begin : begin + GROUP] = (codes - zero) * scale
        magnitude[:, begin : begin + GROUP] = (codes + zero) * scale
        # Values of up to 255 have four roundings of 2^-24 each behind them.
        is_tie = np.abs(np.hstack([values, -low / scale]) % 1 - 0.5) < 255 * 4 * 2.0**-24
        ties += (is_tie * scale).sum(1)
    return result, magnitude, ties


@pytest.mark.parametrize(("n", "k"), shapes.LINEAR)
def test_bfloat16_is_float32_with_rounded_weights(isa, rng, n, k):
    w, b = rng.standard_normal((n, k)).astype(np.float32), rng.standard_normal(n).astype(np.float32)
    packed = ops.pack_linear(w, "bfloat16")
    assert (packed.dtype, packed.isa) == ("bfloat16", isa)
    for m in shapes.ROWS:
        x = rng.standard_normal((m, k)).astype(np.float32)
        np.testing.assert_array_equal(
            ops.linear(x, packed, b, "gelu"), ops.linear(x, to_bfloat16(w), b, "gelu")
        )


@pytest.mark.parametrize(("n", "k"), shapes.LINEAR)
def test_bfloat16_in_pairs_rounds_both_sides(bfloat16_dot_isa, rng, n, k):
    w, b = rng.standard_normal((n, k)).astype(np.float32), rng.standard_normal(n).astype(np.float32)
    packed = ops.pack_linear(w, "bfloat16")
    assert (packed.dtype, packed.isa) == ("bfloat16", bfloat16_dot_isa)
    for m in shapes.ROWS:
        x = rng.standard_normal((m, k)).astype(np.float32)
        exact = to_bfloat16(x).astype(np.float64) @ to_bfloat16(w).T.astype(np.float64) + b
        error = np.linalg.norm(ops.linear(x, packed, b) - exact)
        assert error <= max(1e-6, 2.5e-8 * k**0.5) * np.linalg.norm(exact)


def test_bfloat16_rounds_to_nearest_even(isa, rng):
    # A product with 1 shows the weight as it was stored.
    halves = [1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 3.4e38, 1e-40, 0.0, np.inf]
    w = np.array([*halves, *rng.standard_normal(100)], np.float32)[:, None]
    stored = ops.linear(np.ones((1, 1), np.float32), ops.pack_linear(w, "bfloat16"))[0]
    np.testing.assert_array_equal(stored, to_bfloat16(w[:, 0]))
    np.testing.assert_array_equal(stored[:3], np.float32([1, 1 + 2**-6, -1]))
    nan = ops.linear(np.ones((1, 1), np.float32), ops.pack_linear(w * np.nan, "bfloat16"))
    assert np.isnan(nan).all()


@pytest.mark.parametrize(("n", "k"), [*shapes.LINEAR, (40, GROUP), (40, GROUP + 1), (7, 1000)])
def test_int8_quantises_rows_of_x_and_sums_exactly(int8_isa, rng, n, k):
    """Weights that 8 bits hold exactly leave the rounding of x as the only error."""
    codes = rng.integers(-63, 64, (n, k))
    codes[:, ::GROUP] = 64  # the search for a scale tries this as the largest code
    w, b = (codes / 64).astype(np.float32), rng.standard_normal(n).astype(np.float32)
    packed = ops.pack_linear(w, "int8")
    for m in shapes.ROWS:
        x = rng.standard_normal((m, k)).astype(np.float32) + 0.5
        values, magnitude, ties = quantized_rows(x)
        exact = values @ w.T.astype(np.float64) + b
        error = np.abs(ops.linear(x, packed, b) - exact)
        # Integers are exact; each group has eight roundings of float32 behind them. Weights are at
        # most 1, so a value that fell to the other side moves a sum by one step.
        roundings = 8 * -(-k // GROUP) * 2.0**-24 * (magnitude @ np.abs(w.T) + np.abs(b))
        assert np.all(error <= roundings + ties[:, None])


def test_int8_never_saturates(int8_isa):
    """The largest codes on both sides: what vpmaddubsw alone would clip at 32,767."""
    x = np.full((7, 2 * GROUP), 3.0, np.float32)
    for sign in (1, -1):
        w = np.full((33, 2 * GROUP), sign * 0.7, np.float32)
        y = ops.linear(x, ops.pack_linear(w, "int8"))
        np.testing.assert_allclose(y, sign * 3 * 0.7 * 2 * GROUP, rtol=0.01)


def test_int8_relative_error_of_random_matrices(int8_isa, rng):
    w = (rng.standard_normal((384, 384)) / 20).astype(np.float32)
    x = rng.standard_normal((50, 384)).astype(np.float32)
    exact = x.astype(np.float64) @ w.T.astype(np.float64)
    error = ops.linear(x, ops.pack_linear(w, "int8")) - exact
    assert np.linalg.norm(error) < 0.014 * np.linalg.norm(exact)


def test_int8_rows_do_not_see_each_other(int8_isa, rng):
    w = ops.pack_linear(rng.standard_normal((48, 300)).astype(np.float32), "int8")
    x = rng.standard_normal((20, 300)).astype(np.float32)
    clean = ops.linear(x, w)
    spoilt = x.copy()
    spoilt[3, 250], spoilt[7, 0], spoilt[11, 5], spoilt[12] = np.nan, np.inf, -np.inf, 1e30
    y = ops.linear(spoilt, w)
    assert np.isnan(y[[3, 7, 11]]).all(), "a NaN or an infinity must not vanish"
    kept = [i for i in range(20) if i not in (3, 7, 11, 12)]
    np.testing.assert_array_equal(y[kept], clean[kept])
    assert np.isfinite(y[12]).all()


def test_int8_of_nothing_and_of_zeros(int8_isa):
    w = np.zeros((5, 20), np.float32)
    w[2] = 1e-42
    b = np.arange(5, dtype=np.float32)
    for x in (np.zeros((3, 20), np.float32), np.full((3, 20), 1e-38, np.float32)):
        np.testing.assert_allclose(ops.linear(x, ops.pack_linear(w, "int8"), b), [b] * 3)
    none = ops.linear(np.zeros((3, 0), np.float32), ops.pack_linear(w[:, :0], "int8"), b)
    np.testing.assert_array_equal(none, [b] * 3)
    assert ops.linear(np.zeros((3, 20), np.float32), ops.pack_linear(w[:0], "int8")).shape == (3, 0)
    w[1] = np.nan
    y = ops.linear(np.ones((2, 20), np.float32), ops.pack_linear(w, "int8"), b)
    assert np.isnan(y[:, 1]).all()
    assert np.isfinite(y[:, [0, 2, 3, 4]]).all()


def test_another_dtype_is_refused():
    with pytest.raises(ValueError, match="dtype is 'int4', wanted one of float32, bfloat16, int8"):
        ops.pack_linear(np.ones((2, 2), np.float32), "int4")


class Embedded:
    """Every text's embedding, computed once: a model to evaluate_pairs."""

    def __init__(self, model, texts):
        self.embeddings = model.encode(texts, normalize_embeddings=True)
        self.place = {text: i for i, text in enumerate(texts)}

    def encode(self, texts, **_):
        return self.embeddings[[self.place[text] for text in texts]]


@pytest.fixture(scope="module")
def stsb(data):
    return read_scored_pairs(data / "sts" / "stsb_test.tsv")


@pytest.fixture(scope="module", params=["minilm_folder", "second_folder"])
def real_folder(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def reference(real_folder, stsb):
    model = SentenceTransformer(real_folder)
    return Embedded(model, sorted({*stsb.sentences1, *stsb.sentences2}))


@pytest.mark.parametrize(
    ("dtype", "least", "mean"), [("bfloat16", 0.9999, 0.9999), ("int8", 0.995, 0.999)]
)
def test_quality(reference, real_folder, stsb, dtype, least, mean):
    """On all sentences of stsb_test, none of which the scales were made from."""
    model = SentenceTransformer(real_folder, dtype=dtype)
    assert (model.dtype, model.isa) == (dtype, core.isa_of(dtype))
    ours = Embedded(model, list(reference.place))
    cosine = (ours.embeddings * reference.embeddings).sum(1)
    assert cosine.min() >= least
    assert cosine.mean() >= mean
    scores = [
        evaluate_pairs(one, stsb.sentences1, stsb.sentences2, stsb.scores).spearman
        for one in (ours, reference)
    ]
    assert abs(scores[0] - scores[1]) <= 0.001


def test_auto_is_the_fastest(tiny_folder):
    assert SentenceTransformer(tiny_folder, dtype="auto").dtype == "int8"


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_tiny_model_in_fewer_bits(tiny, tiny_folder, dtype):
    model = SentenceTransformer(tiny_folder, dtype=dtype)
    texts = ["the sky is blue", "", "a red car"]
    ours, theirs = model.encode(texts), tiny.encode(texts)
    cosine = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert cosine.min() > 0.99
    assert f"dtype='{dtype}'" in repr(model)
