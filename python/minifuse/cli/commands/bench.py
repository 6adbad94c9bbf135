"""minifuse bench: engines against each other, ops against PyTorch, our own time stage by stage."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minifuse.cli.common import add_command
from minifuse.files.plots import check_plot
from minifuse.files.whole import check_distinct

QUERY = "how do i reset the password of my account"

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add ``minifuse bench`` to the commands."""
    sub = add_command(
        commands, "bench", _run, "Compare with the peers that are installed, interleaved."
    )
    sub.add_argument("files", nargs="*", help="NAME=FILE or FILE[:LINES] workloads; none: our own")
    sub.add_argument(
        "--peers", action="store_true", help="in float32, bfloat16 and int8; float32 only without"
    )
    sub.add_argument("--ops", action="store_true", help="each op against PyTorch instead")
    sub.add_argument(
        "--profile", action="store_true", help="where our own time goes, stage by stage, instead"
    )
    sub.add_argument("--device", help="cuda or cuda:N: there, beside PyTorch's own kernels")
    sub.add_argument("--rounds", type=int, default=7)
    sub.add_argument("--plot", metavar="FILE", help="speeds of the engines: .png, .svg, .pdf")
    sub.add_argument("--json", metavar="FILE", help="write every figure")


def _workloads(files: Sequence[str]) -> dict[str, Sequence[str]]:
    """NAME=FILE:LINES -> texts; name and lines may be left out."""
    from minifuse.bench import sample_text
    from minifuse.files.texts import read_texts

    if not files:
        return {"short": sample_text.sentences(1000), "paragraphs": sample_text.paragraphs(300)}
    workloads: dict[str, Sequence[str]] = {}
    for item in files:
        name, _, path = item.rpartition("=")
        path, _, lines = path.partition(":")
        if lines and not lines.isdecimal():
            raise ValueError(f"{item}: wanted a number of lines behind the colon, got {lines!r}")
        count = int(lines) if lines else None
        name = name or Path(path).stem
        if name in workloads:
            raise ValueError(f"two workloads are called {name!r}: give NAME=FILE")
        workloads[name] = list(itertools.islice(read_texts(path), count))
        if not workloads[name]:
            raise ValueError(f"{item} holds no texts to measure with")
    return workloads


def _split(file: str) -> tuple[str, str]:
    """NAME=FILE[:LINES] -> (NAME, FILE[:LINES])."""
    name, _, path = file.rpartition("=")
    return name, path


def _check_outputs(arguments: argparse.Namespace) -> None:
    paths = [_split(file)[1] for file in arguments.files]
    inputs = [*paths, *(path.rpartition(":")[0] for path in paths)]
    outputs = [output for output in (arguments.json, arguments.plot) if output]
    for output in outputs:
        check_distinct(output, filter(None, inputs))
        if not Path(output).parent.is_dir():
            raise FileNotFoundError(f"{Path(output).parent}: the folder does not exist")
    if arguments.plot:
        check_plot(arguments.plot)
    if len(outputs) == 2 and Path(outputs[0]).absolute() == Path(outputs[1]).absolute():
        raise ValueError(f"--json and --plot are both {arguments.plot}")
    if arguments.rounds < 1:
        raise ValueError(f"--rounds is {arguments.rounds}, wanted at least 1")
    if arguments.threads is not None and not 1 <= arguments.threads <= 1024:
        raise ValueError(f"--threads is {arguments.threads}, wanted 1..1024")


