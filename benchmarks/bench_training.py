"""Fine-tuning against sentence-transformers' trainer: the same pairs, settings and quality measure.

    python benchmarks/bench_training.py PAIRS [--eval PAIRS] [--pairs 320] [--json FILE]

Both train all-MiniLM-L6-v2 for one epoch, batch 64, 128 tokens, the multiple negatives ranking loss
at temperature 0.05, AdamW, a tenth of warm-up, dropout as in the config; one after the other. With
--eval the answers' mean reciprocal rank on held-out pairs, before and after each.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from minifuse import SentenceTransformer, hardware
from minifuse.bench.report import format_table, write_json
from minifuse.bench.timing import machine
from minifuse.models.resolve import resolve_model
from minifuse.training import TrainingConfig, TrainingPairs, finetune, read_training_pairs
from minifuse.training.judging import rank_of_answers

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
BATCH, LENGTH, RATE = 64, 128, 5e-5


def by_minifuse(model: Path, pairs: TrainingPairs, out: Path) -> tuple[float, list[float]]:
    config = TrainingConfig(
        batch_size=BATCH, max_seq_length=LENGTH, learning_rate=RATE, checkpoint_every=0
    )
    result = finetune(model, pairs, out, config)
    return result.seconds, result.losses


def by_sentence_transformers(
    model: Path, pairs: TrainingPairs, out: Path
) -> tuple[float, list[float]]:
    import sentence_transformers
    import torch
    from datasets import Dataset
    from sentence_transformers import losses

    torch.set_num_threads(hardware.describe()["num_threads"])
    trained = sentence_transformers.SentenceTransformer(str(model), device="cpu")
    trained.max_seq_length = LENGTH
    trainer = sentence_transformers.SentenceTransformerTrainer(
        model=trained,
        args=sentence_transformers.SentenceTransformerTrainingArguments(
            output_dir=str(out / "work"), num_train_epochs=1, per_device_train_batch_size=BATCH,
            learning_rate=RATE, warmup_ratio=0.1, save_strategy="no", logging_steps=1,
            report_to=[], seed=42, use_cpu=True, disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"anchor": pairs.anchors, "positive": pairs.positives}),
        loss=losses.MultipleNegativesRankingLoss(trained),
    )  # fmt: skip
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    history = [float(row["loss"]) for row in trainer.state.log_history if "loss" in row]
    trained.save_pretrained(str(out / "model"))
    return seconds, history


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", help="pairs to learn from")
    parser.add_argument("--eval", help="pairs to judge by")
    parser.add_argument("--pairs", type=int, help="only the first pairs")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    every = read_training_pairs(arguments.file)
    count = arguments.pairs or len(every)
    pairs = TrainingPairs(every.anchors[:count], every.positives[:count])
    model = resolve_model(MODEL)

    def quality(path: str | Path) -> float | None:
        if not arguments.eval:
            return None
        judged = SentenceTransformer(path)
        judged.max_seq_length = LENGTH  # theirs is saved with it, ours with the model's own
        ranks = rank_of_answers(judged.encode, read_training_pairs(arguments.eval))
        return float((1 / ranks).mean())

    rows: list[dict[str, Any]] = []
    before = quality(model)
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "ours", Path(folder) / "theirs"
        theirs.mkdir()
        for name, train, out, made in (
            ("minifuse", by_minifuse, ours, ours),
            ("sentence-transformers", by_sentence_transformers, theirs, theirs / "model"),
        ):
            seconds, losses = train(model, pairs, out)
            rows.append(
                {
                    "engine": name,
                    "pairs_per_second": len(pairs) / seconds,
                    "last_losses": float(np.mean(losses[-5:])),
                    "mrr_before": before,
                    "mrr_after": quality(made),
                }
            )
    columns = {"engine": "engine", "pairs_per_second": "pairs/s", "last_losses": "loss, last 5",
               "mrr_before": "MRR before", "mrr_after": "after"}  # fmt: skip
    print(format_table(rows, columns))
    if arguments.json:
        write_json(arguments.json, {"machine": machine(), "num_pairs": len(pairs), "rows": rows})


if __name__ == "__main__":
    main()
