"""Qwen3 and Gemma 3 against transformers: shared keys, RMSNorm, tokens that attend to those before."""

import json

import numpy as np
import pytest
import sentence_transformers
import transformers

from family import PADDED, TEXTS, assert_agrees, byte_tokenizer, change_config, write_folder
from minifuse import SentenceTransformer

SIZES = {
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "intermediate_size": 40,
    "max_position_embeddings": 150,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}


def write(tmp_path, name, **changes):
    tokenizer = byte_tokenizer("[CLS]", "[SEP]", ["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    kind = {"Qwen3": "Qwen3Config", "Gemma3Text": "Gemma3TextConfig"}[name]
    settings = {"vocab_size": tokenizer.get_vocab_size()} | SIZES | changes
    reference = getattr(transformers, f"{name}Model")(getattr(transformers, kind)(**settings))
    return write_folder(tmp_path / "model", reference, tokenizer, **PADDED), reference


def test_qwen3(tmp_path):
    folder, reference = write(tmp_path, "Qwen3")
    assert_agrees(folder, reference, can_be_trained=False)


def test_qwen3_that_attends_to_both_sides(tmp_path):
    folder, reference = write(tmp_path, "Qwen3", is_causal=False)
    assert_agrees(folder, reference, can_be_trained=False)


@pytest.mark.parametrize("is_causal", [None, True, False])
def test_the_pooling_of_a_language_model(tmp_path, is_causal):
    """The last token's, unless it attends to both sides."""
    folder, _ = write(tmp_path, "Qwen3")
    change_config(folder, architectures=["Qwen3ForCausalLM"], is_causal=is_causal)
    if is_causal is None:
        change_config(folder, is_causal="gone")
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    ours = SentenceTransformer(folder)
    np.testing.assert_allclose(ours.encode(TEXTS[:4]), theirs.encode(TEXTS[:4]), atol=2e-5)


def test_texts_that_go_through_a_chat_template_are_refused(tmp_path):
    folder, _ = write(tmp_path, "Qwen3")
    expected = SentenceTransformer(folder).encode(TEXTS)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(ValueError, match="texts go through a chat template"):
        SentenceTransformer(folder)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    (folder / "modules.json").write_text(json.dumps([
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ]))  # fmt: skip
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "mean"}))
    np.testing.assert_array_equal(SentenceTransformer(folder).encode(TEXTS), expected)
    ways = {"text": {"method": "forward"}, "message": {"method": "forward"}}
    (folder / "sentence_bert_config.json").write_text(json.dumps({"modality_config": ways}))
    with pytest.raises(ValueError, match=r"sentence_bert_config\.json: texts go through a chat"):
        SentenceTransformer(folder)


@pytest.mark.parametrize("is_bidirectional", [False, True])
def test_gemma3(tmp_path, is_bidirectional):
    """Three of four layers attend to a window, as EmbeddingGemma's do on both sides."""
    folder, reference = write(
        tmp_path,
        "Gemma3Text",
        query_pre_attn_scalar=20,
        sliding_window=14,
        layer_types=["sliding_attention"] * 3 + ["full_attention"],
        use_bidirectional_attention=is_bidirectional,
    )
    assert_agrees(folder, reference, can_be_trained=False)


def test_the_first_form_of_gemmas_configuration(tmp_path):
    folder, _ = write(tmp_path, "Gemma3Text", sliding_window=14)
    expected = SentenceTransformer(folder).encode(TEXTS)
    change_config(
        folder,
        layer_types="gone",
        rope_parameters="gone",
        sliding_window_pattern=6,
        rope_theta=1_000_000.0,
        rope_local_base_freq=10_000.0,
    )
    np.testing.assert_array_equal(SentenceTransformer(folder).encode(TEXTS), expected)
    change_config(folder, sliding_window_pattern=2)
    assert np.abs(SentenceTransformer(folder).encode(TEXTS) - expected).max() > 1e-4


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("Qwen3", {"attention_bias": True}, "attention_bias is True, wanted False"),
        ("Qwen3", {"use_sliding_window": True}, "use_sliding_window is True, wanted False"),
        ("Qwen3", {"rope_scaling": {"factor": 2}}, "rope_scaling is given"),
        ("Qwen3", {"rope_parameters": {"type": "linear"}}, "type is 'linear', wanted 'default'"),
        ("Qwen3", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ("Gemma3Text", {"is_causal": False}, "is_causal is False, wanted True"),
        ("Gemma3Text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
        ("Gemma3Text", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
        ("Gemma3Text", {"sliding_window": 1}, "sliding_window is 1, wanted a window"),
        ("Gemma3Text", {"num_hidden_layers": 10**9}, "wanted 1..1000"),
    ],
)
def test_what_is_not_computed_is_refused(tmp_path, name, changes, message):
    folder, _ = write(tmp_path, name)
    change_config(folder, **changes)
    with pytest.raises(ValueError, match=message):
        SentenceTransformer(folder)
