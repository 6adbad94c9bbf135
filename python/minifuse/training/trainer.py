"""Contrastive fine-tuning of a sentence-embedding model on pairs of texts."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from minifuse.files.safetensors_file import write_safetensors
from minifuse.files.whole import ignore_other_engines
from minifuse.models.checkpoint import is_weight_file
from minifuse.models.folder import read_model_folder
from minifuse.models.resolve import resolve_model
from minifuse.tokens.tokenization import TextTokenizer
from minifuse.training.encoder import TrainableEncoder
from minifuse.training.loop import Loop, OnStep, TrainingConfig, TrainingResult
from minifuse.training.losses import cosent_loss, ranking_loss, same_text_groups
from minifuse.training.packing import Packed, forward, pack, pieces
from minifuse.training.pairs import TrainingPairs

__all__ = ["finetune"]

FloatArray = npt.NDArray[np.float32]
# Given a function of texts -> vectors, a score, higher is better.
Judge = Callable[[Callable[[Sequence[str]], FloatArray]], float]


def finetune(
    model: str | Path,
    pairs: TrainingPairs,
    output: str | Path,
    config: TrainingConfig | None = None,
    evaluate: Judge | None = None,
    on_step: OnStep | None = None,
) -> TrainingResult:
    """Train a model on pairs and write it as a new folder.

    Beside the output a folder ``NAME.training`` keeps the last checkpoint; where there is one of
    the same model, pairs and config, the training goes on from there, to the same bits. It is
    removed when the output is whole.

    Args:
        model: a folder or name, with float weights, mean or cls pooling and no Dense module.
        pairs: with scores: CoSENT; else the multiple negatives ranking loss.
        output: a new folder.
        config: how; the defaults if None.
        evaluate: encode -> a score, higher is better: before the first step, every evaluate_every
            steps and at the end. The weights with the best score are written; without it the last.
        on_step: told (step, number of steps, loss, the newest score) after every step.

    Raises:
        FileExistsError: output holds files already.
        FileNotFoundError: no such model.
        FloatingPointError: the loss is no longer finite; the last checkpoint is kept.
        ValueError: what cannot be trained, or a checkpoint of another training.
        OSError: the disk is full; the checkpoint before is kept.
    """
    config = config or TrainingConfig()
    output = Loop.prepare(output, config)
    source = resolve_model(str(model))
    return _Contrastive(source, pairs, output, config, evaluate).run(on_step)


class _Contrastive(Loop):
    def __init__(
        self, source: Path, pairs: TrainingPairs, output: Path, config: TrainingConfig,
        evaluate: Judge | None,
    ) -> None:  # fmt: skip
        self.folder = read_model_folder(source)
        model = TrainableEncoder(self.folder)
        super().__init__(model, len(pairs), output, config, pairs.digest(), evaluate)
        self.pairs = pairs
        self._tokenizer = TextTokenizer.from_folder(
            self.folder.transformer_path, **self.folder.tokenizer_settings()
        )
        self._most = min(config.max_seq_length or 1 << 30, self.folder.max_seq_length)
        texts = [*pairs.anchors, *pairs.positives, *pairs.negatives]
        self._texts = self._packed(texts)

    def _packed(self, texts: Sequence[str]) -> Packed:
        return pack(self._tokenizer.encode(list(texts), self._most))

    def _sentences_and_loss(
        self, chosen: npt.NDArray[np.int64]
    ) -> tuple[Packed, Callable[[Any], Any]]:
        config, pairs, n, count = self.config, self.pairs, len(self.pairs), len(chosen)
        blocks = [chosen, chosen + n] + ([chosen + 2 * n] if pairs.negatives else [])
        sentences = self._texts.chosen(np.concatenate(blocks))
        if pairs.scores:
            scores = torch.tensor([pairs.scores[i] for i in chosen])

            def loss_of(vectors: Any) -> Any:
                return cosent_loss(vectors[:count], vectors[count:], scores, config.temperature)
        else:
            groups = None
            if config.masks_same_texts:
                others = [pairs.positives[i] for i in chosen]
                if pairs.negatives:
                    others += [pairs.negatives[i] for i in chosen]
                groups = same_text_groups([pairs.anchors[i] for i in chosen], others, count)

            def loss_of(vectors: Any) -> Any:
                return ranking_loss(
                    vectors[:count], vectors[count:], config.temperature, config.symmetric, groups
                )

        return sentences, loss_of

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Vectors of length 1, as the model is now."""
        order = np.argsort([len(text) for text in texts], kind="stable")
        sentences = self._packed(texts).chosen(order)
        vectors = np.empty((len(texts), self.folder.description.hidden_size), np.float32)
        with torch.no_grad():
            for first, last in pieces(sentences.cu_seqlens, 8192):
                part = forward(self.model, sentences, (first, last))
                vectors[order[first:last]] = torch.nn.functional.normalize(part).numpy()
        return vectors

    def _evaluation(self) -> float | None:
        return None if self._evaluate is None else float(self._evaluate(self.encode))

    def _write_folder(self, folder: Path) -> None:
        source = self.folder.path
        shutil.copytree(source, folder, ignore=ignore_other_engines, dirs_exist_ok=True)
        transformer = folder / self.folder.transformer_path.relative_to(source)
        for path in transformer.iterdir():
            if is_weight_file(path.name):
                path.unlink()
        write_safetensors(transformer / "model.safetensors", self.model.tensors(), {"format": "pt"})
