"""The loop of every training: gradients, steps, evaluations, checkpoints, and the folder that comes
out.

A step's randomness is a hash of the seed and the step's number, the order of the pairs is that of
the seed and the epoch, and a checkpoint holds the weights and the optimiser's state: a training
that is killed and begun again ends with the same bits.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import shutil
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from minifuse.files.whole import new_folder, replacing
from minifuse.native import core
from minifuse.training.encoder import Draws, TrainableEncoder
from minifuse.training.packing import Packed, accumulate_gradients
from minifuse.training.pairs import batches

__all__ = ["Loop", "OnStep", "TrainingConfig", "TrainingResult"]

logger = logging.getLogger(__name__)

# Told (step, number of steps, loss, the newest score) after every step.
OnStep = Callable[[int, int, float, float | None], None]
_CHECKPOINT = "checkpoint.pt"
_KEPT = {
    *("identity", "step", "model", "optimizer", "losses", "evaluations", "best", "best_score"),
    "best_step",
}
_REAL_NUMBERS = ("learning_rate", "warmup_ratio", "weight_decay", "max_grad_norm", "temperature")


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training; the defaults are sentence-transformers' where it has them.

    Attributes:
        epochs: passes over the pairs.
        batch_size: pairs a step; each is a negative of every other, but in a cross-encoder.
        learning_rate: at the end of the warm-up, from where it falls linearly to zero.
        warmup_ratio: the share of all steps in which it rises linearly.
        weight_decay: of AdamW, not on biases and LayerNorms.
        max_grad_norm: gradients above it are scaled down to it.
        temperature: of the loss; 0.05 is a scale of 20. Not of a cross-encoder.
        symmetric: also learn to find the anchor of each answer. Not of a cross-encoder.
        masks_same_texts: equal answers, and the answers of equal anchors, are not negatives.
        num_negatives: of a cross-encoder: wrong texts that each right one is compared with.
        max_seq_length: texts are cut at this many tokens; the model's own if None.
        chunk_tokens: sentences with more tokens in all are computed in pieces of this size, twice
            (gradient caching, Gao et al. 2021): memory stays the same at any batch_size.
        dropout: of the model's config if None.
        seed: of the order of pairs and of dropout.
        evaluate_every, checkpoint_every: steps; 0: only at the end.
        patience: stop after so many evaluations without a better one; 0: never.
        num_threads: of PyTorch and the native kernels; the default of the machine if None.
    """

    epochs: int = 1
    batch_size: int = 64
    learning_rate: float = 5e-5
    warmup_ratio: float = 0.1
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    temperature: float = 0.05
    symmetric: bool = False
    masks_same_texts: bool = True
    num_negatives: int = 4
    max_seq_length: int | None = None
    chunk_tokens: int = 12_288
    dropout: float | None = None
    seed: int = 42
    evaluate_every: int = 0
    checkpoint_every: int = 50
    patience: int = 0
    num_threads: int | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("epochs", 1, 10**6),
            ("batch_size", 1, 10**7),
            ("learning_rate", 1e-12, 1e3),
            ("warmup_ratio", 0, 1),
            ("weight_decay", 0, 1e3),
            ("max_grad_norm", 1e-12, 1e12),
            ("temperature", 1e-4, 1e4),
            ("num_negatives", 1, 10**4),
            ("max_seq_length", 1, 10**9),
            ("chunk_tokens", 1, 10**9),
            ("seed", 0, 2**63 - 1),
            ("evaluate_every", 0, 10**9),
            ("checkpoint_every", 0, 10**9),
            ("patience", 0, 10**9),
            ("num_threads", 1, 1024),
        ):
            value = getattr(self, name)
            if value is None and name in ("max_seq_length", "num_threads"):
                continue
            is_number = isinstance(value, (int, float, np.number)) and low <= value <= high
            if not is_number or (name not in _REAL_NUMBERS and value != int(value)):
                whole = "" if name in _REAL_NUMBERS else "a whole number "
                raise ValueError(f"{name} is {value!r}, wanted {whole}{low}..{high}")
            # As Python's own numbers, which a checkpoint and a file of JSON can hold.
            kind = float if name in _REAL_NUMBERS else int
            object.__setattr__(self, name, kind(value))
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout!r}, wanted 0 <= dropout < 1")
        if self.dropout is not None:
            object.__setattr__(self, "dropout", float(self.dropout))
        for name in ("symmetric", "masks_same_texts"):
            object.__setattr__(self, name, bool(getattr(self, name)))


@dataclass
class TrainingResult:
    """Result of a training.

    Attributes:
        path: the folder.
        losses: of every step.
        evaluations: (step, score) of every evaluation, the first before the first step.
        best_step: whose weights the folder holds.
        seconds: of the steps that this call made.
        num_pairs: pairs that these steps saw.
    """

    path: Path
    losses: list[float] = field(default_factory=list)
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    best_step: int = 0
    seconds: float = 0.0
    num_pairs: int = 0


