"""DistilBERT against transformers: no token types, other names."""

from transformers import DistilBertConfig, DistilBertModel

from family import assert_agrees, byte_tokenizer, write_folder


def test_distilbert(tmp_path):
    tokenizer = byte_tokenizer("[CLS]", "[SEP]", ["[PAD]", "[CLS]", "[SEP]"])
    config = DistilBertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        dim=32,
        n_layers=2,
        n_heads=4,
        hidden_dim=48,
        max_position_embeddings=40,
        dropout=0.25,
        attention_dropout=0.125,
    )
    reference = DistilBertModel(config)
    folder = write_folder(tmp_path / "model", reference, tokenizer)
    assert_agrees(folder, reference)
