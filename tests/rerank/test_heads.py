"""Cross-encoders whose head is a row of words, a matrix behind the last token, or modules."""

import json

import numpy as np
import pytest
import sentence_transformers
import torch
import transformers
from safetensors.numpy import load_file, save_file
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling

from family import BERT_SIZES, PADDED, byte_tokenizer, change_config, write_folder
from minifuse import CrossEncoder, SentenceTransformer
from minifuse.models.quantization import quantize

PAIRS = [
    ("dogs jump", "lazy dogs jump over the sky"),
    ("", "dogs"),
    ("The sky is blue. " * 30, "Viktor"),
    ("Viktor", "den großen Sylter Deich " * 40),
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "yes", "no"]
DECODERS = {
    "Qwen3": ("Qwen3Config", {"tie_word_embeddings": True}),
    "Gemma3": ("Gemma3TextConfig", {"sliding_window": 14, "query_pre_attn_scalar": 20}),
}


def write_decoder(folder, name, kind, **changes):
    tokenizer = byte_tokenizer("[CLS]", "[SEP]", SPECIAL)
    config, own = DECODERS[name]
    settings = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "intermediate_size": 40,
        "max_position_embeddings": 200,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    made = getattr(transformers, config)(**(settings | own | changes))
    model = getattr(transformers, kind)(made)
    return write_folder(folder, model, tokenizer, model_max_length=120, **PADDED)


def assert_same_scores(folder, atol=1e-5):
    """The scores of sentence-transformers, and the same bits alone and in a batch."""
    ours = CrossEncoder(folder)
    theirs = sentence_transformers.CrossEncoder(str(folder), device="cpu")
    identity = torch.nn.Identity()
    expected = theirs.predict(PAIRS, activation_fn=identity)
    scores = ours.predict(PAIRS, activation_fn="identity")
    assert np.ptp(expected) > 1e-2
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=atol)
    np.testing.assert_allclose(ours.predict(PAIRS), theirs.predict(PAIRS), rtol=1e-5, atol=atol)
    alone = [ours.predict(pair, activation_fn="identity") for pair in PAIRS]
    np.testing.assert_array_equal(np.array(alone), scores)
    return ours


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("name", list(DECODERS))
def test_a_language_model_that_says_yes_or_no(tmp_path, name, is_tied):
    """Without modules.json sentence-transformers compares the logits of "yes" and of "no"."""
    folder = write_decoder(
        tmp_path / "model", name, f"{name}ForCausalLM", tie_word_embeddings=is_tied
    )
    if not is_tied:
        names = json.loads((folder / "config.json").read_text())
        assert names["tie_word_embeddings"] is False
    assert_same_scores(folder)
    if not is_tied:  # a matrix that is missing is not replaced by the table of words
        tensors = load_file(folder / "model.safetensors")
        del tensors["lm_head.weight"]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(ValueError, match=r"lacks the tensor 'lm_head\.weight'"):
            CrossEncoder(folder)


@pytest.mark.parametrize("false_token", [None, 9])
def test_logit_score(tmp_path, false_token):
    folder = write_decoder(tmp_path / "decoder", "Qwen3", "Qwen3ForCausalLM")
    modules = [
        Transformer(str(folder), transformer_task="text-generation"),
        LogitScore(true_token_id=7, false_token_id=false_token),
    ]
    sentence_transformers.CrossEncoder(modules=modules, device="cpu").save(str(tmp_path / "saved"))
    model = assert_same_scores(tmp_path / "saved")
    model.save_pretrained(tmp_path / "again")
    assert_same_scores(tmp_path / "again")
    CrossEncoder(folder).save_pretrained(tmp_path / "plain")
    assert_same_scores(tmp_path / "plain")
    quantize(tmp_path / "saved", tmp_path / "int8")
    np.testing.assert_array_equal(
        CrossEncoder(tmp_path / "int8", dtype="int8").predict(PAIRS),
        CrossEncoder(tmp_path / "saved", dtype="int8").predict(PAIRS),
    )


@pytest.mark.parametrize("num_labels", [1, 3])
@pytest.mark.parametrize(
    "kind", ["Qwen3ForSequenceClassification", "Gemma3TextForSequenceClassification"]
)
def test_decoders_for_classification(tmp_path, kind, num_labels):
    name = "Qwen3" if kind.startswith("Qwen3") else "Gemma3"
    folder = write_decoder(tmp_path / "model", name, kind, num_labels=num_labels)
    assert CrossEncoder(folder).num_labels == num_labels
    assert_same_scores(folder)
    change_config(folder, pad_token_id=3)  # which every text ends with
    with pytest.raises(ValueError, match="texts end with token 3, which is"):
        CrossEncoder(folder)


