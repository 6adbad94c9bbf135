"""ModernBERT against transformers: windows, norms that go first, both forms of its configuration."""

import numpy as np
import pytest
import transformers

from family import TEXTS, assert_agrees, byte_tokenizer, change_config, write_folder
from minifuse import SentenceTransformer


@pytest.fixture
def folder(tmp_path):
    """Five layers, of which the first and the fourth attend to all; the others to 9 on each side."""
    tokenizer = byte_tokenizer("[CLS]", "[SEP]", ["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    config = transformers.ModernBertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=48,
        num_hidden_layers=5,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=150,
        local_attention=18,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        cls_token_id=2,
        sep_token_id=3,
    )
    reference = transformers.ModernBertModel(config)
    return write_folder(tmp_path / "model", reference, tokenizer), reference


def test_modernbert(folder):
    assert_agrees(*folder, can_be_trained=False)


def test_the_first_form_of_the_configuration(folder):
    model, _ = folder
    expected = SentenceTransformer(model).encode(TEXTS)
    old = {"global_attn_every_n_layers": 3, "global_rope_theta": 160000.0}
    change_config(
        model, layer_types="gone", rope_parameters="gone", local_rope_theta=10000.0, **old
    )
    np.testing.assert_array_equal(SentenceTransformer(model).encode(TEXTS), expected)
    change_config(model, global_attn_every_n_layers=2)
    assert np.abs(SentenceTransformer(model).encode(TEXTS) - expected).max() > 1e-4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_bias": True}, "norm_bias is True, wanted False"),
        ({"layer_types": ["full_attention"] * 4}, "windows of 4 layers, wanted 5"),
        ({"layer_types": ["linear"] * 5}, "wanted a list of full_attention, sliding_attention"),
        ({"local_attention": 1}, "local_attention is below 2"),
        ({"layer_types": None, "global_attn_every_n_layers": 0}, "wanted >= 1"),
        ({"num_hidden_layers": 10**9}, "wanted 1..1000"),
        ({"num_hidden_layers": 0, "layer_types": []}, "num_hidden_layers=0, wanted 1"),
        (
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear"}}},
            "rope_type is 'linear'",
        ),
    ],
)
def test_what_is_not_computed_is_refused(folder, changes, message):
    change_config(folder[0], **changes)
    with pytest.raises(ValueError, match=message):
        SentenceTransformer(folder[0])
