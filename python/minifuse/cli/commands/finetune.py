"""minifuse finetune: train a model on pairs of texts."""

from __future__ import annotations

import argparse
from typing import Any

from minifuse.cli.common import add_command, hides_bar

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
    sub.add_argument("--cross-encoder", action="store_true",
                     help="train a model that scores pairs: a reranker")  # fmt: skip
    sub.add_argument("--negatives", type=int, default=4, metavar="N",
                     help="of a cross-encoder: wrong texts for each right one, mined with the "
                     "model if it embeds texts")  # fmt: skip
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

    from minifuse.files.plots import check_plot
    from minifuse.files.whole import check_distinct
    from minifuse.training.judging import judge_of, plot_training

    if arguments.plot:
        check_distinct(arguments.plot, filter(None, (arguments.pairs, arguments.eval)))
        check_plot(arguments.plot)
    columns = None
    if arguments.columns:
        first, comma, second = arguments.columns.partition(",")
        if not comma:
            raise ValueError(f"--columns is {arguments.columns!r}, wanted two names and a comma")
        columns = first, second
    scores_pairs = arguments.cross_encoder
    pairs, *held_out = (
        training.read_training_pairs(path, columns, arguments.seed, labels_are_scores=scores_pairs)
        for path in (arguments.pairs, arguments.eval)
        if path
    )
    config = training.TrainingConfig(
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        temperature=arguments.temperature,
        symmetric=arguments.symmetric,
        num_negatives=arguments.negatives,
        max_seq_length=arguments.max_seq_length,
        evaluate_every=arguments.evaluate_every,
        patience=arguments.patience,
        seed=arguments.seed,
        num_threads=arguments.threads,
    )
    with tqdm(unit=" steps", disable=hides_bar(arguments)) as bar:

        def on_step(step: int, total: int, loss: float, score: float | None) -> None:
            bar.total = total
            quality = "" if score is None else f", quality {score:.4f}"
            bar.set_postfix_str(f"loss {loss:.4f}{quality}", refresh=False)
            bar.update(step - bar.n)

        if scores_pairs:
            result = _finetune_cross_encoder(arguments, pairs, held_out, config, on_step)
        else:
            judge = judge_of(held_out[0]) if held_out else None
            result = training.finetune(
                arguments.model, pairs, arguments.out, config, judge, on_step
            )
    for step, score in result.evaluations:
        print(f"step {step:6d}  quality {score:.4f}{'  kept' if step == result.best_step else ''}")
    print(f"{len(pairs)} pairs, {len(result.losses)} steps, {result.seconds:.1f} s: {result.path}")
    if arguments.plot:
        plot_training(result, arguments.plot)
    return 0


def _finetune_cross_encoder(
    arguments: argparse.Namespace, pairs: Any, held_out: list[Any], config: Any, on_step: Any
) -> Any:
    from minifuse import SentenceTransformer, training
    from minifuse.models.folder import is_cross_encoder
    from minifuse.models.resolve import resolve_model
    from minifuse.training.judging import scoring_judge_of

    folder = resolve_model(arguments.model)
    mines = not (pairs.scores or pairs.negatives)
    ranks = any(not one.scores for one in held_out)
    negatives, candidates = None, []
    if (mines or ranks) and not is_cross_encoder(folder):
        embed = SentenceTransformer(folder, num_threads=arguments.threads).encode
        if mines:
            negatives = training.hard_negatives(embed, pairs, 4 * arguments.negatives)
        if ranks:
            candidates = training.hard_negatives(embed, held_out[0], 20, most=1.0)
    elif ranks:
        raise ValueError(
            f"{arguments.eval}: right texts are ranked among wrong ones that an embedding model "
            "finds, and --model is a cross-encoder: give pairs with a score or a label"
        )
    judge = scoring_judge_of(held_out[0], candidates) if held_out else None
    return training.finetune_cross_encoder(
        folder, pairs, arguments.out, config, negatives, judge, on_step
    )
