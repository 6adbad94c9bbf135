"""A BERT folder of random weights, small enough for every test, in any shape a test asks for."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import numpy as np

WORDS = ["the", "sky", "is", "blue", "a", "dog", "##s", "##ing", "run", "jump", "over", "lazy"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [*string.ascii_lowercase, *string.digits, *(f"##{c}" for c in string.ascii_lowercase)]
VOCABULARY = list(dict.fromkeys([*SPECIAL, *WORDS, *LETTERS, ".", ",", "!", "?"]))


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], bfloat16: bool = False) -> None:
    header: dict[str, Any] = {}
    chunks, offset = [], 0
    for name, array in tensors.items():
        array = np.ascontiguousarray(array)
        dtype = {"float32": "F32", "float16": "F16", "int64": "I64", "float64": "F64"}[
            str(array.dtype)
        ]
        if bfloat16 and dtype == "F32":
            dtype, array = "BF16", (array.view(np.uint32) >> 16).astype(np.uint16)
        raw = array.tobytes()
        header[name] = {
            "dtype": dtype,
            "shape": list(array.shape),
            "data_offsets": [offset, offset + len(raw)],
        }
        offset += len(raw)
        chunks.append(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(chunks))


def random_weights(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    h, f = config["hidden_size"], config["intermediate_size"]

    def normal(*shape: int, scale: float = 0.1) -> np.ndarray:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    weights = {
        "embeddings.word_embeddings.weight": normal(config["vocab_size"], h, scale=1.0),
        "embeddings.position_embeddings.weight": normal(config["max_position_embeddings"], h),
        "embeddings.token_type_embeddings.weight": normal(2, h),
        "embeddings.LayerNorm.weight": 1 + normal(h),
        "embeddings.LayerNorm.bias": normal(h),
    }
    for layer in range(config["num_hidden_layers"]):
        p = f"encoder.layer.{layer}."
        shapes = {
            "attention.self.query": (h, h),
            "attention.self.key": (h, h),
            "attention.self.value": (h, h),
            "attention.output.dense": (h, h),
            "intermediate.dense": (f, h),
            "output.dense": (h, f),
        }
        for name, shape in shapes.items():
            weights[f"{p}{name}.weight"] = normal(*shape, scale=shape[1] ** -0.5)
            weights[f"{p}{name}.bias"] = normal(shape[0])
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            weights[f"{p}{name}.weight"] = 1 + normal(h)
            weights[f"{p}{name}.bias"] = normal(h)
    weights["embeddings.position_ids"] = np.arange(config["max_position_embeddings"])[None]
    weights["pooler.dense.weight"] = normal(h, h)
    weights["pooler.dense.bias"] = normal(h)
    return weights


def write_tiny_model(
    folder: Path,
    *,
    prefix: str = "",
    dtype: str = "float32",
    pooling: dict[str, Any] | None = None,
    extra_modules: tuple[str, ...] = ("Normalize",),
    vocab_only: bool = False,
    **overrides: Any,
) -> Path:
    config = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "vocab_size": len(VOCABULARY),
        "max_position_embeddings": 64,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 80,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "type_vocab_size": 2,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "pad_token_id": 0,
    } | overrides
    folder.mkdir(parents=True)
    _write(folder / "config.json", config)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": 32, "do_lower_case": False})
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    _write(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 64},
    )
    if not vocab_only:
        from minifuse.tokens.tokenization import TextTokenizer

        TextTokenizer.from_folder(folder).backend.save(str(folder / "tokenizer.json"))
    weights = {prefix + k: v for k, v in random_weights(config).items()}
    if dtype == "float16":
        weights = {
            k: v.astype(np.float16) if v.dtype == np.float32 else v for k, v in weights.items()
        }
    write_safetensors(folder / "model.safetensors", weights, bfloat16=dtype == "bfloat16")

    types = "sentence_transformers.models."
    modules = [{"idx": 0, "name": "0", "path": "", "type": types + "Transformer"}]
    modules.append({"idx": 1, "name": "1", "path": "1_Pooling", "type": types + "Pooling"})
    (folder / "1_Pooling").mkdir()
    width = config["hidden_size"]
    _write(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": width}
        | (pooling or {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}),
    )
    modes = sum(bool(v) for k, v in (pooling or {}).items() if k.startswith("pooling_mode_")) or 1
    for index, kind in enumerate(extra_modules, 2):
        path = f"{index}_{kind}"
        (folder / path).mkdir()
        modules.append({"idx": index, "name": str(index), "path": path, "type": types + kind})
        if kind == "Dense":
            rng = np.random.default_rng(index)
            dense = {
                "linear.weight": (rng.standard_normal((20, width * modes)) * 0.1).astype(
                    np.float32
                ),
                "linear.bias": rng.standard_normal(20).astype(np.float32),
            }
            write_safetensors(folder / path / "model.safetensors", dense)
            _write(
                folder / path / "config.json",
                {
                    "in_features": width * modes,
                    "out_features": 20,
                    "bias": True,
                    "activation_function": "torch.nn.modules.activation.Tanh",
                },
            )
    _write(folder / "modules.json", modules)
    return folder


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))