@contextmanager
def _deferred_interrupt() -> Iterator[None]:
    """Hold Ctrl-C, and the signals that the command line treats like it, back to the block's end.

    Python runs signal handlers on the main thread only; on any other there is nothing to hold back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP")]
    # One that is ignored, has the system's default or is not Python's raises nothing.
    handlers: dict[int, Any] = {number: signal.getsignal(number) for number in numbers if number}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    held: list[Any] = []
    try:
        for number in handlers:
            signal.signal(number, lambda number, frame: held.append((number, frame)))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if held:
        number, frame = held[-1]
        handlers[number](number, frame)


def _learning_rate(config: TrainingConfig, step: int, total: int) -> float:
    warmup = math.ceil(config.warmup_ratio * total)
    if step < warmup:
        return config.learning_rate * step / max(1, warmup)
    return config.learning_rate * max(0.0, (total - step) / max(1, total - warmup))


class Loop(ABC):
    """A training. Beside the output a folder ``NAME.training`` keeps the last checkpoint.

    Args:
        model: whose parameters are trained.
        num_pairs: of which each step takes some.
        output: a new folder.
        config: how.
        data: a hash of all that the steps see.
        evaluate: gives the score of the model; its ``identity``, where it has one, says
            what it judges by: scores of different judges are not compared.

    Raises:
        FileExistsError: output holds files already.
        FileNotFoundError: the folder that output is to be in does not exist.
    """

    def __init__(
        self, model: TrainableEncoder, num_pairs: int, output: Path, config: TrainingConfig,
        data: str, evaluate: Callable[[Any], float] | None,
    ) -> None:  # fmt: skip
        self.model, self.config, self.output = model, config, output
        self._num_pairs, self._evaluate = num_pairs, evaluate
        decaying, others = model.no_decay()
        self.optimizer = torch.optim.AdamW(
            [{"params": decaying}, {"params": others, "weight_decay": 0.0}],
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        if config.dropout is not None:
            model.hidden_dropout = model.attention_dropout = config.dropout
        self.step = 0
        self.result = TrainingResult(output)
        self._best: dict[str, Any] | None = None
        self._best_score = -math.inf
        self._work = output.with_name(f"{output.name}.training")
        settings = dataclasses.asdict(config) | {"num_threads": None}
        judge = "none" if evaluate is None else getattr(evaluate, "identity", "a function")
        self._identity = {
            "config": settings, "pairs": data, "model": self._weights_digest(), "evaluation": judge
        }  # fmt: skip

    @staticmethod
    def prepare(output: str | Path, config: TrainingConfig) -> Path:
        """Check that the folder can be written, and set the threads.

        Raises:
            FileExistsError: output holds files already.
            FileNotFoundError: the folder that it is to be in does not exist.
        """
        output = Path(output)
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise FileExistsError(f"{output} exists and is not empty; give a new folder")
        if not output.parent.is_dir():
            raise FileNotFoundError(f"{output.parent}: the folder does not exist")
        torch.set_num_threads(config.num_threads or core.default_num_threads())
        return output

    @abstractmethod
    def _sentences_and_loss(
        self, chosen: npt.NDArray[np.int64]
    ) -> tuple[Packed, Callable[[Any], Any]]:
        """The sentences of a step with these pairs, and the loss of their rows."""

    @abstractmethod
    def _evaluation(self) -> float | None:
        """The score of the model as it is now, higher is better; None: nobody asks."""

    @abstractmethod
    def _write_folder(self, folder: Path) -> None:
        """Write the model as it is now into an empty folder."""

    def _weights_digest(self) -> str:
        digest = hashlib.sha256()
        for name, parameter in self.model.named_parameters():
            digest.update(name.encode() + parameter.detach().numpy().tobytes())
        return digest.hexdigest()

    def run(self, on_step: OnStep | None) -> TrainingResult:
        """Every step that is left, then the folder."""
        config = self.config
        self._resume()
        per_epoch = batches(self._num_pairs, config.batch_size, config.seed, 0)
        total = config.epochs * len(per_epoch)
        if self.step == 0 and not self.result.evaluations:
            self._score()
        start, first_step = time.perf_counter(), self.step
        of_epoch = 0
        try:
            self._score_if_due()
            while self.step < total and not self._is_patience_over():
                epoch, place = divmod(self.step, len(per_epoch))
                if epoch != of_epoch:
                    of_epoch = epoch
                    per_epoch = batches(self._num_pairs, config.batch_size, config.seed, epoch)
                chosen = per_epoch[place]
                loss = self._train_step(chosen, total)
                self.result.num_pairs += len(chosen)
                self._score_if_due()
                if config.checkpoint_every and self.step % config.checkpoint_every == 0:
                    self._save_checkpoint()
                if on_step:
                    scores = self.result.evaluations
                    on_step(self.step, total, loss, scores[-1][1] if scores else None)
        except KeyboardInterrupt:
            if self.step > first_step:
                self._save_checkpoint()
            raise
        self.result.seconds = time.perf_counter() - start
        if self.step > first_step:  # what comes now may fail, or be interrupted
            try:
                self._save_checkpoint()
            except OSError as error:  # a disk with room for the model alone
                logger.warning("%s: no checkpoint was written (%s)", self._work, error)
        if not self.result.evaluations or self.result.evaluations[-1][0] != self.step:
            self._score()
        self._write()
        shutil.rmtree(self._work, ignore_errors=True)
        return self.result

    def _train_step(self, chosen: npt.NDArray[np.int64], total: int) -> float:
        config = self.config
        sentences, loss_of = self._sentences_and_loss(chosen)
        for group in self.optimizer.param_groups:
            group["lr"] = _learning_rate(config, self.step, total)
        self.optimizer.zero_grad(set_to_none=True)
        draws = Draws(config.seed, self.step)
        loss = accumulate_gradients(self.model, sentences, loss_of, draws, config.chunk_tokens)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.max_grad_norm)
        if not (math.isfinite(loss) and math.isfinite(float(norm))):
            raise FloatingPointError(
                f"the loss is {loss} at step {self.step + 1}: the training diverges; try a smaller "
                f"learning rate than {config.learning_rate}"
                + (f" (the last checkpoint is in {self._work})" if self._work.exists() else "")
            )
        # The weights, the optimiser's state and the step's number change together or not at all: a
        # checkpoint of half an update would not go on to the same bits.
        with _deferred_interrupt():
            self.optimizer.step()
            self.step += 1
            self.result.losses.append(loss)
        return loss

    def _score(self) -> None:
        score = self._evaluation()
        if score is None:
            return
        # The score and the weights that it is of are remembered together or not at all.
        with _deferred_interrupt():
            if score > self._best_score:
                self._best = {k: v.clone() for k, v in self.model.state_dict().items()}
                self._best_score, self.result.best_step = score, self.step
            self.result.evaluations.append((self.step, score))

    def _score_if_due(self) -> None:
        """Evaluate where this step asks for it and an interrupted run has not done so."""
        every, done = self.config.evaluate_every, self.result.evaluations
        if every and self.step % every == 0 and (not done or done[-1][0] != self.step):
            self._score()

    def _is_patience_over(self) -> bool:
        worse = [step for step, _ in self.result.evaluations if step > self.result.best_step]
        return 0 < self.config.patience <= len(worse)

    def _save_checkpoint(self) -> None:
        self._work.mkdir(exist_ok=True)
        state = {
            "identity": self._identity, "step": self.step, "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(), "losses": self.result.losses,
            "evaluations": self.result.evaluations, "best": self._best,
            "best_score": self._best_score, "best_step": self.result.best_step,
        }  # fmt: skip
        with replacing(self._work / _CHECKPOINT) as file:
            torch.save(state, file)

    def _resume(self) -> None:
        path = self._work / _CHECKPOINT
        if not path.exists():
            return
        try:
            state = torch.load(path, weights_only=True)
        except Exception as error:  # whatever PyTorch's reader runs into
            raise ValueError(
                f"{path}: the checkpoint is damaged ({error}): remove {self._work} to begin again"
            ) from error
        known = state.get("identity") if isinstance(state, dict) else None
        if not isinstance(known, dict) or not state.keys() >= _KEPT:
            raise ValueError(f"{path} is no checkpoint: remove {self._work} to begin again")
        for name, wanted in self._identity.items():
            if known.get(name, wanted) != wanted:
                raise ValueError(
                    f"{path} is of a training with another {name}: remove {self._work}, or give "
                    "another output"
                )
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.result.losses = state["losses"]
        self.result.evaluations = [tuple(one) for one in state["evaluations"]]
        self.result.best_step = state["best_step"]
        self._best, self._best_score = state["best"], state["best_score"]

    def _write(self) -> None:
        if self._best is not None:
            self.model.load_state_dict(self._best)
        else:
            self.result.best_step = self.step
        with new_folder(self.output) as copy:
            self._write_folder(copy)
            summary = {
                "config": dataclasses.asdict(self.config),
                "steps": self.step,
                "best_step": self.result.best_step,
                "losses": self.result.losses,
                "evaluations": self.result.evaluations,
            }
            (copy / "minifuse_training.json").write_text(json.dumps(summary, indent=1), "utf-8")
