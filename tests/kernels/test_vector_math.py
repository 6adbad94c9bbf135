"""exp, erf and the activations over their whole range: the errors that csrc/cpu/rows/math.inl.h states."""

import math

import numpy as np
import pytest

from minifuse.bench import reference
from minifuse.native import core


def ulps(actual, exact):
    spacing = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    return np.abs(actual.astype(np.float64) - exact) / spacing


def test_exp_is_within_two_ulp(isa):
    x = np.linspace(-87.3, 88.3, 400_001).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    assert ulps(core.vector_math("exp", x), exact).max() <= 1.5


def test_exp_saturates_below(isa):
    x = np.array([-88, -100, -1e30, -np.inf], np.float32)
    y = core.vector_math("exp", x)
    assert (y > 0).all()
    assert (y < 1.3e-38).all()


def test_erf_absolute_error(isa):
    x = np.concatenate([np.linspace(-6, 6, 200_001), [0.0, 1e-30, 50, -50]]).astype(np.float32)
    y = core.vector_math("erf", x)
    assert np.abs(y - reference.erf(x)).max() <= 2.4e-7
    assert (np.abs(y) <= 1).all()


def test_gelu(isa):
    x = np.linspace(-12, 12, 200_001).astype(np.float32)
    y, exact = core.vector_math("gelu", x), reference.gelu(x)
    # The error of erf times x / 2, and one rounding of the result.
    bound = 2.1e-7 * np.abs(x) / 2 + np.spacing(np.abs(exact).astype(np.float32))
    assert (np.abs(y - exact) <= bound).all()


def test_gelu_far_out_is_exact(isa):
    x = np.array([6, 100, 1e30, -6, -100, -1e30], np.float32)
    np.testing.assert_array_equal(core.vector_math("gelu", x), [6, 100, np.float32(1e30), 0, 0, 0])


def test_gelu_new(isa):
    x = np.linspace(-12, 12, 100_001).astype(np.float32)
    y = core.vector_math("gelu_new", x)
    assert np.abs(y - reference.gelu_new(x)).max() <= 1e-6


def test_relu_keeps_bits(isa):
    x = np.array([-1, -0.0, 0, 1e-40, 3, np.inf], np.float32)
    np.testing.assert_array_equal(core.vector_math("relu", x), np.maximum(x, 0))


def test_tanh(isa):
    x = np.concatenate([np.linspace(-10, 10, 400_001), [1e-30, -1e-6, 50, -np.inf]])
    x = x.astype(np.float32)
    y = core.vector_math("tanh", x)
    assert ulps(y, np.tanh(x.astype(np.float64))).max() <= 6
    assert (np.abs(y) <= 1).all()


def test_sigmoid(isa):
    x = np.concatenate([np.linspace(-87, 40, 400_001), [1e-30, 1e30]]).astype(np.float32)
    y = core.vector_math("sigmoid", x)
    assert ulps(y, 1 / (1 + np.exp(-x.astype(np.float64)))).max() <= 3
    assert (core.vector_math("sigmoid", np.array([-88, -np.inf], np.float32)) < 1.7e-38).all()


def test_silu(isa):
    x = np.linspace(-80, 40, 400_001).astype(np.float32)
    x = x[x != 0]
    exact = x / (1 + np.exp(-x.astype(np.float64)))
    assert ulps(core.vector_math("silu", x), exact).max() <= 4
    assert core.vector_math("silu", np.zeros(1, np.float32)) == 0


@pytest.mark.parametrize("name", ["exp", "gelu", "gelu_new", "relu", "silu", "tanh", "sigmoid"])
def test_nan_stays_nan(isa, name):
    assert np.isnan(core.vector_math(name, np.full(3, np.nan, np.float32))).all()


def test_a_row_with_nan_has_no_length(isa, rng):
    x = rng.standard_normal((3, 37), dtype=np.float32)
    x[1, 20] = np.nan
    assert np.isnan(core.l2_normalize(x)[1]).all()
    np.testing.assert_allclose(np.linalg.norm(core.l2_normalize(x)[::2], axis=1), 1, rtol=1e-6)


def test_unknown_name():
    with pytest.raises(ValueError, match="activation is 'softplus'"):
        core.vector_math("softplus", np.zeros(1, np.float32))


def test_math_module_agrees():
    assert reference.erf(0.5) == math.erf(0.5)
