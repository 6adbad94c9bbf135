"""minifuse encode: texts in, vectors out, a window at a time."""

from __future__ import annotations

import argparse
import contextlib
import functools
import time
from typing import Any

from minifuse.cli.common import WINDOW_TEXTS, add_command, hides_bar, load_model, windows

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add ``minifuse encode`` to the commands."""
    sub = add_command(
        commands, "encode", _run, "Embed texts; any size in constant memory.", with_dtype=True
    )
    sub.add_argument("inputs", nargs="*", default=["-"], help="files of lines, .jsonl, .csv, .tsv")
    sub.add_argument("-o", "--output", required=True, help=".npy, .jsonl or .parquet")
    sub.add_argument("--column", help="the column or key that holds the text")
    sub.add_argument("--batch-size", type=int, default=32)
    sub.add_argument("--normalize", action="store_true", help="vectors of length 1")
    sub.add_argument("--truncate-dim", type=int, help="keep only the first dimensions")
    sub.add_argument("--prompt", help="put before every text")
    sub.add_argument("--truncation", choices=("cut", "error"), default="cut")
    sub.add_argument("--no-progress", action="store_true")


def _run(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from minifuse.files.texts import read_all_texts
    from minifuse.files.vectors import open_writer
    from minifuse.files.whole import check_distinct

    check_distinct(arguments.output, arguments.inputs)
    texts = read_all_texts(arguments.inputs, arguments.column)
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(open_writer(arguments.output))
        model = load_model(arguments)
        bar = stack.enter_context(tqdm(unit=" texts", disable=hides_bar(arguments)))
        start, tokens, count = time.perf_counter(), 0, 0
        encode = functools.partial(
            model.encode,
            batch_size=arguments.batch_size,
            normalize_embeddings=arguments.normalize,
            truncate_dim=arguments.truncate_dim,
            prompt=arguments.prompt,
            truncation=arguments.truncation,
            return_info=True,
            show_progress_bar=False,
        )
        for window in windows(texts, WINDOW_TEXTS):
            vectors, info = encode(window)
            writer.write(window, vectors)
            tokens += int(info.num_tokens.sum())
            count += len(window)
            rate = tokens / (time.perf_counter() - start)
            bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
            bar.update(len(window))
        if not count:
            writer.write([], encode([])[0])
    return 0
