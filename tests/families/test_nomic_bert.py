"""NomicBERT against transformers: rotary positions, a gate, both forms of its configuration."""

import numpy as np
import pytest
import transformers

from family import TEXTS, assert_agrees, byte_tokenizer, change_config, write_folder
from minifuse import SentenceTransformer

SIZES = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
}


@pytest.fixture
def folder(tmp_path):
    tokenizer = byte_tokenizer("[CLS]", "[SEP]", ["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    config = transformers.NomicBertConfig(
        vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=150, **SIZES
    )
    reference = transformers.NomicBertModel(config)
    return write_folder(tmp_path / "model", reference, tokenizer), reference


def test_nomic_bert(folder):
    assert_agrees(*folder, can_be_trained=False)


@pytest.mark.parametrize("heads", [0, 1000])
def test_heads_without_columns_are_refused(folder, heads):
    (folder[0] / "sentence_bert_config.json").write_text('{"max_seq_length": 200}')
    change_config(folder[0], num_attention_heads=heads, head_dim="gone")
    with pytest.raises(ValueError, match="head"):
        SentenceTransformer(folder[0])


def test_the_first_form_of_the_configuration(folder):
    model, _ = folder
    expected = SentenceTransformer(model).encode(TEXTS)
    gone = dict.fromkeys(
        [*SIZES, "max_position_embeddings", "layer_norm_eps", "rope_parameters", "head_dim"], "gone"
    )
    old = {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_inner": 40, "n_positions": 150}
    old |= {"rotary_emb_base": 1000, "layer_norm_epsilon": 1e-12, "activation_function": "swiglu"}
    old |= {"rotary_emb_fraction": 1.0, "rotary_scaling_factor": None, "prenorm": False}
    change_config(model, **gone, **old)
    np.testing.assert_array_equal(SentenceTransformer(model).encode(TEXTS), expected)
    change_config(model, rotary_emb_base=10_000)
    assert np.abs(SentenceTransformer(model).encode(TEXTS) - expected).max() > 1e-4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"moe_every_n_layers": 2}, "a mixture of experts; use sentence-transformers"),
        ({"qkv_proj_bias": True}, "qkv_proj_bias is True, wanted False"),
        ({"rotary_scaling_factor": 2}, "rotary_scaling_factor is given"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn', wanted 'default'"),
        ({"rope_parameters": [1]}, "wanted an object"),
        ({"rope_parameters": {"rope_theta": 0}}, "wanted a number > 0"),
        ({"head_dim": 7}, "head_dim is 7, wanted 12"),
    ],
)
def test_what_is_not_computed_is_refused(folder, changes, message):
    change_config(folder[0], **changes)
    with pytest.raises(ValueError, match=message):
        SentenceTransformer(folder[0])
