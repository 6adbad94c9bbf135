"""The command line: minifuse COMMAND; each has a --help."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minifuse.terminal import printable, printable_json

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
_WINDOW_TEXTS = 4096


def _parser() -> argparse.ArgumentParser:
    from minifuse import __version__
    from minifuse.cli_bench import add_bench_arguments, run_bench
    from minifuse.cli_index import add_index_commands

    parser = argparse.ArgumentParser(
        prog="minifuse", description="Sentence embeddings on fused kernels, without PyTorch."
    )
    parser.add_argument("--version", action="version", version=f"minifuse {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, run: Any, text: str, with_model: bool = True, with_dtype: bool = False
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        if with_model:
            sub.add_argument(
                "-m", "--model", default=DEFAULT_MODEL, help="folder or name (%(default)s)"
            )
            sub.add_argument("--threads", type=int, help="at most this many threads")
        if with_dtype:
            sub.add_argument(
                "--dtype",
                choices=("float32", "bfloat16", "float16", "int8", "auto"),
                help="of the weights (float32, or as the folder has them); auto: the fastest here",
            )
            sub.add_argument("--device", help="cpu, cuda or cuda:N (cpu)")
        return sub

    sub = command("encode", _encode, "Embed texts; any size in constant memory.", with_dtype=True)
    sub.add_argument("inputs", nargs="*", default=["-"], help="files of lines, .jsonl, .csv, .tsv")
    sub.add_argument("-o", "--output", required=True, help=".npy, .jsonl or .parquet")
    sub.add_argument("--column", help="the column or key that holds the text")
    sub.add_argument("--batch-size", type=int, default=32)
    sub.add_argument("--normalize", action="store_true", help="vectors of length 1")
    sub.add_argument("--truncate-dim", type=int, help="keep only the first dimensions")
    sub.add_argument("--prompt", help="put before every text")
    sub.add_argument("--truncation", choices=("cut", "error"), default="cut")
    sub.add_argument("--no-progress", action="store_true")

    sub = command(
        "similarity", _similarity, "The similarity of every text with every other.", with_dtype=True
    )
    sub.add_argument("texts", nargs="*", help="texts; none: lines of the standard input")
    sub.add_argument("--json", action="store_true")

    sub = command(
        "evaluate",
        _evaluate,
        "Judge a model by scored pairs, retrieval or labels; float32 beside another dtype.",
        with_dtype=True,
    )
    sub.add_argument(
        "path",
        help=".tsv or .csv with columns score, sentence1, sentence2 (correlation), label, text "
        "(clustering; classification with --train) or label, sentence1, sentence2 (pair "
        "classification); or a retrieval folder in BEIR's layout (corpus.jsonl, queries.jsonl, "
        "qrels.tsv)",
    )
    sub.add_argument("--train", metavar="FILE", help="what a classifier learns from: label, text")
    sub.add_argument("--json", action="store_true")

    sub = command(
        "compare", _compare, "Two models, or two groups of pairs: is the difference real?", False
    )
    sub.add_argument("a", help="folder or name; NAME@DTYPE for another dtype")
    sub.add_argument("b", nargs="?", help="the same; none: the groups of labelled pairs")
    sub.add_argument("--pairs", "--data", dest="path", required=True, metavar="PATH",
                     help="scored or labelled pairs, or a retrieval folder")  # fmt: skip
    sub.add_argument("--plot", metavar="FILE", help="intervals and distributions: .png, .svg, .pdf")
    sub.add_argument("--threads", type=int, help="at most this many threads")
    sub.add_argument("--json", action="store_true")

    sub = command(
        "explore", _explore, "Clusters of texts, named, on a map: one page.", with_dtype=True
    )
    sub.add_argument("input", help="a file of lines, .jsonl, .csv or .tsv; - for stdin")
    sub.add_argument("--column", help="the column or key that holds the text")
    sub.add_argument("-o", "--output", help="the page (FILE.html beside the input)")
    sub.add_argument("--png", metavar="FILE", help="the map as a picture too")
    sub.add_argument("-k", "--clusters", type=int, help="how many; the best by silhouette if none")
    sub.add_argument("--limit", type=int, help="only the first texts")

    sub = command("finetune", _finetune, "Train a model on pairs of texts; a killed run goes on.")
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

    sub = command("quantize", _quantize, "Write a model in int8, which loads at once.", False)
    sub.add_argument("model", help="folder or name")
    sub.add_argument("output", help="a new folder")
    sub.add_argument("--threads", type=int, help="at most this many threads")

    sub = command("parity", _parity, "Compare with float64 NumPy and PyTorch, op by op and whole.")
    sub.add_argument("file", nargs="?", help="lines, or pairs as for evaluate; none: our own text")
    sub.add_argument("--limit", type=int, default=1000, help="sentences (%(default)s)")

    sub = command("bench", run_bench, "Compare with the peers that are installed, interleaved.")
    add_bench_arguments(sub)

    sub = command(
        "index", None, "An index of texts on the disk: build, search, info, repair.", False
    )
    add_index_commands(sub, DEFAULT_MODEL)

    sub = command("info", _info, "The machine: instruction sets, threads, ceiling, schedules.")
    sub.add_argument("--peak", action="store_true", help="measure the arithmetic ceiling")
    sub.add_argument(
        "--schedule",
        metavar="TOKENS",
        help="how a batch would be dealt out to the threads: sentences' token counts, as 500,3,3,3",
    )
    return parser


def _load(arguments: argparse.Namespace) -> Any:
    from minifuse import SentenceTransformer

    return SentenceTransformer(
        arguments.model,
        device=arguments.device,
        num_threads=arguments.threads,
        dtype=arguments.dtype,
    )


def _windows(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(texts)
    while window := list(itertools.islice(iterator, size)):
        yield window


def _encode(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from minifuse.files import open_writer, read_texts
    from minifuse.whole_files import check_distinct

    check_distinct(arguments.output, arguments.inputs)
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(open_writer(arguments.output))
        model = _load(arguments)
        texts = itertools.chain.from_iterable(
            read_texts(path, arguments.column) for path in arguments.inputs
        )
        bar = stack.enter_context(tqdm(unit=" texts", disable=arguments.no_progress or None))
        start, tokens, count = time.perf_counter(), 0, 0
        for window in _windows(texts, _WINDOW_TEXTS):
            vectors, info = model.encode(
                window,
                batch_size=arguments.batch_size,
                normalize_embeddings=arguments.normalize,
                truncate_dim=arguments.truncate_dim,
                prompt=arguments.prompt,
                truncation=arguments.truncation,
                return_info=True,
                show_progress_bar=False,
            )
            writer.write(window, vectors)
            tokens += int(info.num_tokens.sum())
            count += len(window)
            rate = tokens / (time.perf_counter() - start)
            bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
            bar.update(len(window))
        if not count:
            import numpy as np

            writer.write([], np.zeros((0, model.get_embedding_dimension()), np.float32))
    return 0


def _similarity(arguments: argparse.Namespace) -> int:
    texts = arguments.texts or [line.rstrip("\n") for line in sys.stdin]
    if not texts:
        raise ValueError("no text: give texts as arguments, or lines on the standard input")
    model = _load(arguments)
    embeddings = model.encode(texts)
    matrix = model.similarity(embeddings, embeddings)
    if arguments.json:
        print(printable_json({"texts": texts, "similarity": matrix.tolist()}))
        return 0
    for row, text in zip(matrix, texts, strict=True):
        print(" ".join(f"{value:8.4f}" for value in row), "", printable(text[:60]))
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from minifuse import SentenceTransformer, evaluation

    judge = evaluation.task_of(arguments.path, arguments.train)
    model = _load(arguments)
    results = {model.dtype: asdict(judge(model))}
    if model.dtype != "float32" and not model.is_quantized:
        reference = SentenceTransformer(arguments.model, num_threads=arguments.threads)
        results["float32"] = asdict(judge(reference))
    if arguments.json:
        print(json.dumps(results if len(results) > 1 else results[model.dtype]))
        return 0
    scores = results[model.dtype]
    width = max(map(len, scores))
    if len(results) > 1:
        print(f"{'':{width}s}  {model.dtype:>8s}  {'float32':>8s}  difference")
    for name, value in scores.items():
        line = f"{name:{width}s}  "
        if len(results) == 1:
            line += str(value) if isinstance(value, int) else f"{value:.4f}"
        elif isinstance(value, int):
            line += f"{value:8d}  {results['float32'][name]:8d}"
        else:
            other = results["float32"][name]
            line += f"{value:8.4f}  {other:8.4f}  {value - other:+10.4f}"
        print(line)
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from minifuse import SentenceTransformer, comparison
    from minifuse.whole_files import check_distinct

    def load(name: str) -> Any:
        name, _, dtype = name.partition("@")
        return SentenceTransformer(name, dtype=dtype or None, num_threads=arguments.threads)

    a = load(arguments.a)
    b = None if arguments.b is None else load(arguments.b)
    result = comparison.compare(a, b, arguments.path, (arguments.a, str(arguments.b)))
    if arguments.plot:
        check_distinct(arguments.plot, [arguments.path])
        comparison.plot_comparison(result, arguments.plot)
    if arguments.json:
        rows = [asdict(one) | {"is_real": one.is_real} for one in result.differences]
        print(json.dumps({"verdict": result.verdict(), "differences": rows}))
        return 0
    for one in result.differences:
        print(
            f"{one.measure:12s} {one.a:8.4f} {one.b:8.4f}  {one.interval.estimate:+.4f} "
            f"[{one.interval.low:+.4f}, {one.interval.high:+.4f}]  p = {one.p_value:.3g}"
            f"{'  real' if one.is_real else ''}"
        )
    print(result.verdict())
    return 0


def _explore(arguments: argparse.Namespace) -> int:
    from minifuse import exploration
    from minifuse.exploration_page import write_page
    from minifuse.files import read_texts
    from minifuse.whole_files import check_distinct

    texts = list(itertools.islice(read_texts(arguments.input, arguments.column), arguments.limit))
    name = "texts" if arguments.input == "-" else Path(arguments.input).stem
    output = Path(arguments.output or Path(arguments.input).with_name(f"{name}.html"))
    if not output.parent.is_dir():
        raise FileNotFoundError(f"{output.parent}: the folder does not exist")
    for written in filter(None, (output, arguments.png)):
        check_distinct(written, [arguments.input])
    arguments.dtype = arguments.dtype or "auto"  # neighbours on a map need no more
    vectors = _load(arguments).encode(texts, normalize_embeddings=True)
    result = exploration.explore(texts, vectors, arguments.clusters)
    write_page(result, output, f"{name}: {len(texts):,} texts")
    if arguments.png:
        exploration.write_png(result, arguments.png)
    for cluster, title in enumerate(result.names):
        count = int((result.labels == cluster).sum())
        center = printable(texts[result.centers[cluster]][:70])
        print(f"{count:6d}  {printable(title):40s}  {center}")
    print(output)
    return 0


def _finetune(arguments: argparse.Namespace) -> int:
    try:
        from minifuse import training
    except ImportError as error:
        raise ImportError(
            f"fine-tuning needs PyTorch: pip install 'minifuse[torch]' ({error})"
        ) from error
    from tqdm import tqdm

    from minifuse.training.judging import judge_of, plot_training
    from minifuse.whole_files import check_distinct

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


def _quantize(arguments: argparse.Namespace) -> int:
    from minifuse.models.quantization import quantize

    output = quantize(arguments.model, arguments.output, num_threads=arguments.threads)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print(f"{output}: {size / 1e6:.1f} MB")
    return 0


def _sentences_of(path: str | None, limit: int) -> list[str]:
    from minifuse import sample_text
    from minifuse.evaluation import read_scored_pairs
    from minifuse.files import read_texts

    if path is None:
        return list(sample_text.SENTENCES)[:limit]
    if Path(path).suffix in (".tsv", ".csv"):
        pairs = read_scored_pairs(path)
        both = itertools.chain(*zip(pairs.sentences1, pairs.sentences2, strict=True))
        return list(itertools.islice(dict.fromkeys(both), limit))
    return list(itertools.islice(read_texts(path), limit))


def _parity(arguments: argparse.Namespace) -> int:
    from minifuse.parity import run_parity

    checks = run_parity(arguments.model, _sentences_of(arguments.file, arguments.limit))
    width = max(len(check.name) for check in checks)
    print(f"{'':{width}s}  {'minifuse':>9s}  {'PyTorch':>9s}  {'bound':>9s}")
    for check in checks:
        theirs = "" if check.torch_value is None else f"{check.torch_value:.2e}"
        bound = "" if check.bound is None else f"{check.bound:.2e}"
        verdict = "" if check.bound is None else "ok" if check.holds else "BEYOND THE BOUND"
        print(f"{check.name:{width}s}  {check.value:9.2e}  {theirs:>9s}  {bound:>9s}  {verdict}")
    return 0 if all(check.holds for check in checks) else 1


def _info(arguments: argparse.Namespace) -> int:
    from minifuse import bench, hardware

    about = hardware.describe()
    if arguments.peak:
        about["peak_gflops"] = {
            dtype: round(rate / 1e9, 1) for dtype, rate in hardware.peak().items()
        }
    for key, value in about.items():
        text = ", ".join(value) if isinstance(value, list) else value
        print(f"{key:15s} {text}")
    if arguments.schedule is not None:
        try:
            lengths = [int(length) for length in arguments.schedule.split(",")]
        except ValueError as error:
            raise ValueError(f"--schedule: {error}; wanted token counts, as 500,3,3,3") from error
        print(f"\n{len(lengths)} sentences, the cheapest of")
        columns = {
            "choice": "",
            "chunk_tokens": "tokens a chunk",
            "chunks": "chunks",
            "shared": "shared by all threads",
            "gflop": "GFLOP till the end",
        }
        rows = bench.schedules(arguments.model, lengths, arguments.threads)
        print(bench.format_table(rows, columns))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status.

    A wrong argument or file is told in one line on the standard error, with status 2. Where nobody
    reads on (``| head``), nothing is said: status 141, as of programs that SIGPIPE ends.
    """
    arguments = _parser().parse_args(argv)
    try:
        status = int(arguments.run(arguments))
        if sys.stdout is not None:  # closed from the start
            sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Buffered output would raise the same error again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        # A message may quote a file of a stranger's.
        message = printable(str(error), keep="\n")
        print(f"minifuse {arguments.command}: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        # A checkpoint and an index being built hold what was done.
        goes_on = (arguments.command, getattr(arguments, "index_command", "")) in (
            ("finetune", ""),
            ("index", "build"),
        )
        kept = "run it again to go on" if goes_on else "nothing was kept"
        print(f"minifuse {arguments.command}: interrupted, {kept}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
