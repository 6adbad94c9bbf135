"""The families that run on a CUDA device, as encoders and as cross-encoders, and those that do not."""

import numpy as np
import pytest

from minifuse import CrossEncoder, SparseEncoder
from tiny_cross_encoder import TEXTS, write_cross_encoder

PAIRS = [(a, b) for a in TEXTS for b in TEXTS]
ON_DEVICE = ["bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert"]


@pytest.mark.parametrize("family", ON_DEVICE)
def test_a_cross_encoder_agrees_with_the_cpu(cuda_device, tmp_path, family):
    folder = write_cross_encoder(tmp_path / family, family, hidden=64, heads=2, inner=128)
    wanted = CrossEncoder(folder).predict(PAIRS, activation_fn="identity")
    model = CrossEncoder(folder, device="cuda")
    scores = model.predict(PAIRS, activation_fn="identity")
    assert np.abs(scores - wanted).max() <= 1e-5
    assert np.ptp(wanted) > 0.1
    alone = [model.predict(pair, activation_fn="identity") for pair in PAIRS[:5]]
    np.testing.assert_array_equal(np.array(alone), scores[:5])


@pytest.mark.parametrize("family", ["mpnet", "nomic_bert", "gte", "modernbert"])
def test_other_families_say_that_they_run_on_the_cpu(cuda_device, tmp_path, family):
    folder = write_cross_encoder(tmp_path / family, family, hidden=64, heads=2, inner=128)
    with pytest.raises(ValueError, match="use device='cpu'"):
        CrossEncoder(folder, device="cuda")


def test_sparse_encoders_say_so_too(cuda_device, tmp_path):
    folder = write_cross_encoder(tmp_path / "bert", "bert", hidden=64, heads=2, inner=128)
    with pytest.raises(ValueError, match="CPU"):
        SparseEncoder(folder, device="cuda")