def _run(arguments: argparse.Namespace) -> int:
    """Measure, print the tables, and write what was asked for; the exit status."""
    from minifuse import hardware
    from minifuse.bench import encode, ops, report, timing

    _check_outputs(arguments)
    if arguments.device not in (None, "cpu"):
        return _bench_device(arguments)
    threads = arguments.threads or hardware.describe()["num_threads"]
    if arguments.ops:
        rows = ops.bench_ops(threads, arguments.rounds)
        columns = {
            "op": "op",
            "tokens": "tokens",
            "torch_us": "PyTorch us",
            "packed_us": "ours us",
            "speedup_packed": "speed-up",
            "unpacked_us": "unpacked us",
            "speedup_unpacked": "speed-up unpacked",
        }
        print(report.format_table(rows, columns))
        lost = [f"{r['op']} at {r['tokens']}" for r in rows if r["speedup_packed"] <= 1]
        lost += [
            f"{r['op']} at {r['tokens']}, unpacked"
            for r in rows
            if r["speedup_unpacked"] is not None and r["speedup_unpacked"] <= 1
        ]
        print("\nslower than PyTorch:", "; ".join(lost) or "none")
        if arguments.json:
            report.write_json(arguments.json, {"machine": timing.machine(), "rows": rows})
        return 0
    if arguments.profile:
        return _bench_profile(arguments, threads)
    dtypes = hardware.DTYPES if arguments.peers else ("float32",)
    result = encode.bench_encode(
        arguments.model, _workloads(arguments.files), QUERY, threads, arguments.rounds, dtypes
    )
    for name, workload in result["workloads"].items():
        print(f"\n{name}: {workload['num_texts']} texts, {workload['num_tokens']} tokens")
        columns = {
            "engine": "engine",
            "dtype": "dtype",
            "tokens_per_second": "tokens/s",
            "ours_over_theirs": "ours / theirs",
            "cosine_min": "cosine min",
            "cosine_mean": "mean",
        }
        print(report.format_table(workload["rows"], columns))
        for dtype, share in result["encoder"][name].items():
            print(
                f"encoder alone, {dtype}: {share['tokens_per_second']:,.0f} tokens/s, "
                f"{share['gflops']:.0f} of {share['peak_gflops']:.0f} GFLOP/s = "
                f"{share['share_of_peak']:.1%} of the ceiling; "
                f"a tile in L1: {share['tile_share_of_peak']:.1%}"
            )
    print(f"\none query of {result['query']['num_tokens']} tokens")
    columns = {
        "engine": "engine",
        "dtype": "dtype",
        "p50_ms": "p50 ms",
        "p99_ms": "p99 ms",
        "ours_over_theirs_time": "our time / theirs",
    }
    print(report.format_table(result["query"]["rows"], columns))
    print("\nseconds to the first vector, and peak memory of a process")
    columns = {
        "engine": "engine",
        "dtype": "dtype",
        "startup_seconds": "start-up s",
        "peak_mib": "peak MiB",
    }
    print(report.format_table(result["footprint"], columns))
    if arguments.plot:
        report.plot_encode(result, arguments.plot)
    return _tell_absent_and_write(arguments, result)


def _tell_absent_and_write(arguments: argparse.Namespace, result: dict[str, Any]) -> int:
    """Print what did not run and why, and write the figures to the files that were asked for."""
    from minifuse.bench import report

    for name, reason in result["absent"].items():
        print(f"{name}: {reason}")
    if arguments.json:
        report.write_json(arguments.json, result)
    return 0


def _bench_device(arguments: argparse.Namespace) -> int:
    from minifuse.bench import device, report, timing

    if arguments.profile or arguments.peers or arguments.plot:
        raise ValueError("--device goes with --ops, --rounds and --json only")
    if arguments.ops:
        rows = device.bench_device_ops(arguments.device, rounds=arguments.rounds)
        columns = {
            "op": "op",
            "tokens": "tokens",
            "torch_us": "PyTorch us",
            "compiled_us": "compiled us",
            "ours_us": "ours us",
            "speedup": "speed-up",
            "share_of_peak": "share of peak",
        }
        print(report.format_table(rows, columns))
        if arguments.json:
            report.write_json(arguments.json, {"machine": timing.machine(), "rows": rows})
        return 0
    result = device.bench_device(
        arguments.model, _workloads(arguments.files), QUERY, arguments.device, arguments.rounds
    )
    print(result["machine"]["device"])
    columns = {
        "engine": "engine",
        "dtype": "dtype",
        "batch_size": "batch size",
        "encoder_tokens_per_second": "encoder tokens/s",
        "encode_tokens_per_second": "encode tokens/s",
        "cosine_min": "cosine min",
        "share_of_peak": "share of peak",
    }
    for name, workload in result["workloads"].items():
        print(f"\n{name}: {workload['num_texts']} texts, {workload['num_tokens']} tokens")
        print(report.format_table(workload["rows"], columns))
    print("\none query")
    columns = {
        "engine": "engine",
        "dtype": "dtype",
        "encoder_us": "encoder us",
        "encode_us": "encode us",
    }
    print(report.format_table(result["query"], columns))
    return _tell_absent_and_write(arguments, result)


def _bench_profile(arguments: argparse.Namespace, threads: int) -> int:
    from minifuse import SentenceTransformer, hardware
    from minifuse.bench import encode, report, timing

    columns = {"stage": "stage", "share": "share", "us_per_token": "us a token"}
    tables: dict[str, Any] = {}
    for dtype in hardware.DTYPES:
        model = SentenceTransformer(arguments.model, dtype=dtype, num_threads=threads)
        for name, texts in _workloads(arguments.files).items():
            rows = encode.bench_profile(model, texts, threads, arguments.rounds)
            tables[f"{name}, {dtype}"] = rows
            print(f"\n{name}, {dtype} ({model.isa}): {len(texts)} texts, {threads} threads")
            print(report.format_table(rows, columns))
    if arguments.json:
        report.write_json(arguments.json, {"machine": timing.machine(), "profiles": tables})
    return 0
