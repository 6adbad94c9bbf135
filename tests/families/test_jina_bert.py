"""JinaBERT v2 against its equations in PyTorch; transformers does not have it without remote code."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from family import assert_agrees, byte_tokenizer
from minifuse import SentenceTransformer
from minifuse.models.architectures.jina_bert import slopes

HIDDEN, HEADS, INNER, LAYERS, POSITIONS = 48, 6, 40, 2, 150


class JinaBert(torch.nn.Module):
    """The model by the names of its checkpoints, weights drawn at random."""

    def __init__(self, vocab_size):
        super().__init__()
        self.config = SimpleNamespace(pad_token_id=0)
        shapes = {
            "embeddings.word_embeddings.weight": (vocab_size, HIDDEN),
            "embeddings.token_type_embeddings.weight": (2, HIDDEN),
            "embeddings.LayerNorm": (HIDDEN,),
        }
        for layer in range(LAYERS):
            of = f"encoder.layer.{layer}."
            for name in ("query", "key", "value"):
                shapes[f"{of}attention.self.{name}"] = (HIDDEN, HIDDEN)
            shapes[f"{of}attention.output.dense"] = (HIDDEN, HIDDEN)
            shapes[f"{of}attention.output.LayerNorm"] = (HIDDEN,)
            shapes[f"{of}mlp.gated_layers.weight"] = (2 * INNER, HIDDEN)
            shapes[f"{of}mlp.wo"] = (HIDDEN, INNER)
            shapes[f"{of}mlp.layernorm"] = (HIDDEN,)
        self.w = {}
        for name, shape in shapes.items():
            if name.endswith("weight"):
                self.w[name] = torch.randn(shape) / 4
                continue
            self.w[f"{name}.weight"] = torch.randn(shape) / 4 + (len(shape) == 1)
            self.w[f"{name}.bias"] = torch.randn(shape[:1]) / 4

    def double(self):
        return self

    def __call__(self, input_ids, attention_mask):
        w = {name: tensor.double() for name, tensor in self.w.items()}

        def linear(x, name):
            return torch.nn.functional.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

        def norm(x, name):
            parts = w[f"{name}.weight"], w[f"{name}.bias"]
            return torch.nn.functional.layer_norm(x, (HIDDEN,), *parts, 1e-12)

        x = w["embeddings.word_embeddings.weight"][input_ids]
        x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        batch, length = input_ids.shape
        place = torch.arange(length)
        # Six heads: a fourth, a sixteenth, ...; and every other one of the sequence for eight.
        slope = torch.tensor([2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]).double()
        bias = -slope[:, None, None] * (place - place[:, None]).abs()
        bias = bias + torch.where(attention_mask.bool(), 0.0, -math.inf)[:, None, None]
        for layer in range(LAYERS):
            of = f"encoder.layer.{layer}."
            q, k, v = (
                linear(x, f"{of}attention.self.{name}")
                .view(batch, length, HEADS, -1)
                .transpose(1, 2)
                for name in ("query", "key", "value")
            )
            scores = q @ k.transpose(2, 3) / math.sqrt(HIDDEN / HEADS) + bias
            context = (scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape)
            y = norm(
                linear(context, f"{of}attention.output.dense") + x,
                f"{of}attention.output.LayerNorm",
            )
            gate, value = linear(y, f"{of}mlp.gated_layers").chunk(2, dim=-1)
            hidden = torch.nn.functional.gelu(gate) * value
            x = norm(linear(hidden, f"{of}mlp.wo") + y, f"{of}mlp.layernorm")
        return SimpleNamespace(last_hidden_state=x)


@pytest.fixture
def folder(tmp_path):
    tokenizer = byte_tokenizer("[CLS]", "[SEP]", ["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    reference = JinaBert(tokenizer.get_vocab_size())
    config = {
        "model_type": "bert",
        "position_embedding_type": "alibi",
        "feed_forward_type": "geglu",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "intermediate_size": INNER,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2,
    }
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 10**30}))
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file(reference.w, folder / "model.safetensors", {"format": "pt"})
    return folder, reference


def test_jina_bert(folder):
    assert_agrees(*folder, can_be_trained=False)


@pytest.mark.parametrize("num_heads", [1, 2, 3, 8, 12, 16, 20])
def test_slopes(num_heads):
    """The rule of Press et al.: 2^(-8 / n) and its powers for n = 2^m heads."""
    ours = slopes(num_heads)
    power = 2 ** int(math.log2(num_heads))
    assert len(ours) == num_heads
    np.testing.assert_allclose(ours[:power], 2.0 ** (-8 / power * np.arange(1, power + 1)))
    rest = 2.0 ** (-4 / power * np.arange(1, 2 * power + 1))[::2][: num_heads - power]
    np.testing.assert_allclose(ours[power:], rest)


def test_tensors_that_change_a_layer_are_refused(folder):
    """The variant that norms queries and keys has the same configuration."""
    path = folder[0] / "model.safetensors"
    tensors = load_file(path)
    tensors["encoder.layer.1.attention.self.layer_norm_q.weight"] = torch.ones(HIDDEN)
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"no use for 'encoder.layer.1.*layer_norm_q"):
        SentenceTransformer(folder[0])


def test_another_feed_forward_is_refused(folder):
    path = folder[0] / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"feed_forward_type": "reglu"}))
    with pytest.raises(ValueError, match="feed_forward_type is 'reglu', wanted 'geglu'"):
        SentenceTransformer(folder[0])