def test_scores_of_modules(tmp_path):
    """Rerankers of sentence-transformers' modules: a pooling, layers, and a Dense of scores."""
    encoder = tmp_path / "encoder"
    tokenizer = byte_tokenizer("[CLS]", "[SEP]", SPECIAL)
    config = transformers.BertConfig(**BERT_SIZES, vocab_size=tokenizer.get_vocab_size())
    write_folder(encoder, transformers.BertModel(config), tokenizer, model_max_length=120, **PADDED)
    width = BERT_SIZES["hidden_size"]
    gelu = torch.nn.GELU()
    modules = [
        Transformer(str(encoder)),
        Pooling(width, "cls"),
        Dense(width, 40, activation_function=gelu),
        LayerNorm(40),
        Dense(40, 2, activation_function=None, module_output_name="scores"),
    ]
    theirs = sentence_transformers.CrossEncoder(modules=modules, device="cpu")
    theirs.save(str(tmp_path / "saved"))
    model = assert_same_scores(tmp_path / "saved")
    assert model.num_labels == 2
    with pytest.raises(ValueError, match=r"Dense makes 'scores' of 'sentence_embedding'"):
        SentenceTransformer(tmp_path / "saved")


def test_a_dense_of_tokens_is_refused(tmp_path, tiny_folder):
    """ColBERT's models have a Dense of every token, which is no pooled row's."""
    model = SentenceTransformer(tiny_folder)
    width = model.get_sentence_embedding_dimension()
    model.save_pretrained(tmp_path / "model")
    dense = tmp_path / "model" / "9_Dense"
    Dense(width, 8, module_input_name="token_embeddings").save(str(_made(dense)))
    path = tmp_path / "model" / "modules.json"
    modules = json.loads(path.read_text())
    entry = {"idx": 9, "name": "9", "path": "9_Dense", "type": "pylate.models.Dense.Dense"}
    path.write_text(json.dumps([*modules, entry]))
    with pytest.raises(ValueError, match="Dense makes 'token_embeddings' of 'token_embeddings'"):
        SentenceTransformer(tmp_path / "model")
    path.write_text(json.dumps([modules[0], entry]))
    with pytest.raises(ValueError, match="no Pooling after Transformer"):
        SentenceTransformer(tmp_path / "model")


def _made(folder):
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"true_token_id": 10**6}, "has no row 1000000"),
        ({"true_token_id": -1}, "true_token_id is -1, wanted an integer"),
        ({"true_token_id": "yes"}, "true_token_id is 'yes', wanted an integer"),
        ({"module_input_name": "logits"}, "module_input_name is 'logits'"),
    ],
)
def test_a_logit_score_that_cannot_be(tmp_path, change, message):
    folder = write_decoder(tmp_path / "model", "Qwen3", "Qwen3ForCausalLM")
    types = "sentence_transformers.base.modules.transformer.Transformer"
    score = "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": types},
        {"idx": 1, "name": "1", "path": "1_LogitScore", "type": score},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    settings = {"true_token_id": 7, "false_token_id": 9, "module_input_name": "causal_logits"}
    _made(folder / "1_LogitScore")
    (folder / "1_LogitScore" / "config.json").write_text(json.dumps(settings | change))
    with pytest.raises(ValueError, match=message):
        CrossEncoder(folder)


def test_a_chat_template_is_refused(tmp_path):
    folder = write_decoder(tmp_path / "model", "Qwen3", "Qwen3ForCausalLM")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(ValueError, match="chat template, which is a program"):
        CrossEncoder(folder)


def test_families_without_language_models_are_refused(tmp_path):
    tokenizer = byte_tokenizer("[CLS]", "[SEP]", SPECIAL)
    config = transformers.BertConfig(**BERT_SIZES, vocab_size=tokenizer.get_vocab_size())
    folder = write_folder(tmp_path / "model", transformers.BertModel(config), tokenizer)
    change_config(folder, architectures=["BertForCausalLM"])
    with pytest.raises(ValueError, match="no language models of this family"):
        CrossEncoder(folder)
