"""Every family of models must show that a random model of it agrees with transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from minifuse import SentenceTransformer
from minifuse.models.quantization import quantize
from minifuse.training.encoder import TrainableEncoder
from minifuse.training.packing import pack

TEXTS = [
    "The sky is blue.",
    "",
    "dogs run over lazy dogs and jump, jump, jump",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "a " * 100,
]


# The sizes of a small model of BERT's kind.
BERT_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "hidden_dropout_prob": 0.25,
    "attention_probs_dropout_prob": 0.125,
}


def byte_level_bpe(texts: list[str], vocab_size: int, special: list[str]) -> Tokenizer:
    """A byte-level BPE of few merges, without a template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def byte_tokenizer(begin: str, end: str, special: list[str]) -> Tokenizer:
    """A byte-level BPE of few merges, whose texts stand between two special tokens."""
    tokenizer = byte_level_bpe(TEXTS, 300, special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        special_tokens=[(one, tokenizer.token_to_id(one)) for one in (begin, end)],
    )
    return tokenizer


def unigram_tokenizer() -> Tokenizer:
    """A Unigram tokenizer with XLM-RoBERTa's special tokens and white space."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        special_tokens=[(one, tokenizer.token_to_id(one)) for one in ("<s>", "</s>")],
    )
    return tokenizer


# Settings of a tokenizer that transformers can load and pad by.
PADDED = {"pad_token": "[PAD]", "tokenizer_class": "PreTrainedTokenizerFast"}


def write_folder(
    folder: Path, model: Any, tokenizer: Tokenizer, scale: float = 0.1, **settings: Any
) -> Path:
    """A transformers folder, its LayerNorms, biases and positions as random as its matrices.

    scale: of what is added to every parameter. settings: of tokenizer_config.json.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    model.eval().save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"model_max_length": 10**30} | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def change_config(folder: Path, **changes: Any) -> None:
    """Change values of a folder's config.json; those that become "gone" are taken out."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value != "gone"}))


def mean_pooled(model: Any, ids: list[list[int]], pad_token_id: int) -> np.ndarray:
    """Vectors of padded sentences by transformers, in float64."""
    longest = max(map(len, ids))
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
    padded = torch.tensor([row + [pad_token_id] * (longest - len(row)) for row in ids])
    with torch.inference_mode():
        states = model.double()(input_ids=padded, attention_mask=mask).last_hidden_state
    kept = mask[..., None].double()
    return ((states * kept).sum(1) / kept.sum(1)).numpy()


def assert_agrees(folder: Path, reference: Any, *, can_be_trained: bool = True) -> None:
    """Tokens, vectors and, where it can be trained, its forward pass are those of transformers."""
    model = SentenceTransformer(folder)
    config = reference.config
    tokens = model.pipeline.tokenize(TEXTS)
    ids = [part.tolist() for part in np.split(tokens.ids, tokens.cu_seqlens()[1:-1])]
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    longest = model.pipeline.folder.description.max_position_embeddings
    assert model.max_seq_length == longest
    assert ids == [
        [*row[: longest - 1], row[-1]] if len(row) > longest else row
        for row in theirs(TEXTS)["input_ids"]
    ]

    expected = mean_pooled(reference, ids, config.pad_token_id)
    scale = np.linalg.norm(expected, axis=1, keepdims=True)
    vectors = model.encode(TEXTS)
    assert np.max(np.abs(vectors - expected) / scale) < 2e-6
    for place, text in enumerate(TEXTS):  # a sentence alone has the same bits
        np.testing.assert_array_equal(model.encode(text), vectors[place])
    for dtype, bound in (("bfloat16", 0.999), ("int8", 0.99)):
        unit = SentenceTransformer(folder, dtype=dtype).encode(TEXTS, normalize_embeddings=True)
        assert np.min((unit * expected / scale).sum(1)) > bound, dtype

    in_8_bits = SentenceTransformer(folder, dtype="int8").encode(TEXTS)
    saved = SentenceTransformer(quantize(folder, folder.parent / "int8"))
    np.testing.assert_array_equal(saved.encode(TEXTS), in_8_bits)

    if not can_be_trained:
        with pytest.raises(ValueError, match="cannot be trained"):
            TrainableEncoder(model.pipeline.folder)
        return
    trainable = TrainableEncoder(model.pipeline.folder)
    assert (trainable.hidden_dropout, trainable.attention_dropout) == (0.25, 0.125)
    trained = trainable(pack(tokens), np.arange(len(TEXTS)))
    assert np.max(np.abs(trained.detach().numpy() - expected) / scale) < 1e-5
    trained.sum().backward()
    gradients = [parameter.grad for parameter in trainable.parameters()]
    assert all(gradient is not None and bool(gradient.any()) for gradient in gradients)
