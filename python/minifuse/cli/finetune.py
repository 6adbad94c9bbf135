"""minifuse finetune: train a model on pairs of texts."""

from __future__ import annotations

import argparse
from typing import Any

from minifuse.cli.common import add_command

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add ``minifuse finetune`` to the commands."""
    sub = add_command(
        commands, "finetune", _run, "Train a model on pairs of texts; a killed run goes on."
    )
    sub.add_argument("--pairs", required=True, metavar="FILE",
                     help=".jsonl, .tsv or .csv: question and answer, anchor and positive, label "
                     "and text, sentence1, sentence2 and score ...")  # fmt: skip
    sub.add_argument("--columns", help="the two sides, as question,answer")
    sub.add_argument("--eval", metavar="FILE", help="pairs to judge by: recall@1 and MRR, or rank")
    sub.add_argument("-o", "--out", required=True, metavar="DIR", help="a new folder")
    sub.add_argument("--epochs", type=int, default=1)
    sub.add_argument("--batch-size", type=int, default=64)
    sub.add_argument("--learning-rate", type=float, default=5e-5)
    sub.add_argument("--temperature", type=float, default=0.05)
    sub.add_argument("--symmetric", action="store_true", help="also find the anchor of an answer")
    sub.add_argument("--max-seq-length", type=int)
    sub.add_argument("--evaluate-every", type=int, default=0, metavar="STEPS")
    sub.add_argument("--patience", type=int, default=0, metavar="EVALUATIONS")
    sub.add_argument("--seed", type=int, default=42)
    sub.add_argument("--plot", metavar="FILE", help="loss and quality: .png, .svg, .pdf")
    sub.add_argument("--no-progress", action="store_true")


def _run(arguments: argparse.Namespace) -> int:
    try:
        from minifuse import training
    except ImportError as error:
        raise ImportError(
            f"fine-tuning needs PyTorch: pip install 'minifuse[torch]' ({error})"
        ) from error
    from tqdm import tqdm

    from minifuse.files.whole import check_distinct
    from minifuse.training.judging import judge_of, plot_training

    columns = None
    if arguments.columns:
        first, comma, second = arguments.columns.partition(",")
        if not comma:
            raise ValueError(f"--columns is {arguments.columns!r}, wanted two names and a comma")
        columns = first, second
    pairs = training.read_training_pairs(arguments.pairs, columns, arguments.seed)
    judge = None
    if arguments.eval:
        judge = judge_of(training.read_training_pairs(arguments.eval, columns, arguments.seed))
    config = training.TrainingConfig(
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        temperature=arguments.temperature,
        symmetric=arguments.symmetric,
        max_seq_length=arguments.max_seq_length,
        evaluate_every=arguments.evaluate_every,
        patience=arguments.patience,
        seed=arguments.seed,
        num_threads=arguments.threads,
    )
    with tqdm(unit=" steps", disable=arguments.no_progress or None) as bar:

        def on_step(step: int, total: int, loss: float, score: float | None) -> None:
            bar.total = total
            quality = "" if score is None else f", quality {score:.4f}"
            bar.set_postfix_str(f"loss {loss:.4f}{quality}", refresh=False)
            bar.update(step - bar.n)

        result = training.finetune(arguments.model, pairs, arguments.out, config, judge, on_step)
    for step, score in result.evaluations:
        print(f"step {step:6d}  quality {score:.4f}{'  kept' if step == result.best_step else ''}")
    print(f"{len(pairs)} pairs, {len(result.losses)} steps, {result.seconds:.1f} s: {result.path}")
    if arguments.plot:
        check_distinct(arguments.plot, filter(None, (arguments.pairs, arguments.eval)))
        plot_training(result, arguments.plot)
    return 0
