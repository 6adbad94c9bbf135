"""Cross-encoders of random weights of each family, small enough for every test."""

from __future__ import annotations

import torch
import transformers
from tokenizers import Tokenizer, processors

from family import byte_level_bpe, write_folder

TEXTS = [
    "how many people live in berlin",
    "Berlin had a population of 3,520,031 registered inhabitants in an area of 891.82 square km.",
    "",
    "dogs run over lazy dogs and jump, jump, jump " * 4,
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
]


def pair_tokenizer(single: str, second: str, special: list[str]) -> Tokenizer:
    """A byte-level BPE whose pairs are the template of one text and what follows it."""
    tokenizer = byte_level_bpe(TEXTS, 320, special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single,
        pair=f"{single} {second}",
        special_tokens=[(one, tokenizer.token_to_id(one)) for one in special],
    )
    return tokenizer


BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
ONE_TYPE = {"type_vocab_size": 1, "max_position_embeddings": 514}
FAMILIES = {
    "bert": ("Bert", "[CLS] $A [SEP]", "$B:1 [SEP]:1", BERT, {}),
    "roberta": ("Roberta", "<s> $A </s>", "</s> $B </s>", ROBERTA, ONE_TYPE),
    "xlm-roberta": ("XLMRoberta", "<s> $A </s>", "</s> $B </s>", ROBERTA, ONE_TYPE),
    "camembert": ("Camembert", "<s> $A </s>", "</s> $B </s>", ROBERTA, ONE_TYPE),
    "electra": ("Electra", "[CLS] $A [SEP]", "$B:1 [SEP]:1", BERT, {}),
    "distilbert": ("DistilBert", "[CLS] $A [SEP]", "$B [SEP]", BERT, {}),
    "mpnet": ("MPNet", "<s> $A </s>", "</s> $B </s>", ROBERTA, {"max_position_embeddings": 514}),
    "nomic_bert": ("NomicBert", "[CLS] $A [SEP]", "$B:1 [SEP]:1", BERT, {}),
    "gte": ("Gte", "<s> $A </s>", "</s> $B </s>", ROBERTA, {}),
    "modernbert": ("ModernBert", "[CLS] $A [SEP]", "$B [SEP]", BERT, {"local_attention": 12}),
    "modernbert, mean": (
        "ModernBert",
        "[CLS] $A [SEP]",
        "$B [SEP]",
        BERT,
        {"classifier_pooling": "mean"},
    ),
}


def write_cross_encoder(
    folder,
    family: str,
    num_labels: int = 1,
    *,
    hidden: int = 32,
    heads: int = 4,
    inner: int = 48,
    **changes,
):
    """A random cross-encoder of a family, its biases and LayerNorms as random as its matrices.

    changes: of tokenizer_config.json.
    """
    name, single, second, special, settings = FAMILIES[family]
    tokenizer = pair_tokenizer(single, second, special)
    pad = "[PAD]" if special is BERT else "<pad>"
    shape = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": 2}
    shape["num_attention_heads"] = heads
    if family == "electra":
        shape["embedding_size"] = hidden
    if family == "distilbert":
        shape = {"dim": hidden, "hidden_dim": inner, "n_layers": 2, "n_heads": heads}
    config = getattr(transformers, f"{name}Config")(
        vocab_size=tokenizer.get_vocab_size(),
        num_labels=num_labels,
        pad_token_id=tokenizer.token_to_id(pad),
        **shape,
        **settings,
    )
    torch.manual_seed(0)  # the same weights each time
    model = getattr(transformers, f"{name}ForSequenceClassification")(config)
    has_types = family in ("bert", "electra", "nomic_bert")
    names = ["input_ids", "attention_mask"] + ["token_type_ids"] * has_types
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": names,
        "model_max_length": 48,
        "pad_token": pad,
        **changes,
    }
    return write_folder(folder, model, tokenizer, 0.2, **tokenizer_config)
