"""Training of cross-encoders: rerankers and scorers of pairs, made of an encoder and a head.

Two losses: pairs with scores learn them by binary cross-entropy; pairs without learn to score the
right text above wrong ones (localized contrastive estimation, Gao, Dai and Callan 2021).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from minifuse.files.safetensors_file import write_safetensors
from minifuse.models.description import read_object
from minifuse.models.folder import (
    ModelFolder,
    is_cross_encoder,
    read_cross_encoder_folder,
    read_model_folder,
)
from minifuse.models.resolve import resolve_model
from minifuse.models.weights import stored_tensors
from minifuse.tokens.tokenization import TextTokenizer
from minifuse.training.encoder import ACTIVATIONS, Draws, TrainableEncoder, dropped, key_of
from minifuse.training.loop import Loop, OnStep, TrainingConfig, TrainingResult
from minifuse.training.packing import Packed, forward, pack, pieces
from minifuse.training.pairs import TrainingPairs

__all__ = ["TrainableCrossEncoder", "finetune_cross_encoder"]

FloatArray = npt.NDArray[np.float32]
# Given a function of pairs -> scores, a score of it, higher is better.
Judge = Callable[[Callable[[Sequence[tuple[str, str]]], FloatArray]], float]

_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt",
)  # fmt: skip
_SIGMOID = "torch.nn.modules.activation.Sigmoid"


class TrainableCrossEncoder(TrainableEncoder):
    """Packed pairs to one score each, before the sigmoid.

    Args:
        folder: of a cross-encoder, or of an embedding model, which gets a new head.
        seed: of the new head's weights.

    Raises:
        ValueError: as TrainableEncoder raises, or the family has no head, or one of several labels.
    """

    def __init__(self, folder: ModelFolder, seed: int) -> None:
        head = folder.architecture.head
        if head is None or head.dense is None:
            raise ValueError(f"{folder.path}: minifuse trains no cross-encoders of this family")
        super().__init__(dataclasses.replace(folder, modules=[], poolings=[head.pooling]))
        width = folder.description.hidden_size
        shapes = {
            f"{head.dense}.weight": (width, width), f"{head.dense}.bias": (width,),
            f"{head.output}.weight": (1, width), f"{head.output}.bias": (1,),
        }  # fmt: skip
        stored = stored_tensors(folder, (), shapes)
        generator = torch.Generator().manual_seed(seed)
        for name, shape in shapes.items():
            if name not in stored:  # as transformers begins a new head
                is_bias = name.endswith(".bias")
                new = torch.zeros(shape)
                self._weights[key_of(name)] = torch.nn.Parameter(
                    new if is_bias else new.normal_(0, 0.02, generator=generator)
                )
            elif stored[name].shape != shape:
                raise ValueError(
                    f"{folder.path}: {name!r} has shape {list(stored[name].shape)}, wanted "
                    f"{list(shape)}: only cross-encoders of one label can be trained"
                )
            else:
                self._weights[key_of(name)] = torch.nn.Parameter(torch.from_numpy(stored[name]))
        self._undecayed |= {key_of(name) for name in shapes if name.endswith(".bias")}
        self._head, self._dense = head, head.dense

    def forward(
        self, sentences: Packed, numbers: npt.NDArray[np.int64], draws: Draws | None = None
    ) -> Any:
        """Scores [batch, 1] of packed pairs; arguments as TrainableEncoder takes them."""
        head, layers = self._head, self.folder.description.num_hidden_layers
        x = super().forward(sentences, numbers, draws)
        x = ACTIVATIONS[head.activation](self._linear(self._dense, x))
        if draws is not None:
            x = dropped(x, numbers, self.hidden_dropout, draws.seed(layers, 0))
        return self._linear(head.output, x)

    def _linear(self, name: str, x: Any) -> Any:
        return F.linear(x, *(self._weights[key_of(f"{name}.{p}")] for p in ("weight", "bias")))

    def tensors(self) -> dict[str, FloatArray]:
        """Every tensor as transformers names those of a model for sequence classification."""
        prefix = self.folder.architecture.prefixes[0]
        # The pooler is a part of transformers' encoder; all else of a head stands beside it.
        beside = tuple(n for n in self._head.tensors() if not n.startswith("pooler."))
        found = {}
        for key, weight in self._weights.items():
            name = key.replace("/", ".")  # key_of's inverse
            found[name if name in beside else prefix + name] = weight.detach().numpy()
        return found


def finetune_cross_encoder(
    model: str | Path,
    pairs: TrainingPairs,
    output: str | Path,
    config: TrainingConfig | None = None,
    negatives: Sequence[Sequence[str]] | None = None,
    evaluate: Judge | None = None,
    on_step: OnStep | None = None,
) -> TrainingResult:
    """Train a cross-encoder on pairs and write it as a new folder.

    It is interrupted and goes on as ``finetune`` does. The folder is one of transformers for
    sequence classification: minifuse and sentence-transformers load it as CrossEncoder.

    Args:
        model: a cross-encoder of one label, or an embedding model, which gets a new head.
        pairs: with scores from 0 to 1: binary cross-entropy; else each right text against
            config.num_negatives wrong ones.
        output: a new folder.
        config: how; the defaults if None.
        negatives: for each pair, wrong texts that are hard to tell from the right one (see
            ``pairs.hard_negatives``); where there are fewer than wanted, right texts of other pairs
            serve.
        evaluate: scores of pairs -> a score, higher is better, as ``finetune`` uses it.
        on_step: told (step, number of steps, loss, the newest score) after every step.

    Raises:
        FileExistsError: output holds files already.
        FileNotFoundError: no such model.
        FloatingPointError: the loss is no longer finite; the last checkpoint is kept.
        ValueError: what cannot be trained, scores outside 0..1, a checkpoint of another training.
        OSError: the disk is full; the checkpoint before is kept.
    """
    config = config or TrainingConfig()
    output = Loop.prepare(output, config)
    source = resolve_model(str(model))
    return _Scoring(source, pairs, output, config, negatives, evaluate).run(on_step)


class _Scoring(Loop):
    def __init__(
        self, source: Path, pairs: TrainingPairs, output: Path, config: TrainingConfig,
        negatives: Sequence[Sequence[str]] | None, evaluate: Judge | None,
    ) -> None:  # fmt: skip
        outside = [score for score in pairs.scores if not 0 <= score <= 1]
        if outside:
            raise ValueError(f"a score is {outside[0]}, wanted 0..1: divide them by the largest")
        if negatives is not None and len(negatives) != len(pairs):
            raise ValueError(f"{len(negatives)} lists of negatives, wanted {len(pairs)}")
        if negatives is None and pairs.negatives:
            negatives = [[text] for text in pairs.negatives]
        digest = hashlib.sha256(pairs.digest().encode())
        digest.update(json.dumps([list(one) for one in negatives or ()]).encode())
        read = read_cross_encoder_folder if is_cross_encoder(source) else read_model_folder
        self.folder = read(source)
        model = TrainableCrossEncoder(self.folder, config.seed)
        super().__init__(model, len(pairs), output, config, digest.hexdigest(), evaluate)
        self.pairs, self._negatives = pairs, negatives
        self._right_texts = _right_texts(pairs)
        self._tokenizer = TextTokenizer.from_folder(
            self.folder.transformer_path, **self.folder.tokenizer_settings()
        )
        self._most = min(config.max_seq_length or 1 << 30, self.folder.max_seq_length)

    def _sentences_and_loss(
        self, chosen: npt.NDArray[np.int64]
    ) -> tuple[Packed, Callable[[Any], Any]]:
        pairs = self.pairs
        if pairs.scores:
            rows = [(pairs.anchors[i], pairs.positives[i]) for i in chosen]
            wanted = torch.tensor([[pairs.scores[i]] for i in chosen], dtype=torch.float32)
            return self._packed(rows), lambda scores: F.binary_cross_entropy_with_logits(
                scores, wanted
            )
        rng = np.random.default_rng([self.config.seed, self.step])
        rows = [
            (pairs.anchors[i], text)
            for i in chosen
            for text in (pairs.positives[i], *self._wrong_texts(int(i), rng))
        ]
        right = torch.zeros(len(chosen), dtype=torch.int64)
        return self._packed(rows), lambda scores: F.cross_entropy(
            scores.reshape(len(chosen), -1), right
        )

    def _wrong_texts(self, pair: int, rng: np.random.Generator) -> list[str]:
        """As many wrong texts for a pair's anchor as are wanted, hard ones first."""
        count, right = self.config.num_negatives, self._right_texts[self.pairs.anchors[pair]]
        hard = [] if self._negatives is None else list(self._negatives[pair])
        texts = [hard[i] for i in rng.permutation(len(hard))[:count]]
        tries = 0
        while len(texts) < count:
            text = self.pairs.positives[int(rng.integers(len(self.pairs)))]
            tries += 1
            if text not in right or tries > 100 * count:  # all texts may be right
                texts.append(text)
        return texts

    def _packed(self, rows: Sequence[tuple[str, str]]) -> Packed:
        return pack(self._tokenizer.encode(list(rows), self._most))

    def predict(self, rows: Sequence[tuple[str, str]]) -> FloatArray:
        """Scores of pairs [n], before the sigmoid, as the model is now."""
        scores = np.empty(len(rows), np.float32)
        for begin in range(0, len(rows), 1024):
            part = rows[begin : begin + 1024]
            order = np.argsort([len(a) + len(b) for a, b in part], kind="stable")
            sentences = self._packed(part).chosen(order)
            with torch.no_grad():
                for first, last in pieces(sentences.cu_seqlens, 8192):
                    found = forward(self.model, sentences, (first, last))
                    scores[begin + order[first:last]] = found[:, 0].numpy()
        return scores

    def _evaluation(self) -> float | None:
        return None if self._evaluate is None else float(self._evaluate(self.predict))

    def _write_folder(self, folder: Path) -> None:
        source = self.folder.transformer_path
        for name in _TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copy(source / name, folder / name)
        settings = _config(source)
        (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
        path = folder / "tokenizer_config.json"
        own = read_object(path) if path.is_file() else {}
        own["model_max_length"] = self._most
        path.write_text(json.dumps(own, indent=2) + "\n", "utf-8")
        write_safetensors(folder / "model.safetensors", self.model.tensors(), {"format": "pt"})


def _config(source: Path) -> dict[str, Any]:
    """config.json of an encoder as that of a model for sequence classification with one label."""
    path = source / "config.json"
    config = dict(read_object(path))
    kinds = config.get("architectures")
    name = str(kinds[0]) if isinstance(kinds, list) and kinds else ""
    stem = re.sub(r"(Model|For[A-Z]\w*)$", "", name)
    if not stem or stem == name:
        raise ValueError(f"{path}: architectures is {kinds!r:.80}, wanted a class of transformers")
    return config | {
        "architectures": [f"{stem}ForSequenceClassification"],
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "sentence_transformers": {"activation_fn": _SIGMOID},
    }


def _right_texts(pairs: TrainingPairs) -> dict[str, set[str]]:
    """Each anchor's right texts: an anchor may stand in several pairs."""
    found: dict[str, set[str]] = {}
    for anchor, positive in zip(pairs.anchors, pairs.positives, strict=True):
        found.setdefault(anchor, set()).add(positive)
    return found
