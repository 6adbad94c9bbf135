"""The command line: every input and output format, and what it says when something is wrong."""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from minifuse import SentenceTransformer, hardware
from minifuse.cli import main

TEXTS = ["the sky is blue", "a lazy dog", "", 'jumping "dogs"']


@pytest.fixture
def inputs(tmp_path):
    (tmp_path / "x.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    rows = [json.dumps({"id": i, "text": t}) for i, t in enumerate(TEXTS)]
    (tmp_path / "x.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (tmp_path / "x.tsv").write_text(
        "id\ttext\n" + "".join(f"{i}\t{t}\n" for i, t in enumerate(TEXTS)), encoding="utf-8"
    )
    quoted = ['"' + t.replace('"', '""') + '"' for t in TEXTS]
    (tmp_path / "x.csv").write_text(
        "text,id\n" + "".join(f"{t},1\n" for t in quoted), encoding="utf-8"
    )
    return tmp_path


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "tsv", "csv"])
def test_every_input(run, inputs, tiny, suffix):
    column = [] if suffix == "txt" else ["--column", "text"]
    run("encode", inputs / f"x.{suffix}", "-o", inputs / "out.npy", "--no-progress", *column)
    np.testing.assert_array_equal(np.load(inputs / "out.npy"), tiny.encode(TEXTS))


def test_every_output(run, inputs, tiny):
    expected = tiny.encode(TEXTS, normalize_embeddings=True)
    for suffix in ("npy", "jsonl", "parquet"):
        run(
            "encode",
            inputs / "x.txt",
            "-o",
            inputs / f"out.{suffix}",
            "--normalize",
            "--no-progress",
        )
    np.testing.assert_array_equal(np.load(inputs / "out.npy"), expected)
    rows = [json.loads(line) for line in (inputs / "out.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == TEXTS
    np.testing.assert_array_equal(np.array([r["embedding"] for r in rows], np.float32), expected)
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(inputs / "out.parquet").to_pydict()
    assert table["text"] == TEXTS
    np.testing.assert_array_equal(np.array(table["embedding"], np.float32), expected)
    assert not list(inputs.glob(".*partial"))


def test_several_inputs_and_none(run, inputs, tiny):
    run("encode", inputs / "x.txt", inputs / "x.txt", "-o", inputs / "out.npy", "--no-progress")
    assert np.load(inputs / "out.npy").shape == (8, 48)
    (inputs / "empty.txt").write_text("")
    run("encode", inputs / "empty.txt", "-o", inputs / "out.npy", "--no-progress")
    assert np.load(inputs / "out.npy").shape == (0, 48)


def test_standard_input_and_progress(inputs, tiny_folder):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "minifuse.cli",
            "encode",
            "-o",
            str(inputs / "out.npy"),
            "-m",
            str(tiny_folder),
        ],
        input="a dog\nthe sky\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert np.load(inputs / "out.npy").shape == (2, 48)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["encode", "absent.txt", "-o", "{}/out.npy"], "absent.txt"),
        (["encode", "{}/x.txt", "-o", "{}/out.csv"], "wanted an ending of .npy"),
        (["encode", "{}/x.txt", "-o", "{}/no/folder/out.npy"], "the folder does not exist"),
        (["encode", "{}/pairs.csv", "-o", "{}/out.npy"], "It has first, second: pass --column"),
        (
            ["encode", "{}/x.jsonl", "-o", "{}/out.npy", "--column", "nope"],
            "line 1: 'nope' is missing",
        ),
        (["encode", "{}/x.jsonl", "-o", "{}/out.npy", "--column", "id"], "'id' is int"),
        (
            ["encode", "{}/x.csv", "-o", "{}/out.npy", "--column", "nope"],
            "column 'nope' is missing",
        ),
        (["encode", "{}/x.txt", "-o", "{}/out.npy", "--batch-size", "0"], "batch_size must be"),
        (["info", "--schedule", "4294967299"], "below 2^31 together"),
        (["info", "--schedule=-1"], "token counts are"),
        (["encode", "{}/bad.txt", "-o", "{}/out.npy"], "not UTF-8"),
        (["evaluate", "{}/x.tsv"], "wanted score, sentence1, sentence2"),
        (["evaluate", "{}"], "corpus.jsonl"),
        (["evaluate", "{}/constant.tsv"], "nothing to correlate with"),
        (["evaluate", "{}/words.tsv"], "line 2: score is 'x'"),
        (["evaluate", "{}/same.tsv"], "all cosines are 1"),
        (
            ["encode", "{}/x.txt", "-o", "{}/out.npy", "--column", "text"],
            "no input has a column 'text'",
        ),
        (["encode", "-", "-o", "{}/out.npy", "--column", "text"], "no input has a column 'text'"),
        (["encode", "{}/x.txt", "{}/gone.txt", "-o", "{}/out.npy"], "gone.txt: no such file"),
        (["encode", "{}/x.txt", "{}/pairs.csv", "-o", "{}/out.npy"], "which column holds the text"),
        (["encode", "{}", "-o", "{}/out.npy"], "is a folder, wanted a file of texts"),
        (
            ["encode", "{}/gaps.tsv", "-o", "{}/out.npy", "--column", "text"],
            "line 3: an empty line in a table of one column",
        ),
        (["index", "build", "{}/x.txt", "-o", "{}/a.index", "--codes-only"], "is for --dtype int8"),
        (["bench", "--rounds", "0"], "--rounds is 0, wanted at least 1"),
        (["bench", "--threads", "-3"], "--threads is -3, wanted 1..1024"),
        (["bench", "--json", "{}/no/r.json"], "the folder does not exist"),
        (["bench", "--plot", "{}/r.jpg"], "wanted an ending of .png"),
        (["bench", "{}/x.txt", "{}/x.txt"], "two workloads are called 'x'"),
        (["bench", "{}/x.txt:many"], "wanted a number of lines behind the colon"),
        (["bench", "{}/x.txt:0"], "holds no texts"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_left(run, inputs, arguments, text):
    (inputs / "bad.txt").write_bytes(b"fine\n\xff\xfe\n")
    header = "score\tsentence1\tsentence2\n"
    (inputs / "constant.tsv").write_text(header + "1\ta\tb\n1\tc\td\n")
    (inputs / "words.tsv").write_text(header + "x\ta\tb\n")
    (inputs / "same.tsv").write_text(header + "1\ta\ta\n2\tb\tb\n")
    (inputs / "gaps.tsv").write_text("text\na\n\nb\n")
    (inputs / "pairs.csv").write_text("first,second\na,b\n")
    (inputs / "out.npy").write_text("what was there before")
    printed = run(*(a.replace("{}", str(inputs)) for a in arguments), status=2)
    assert text in printed.err
    assert (inputs / "out.npy").read_text() == "what was there before"
    assert not list(inputs.glob(".*partial"))


def test_the_column_is_that_of_inputs_that_have_one(run, inputs):
    run("encode", inputs / "x.txt", inputs / "x.jsonl", "--column", "text", "-o",
        inputs / "both.npy")  # fmt: skip
    assert len(np.load(inputs / "both.npy")) == 2 * len(TEXTS)


def test_an_empty_input_has_the_width_that_is_asked(run, inputs):
    (inputs / "empty.txt").write_text("")
    run("encode", inputs / "empty.txt", "-o", inputs / "out.npy", "--truncate-dim", "8")
    assert np.load(inputs / "out.npy").shape == (0, 8)
    run("encode", inputs / "empty.txt", "-o", inputs / "no.npy", "--truncate-dim", "-5", status=2)
    assert not (inputs / "no.npy").exists()


def test_the_standard_input_is_read_as_a_file_is(inputs, tiny_folder):
    data = "\ufeffone two\r\nth\u00e9 sky\n".encode()
    (inputs / "bom.txt").write_bytes(data)
    command = [sys.executable, "-m", "minifuse.cli", "encode", "-m", str(tiny_folder)]
    outputs = []
    for name in ("bom.txt", "-"):
        out = inputs / f"{len(outputs)}.jsonl"
        source = name if name == "-" else str(inputs / name)
        done = subprocess.run(
            [*command, source, "-o", str(out)], input=data, capture_output=True, check=False,
            env=os.environ | {"LC_ALL": "C", "PYTHONIOENCODING": "latin-1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        outputs.append(out.read_text(encoding="utf-8"))
    assert outputs[0] == outputs[1]
    done = subprocess.run(
        [*command, "-", "-o", str(inputs / "x.npy")], input=b"\xff\n", capture_output=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert b"the standard input is not UTF-8" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="closes descriptors in a POSIX shell")
def test_a_closed_standard_error_is_no_error(inputs, tiny_folder):
    command = f"'{sys.executable}' -m minifuse.cli encode -m '{tiny_folder}' '{inputs}/x.txt'"
    done = subprocess.run(
        f"{command} -o '{inputs}/out.npy' 2>&-", shell=True, capture_output=True, check=False
    )
    assert done.returncode == 0
    assert np.load(inputs / "out.npy").shape == (len(TEXTS), 48)
    done = subprocess.run(
        f"{command} -o '{inputs}/out.csv' 2>&-", shell=True, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, b"")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM for others")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_an_ended_command_leaves_no_temporary_files(inputs, tiny_folder, name):
    number = getattr(signal, name)
    process = subprocess.Popen(
        [sys.executable, "-m", "minifuse.cli", "encode", "-", "-m", str(tiny_folder),
         "-o", str(inputs / "out.npy")],
        stdin=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # nohup ignores one
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(b"a dog\n")
    process.stdin.flush()
    end = time.monotonic() + 60
    while not list(inputs.glob(".*partial")):
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert b"interrupted, nothing was kept" in error
    assert not list(inputs.glob(".*partial"))


def test_a_full_disk_leaves_nothing(run, inputs, monkeypatch):
    from minifuse.files import vectors as writers

    def full(self, texts, vectors):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writers._NpyWriter, "write", full)
    printed = run("encode", inputs / "x.txt", "-o", inputs / "out.npy", "--no-progress", status=2)
    assert "No space left" in printed.err
    assert sorted(p.name for p in inputs.iterdir()) == ["x.csv", "x.jsonl", "x.tsv", "x.txt"]


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["encode", "{}/x.txt", "-o", "{}/out.npy"], "interrupted, nothing was kept"),
        (
            ["index", "build", "{}/x.txt", "-o", "{}/out.index"],
            "interrupted, run it again to go on",
        ),
    ],
)
def test_ctrl_c_is_told_in_one_line(run, inputs, monkeypatch, command, text):
    def interrupted(self, *args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(SentenceTransformer, "encode", interrupted)
    printed = run(*(a.replace("{}", str(inputs)) for a in command), "--no-progress", status=130)
    assert printed.err == f"minifuse {command[0]}: {text}\n"
    assert not (inputs / "out.npy").exists()


def test_similarity(run, tiny):
    value = json.loads(run("similarity", "a dog", "the sky", "--json").out)
    e = tiny.encode(["a dog", "the sky"])
    np.testing.assert_allclose(value["similarity"], tiny.similarity(e, e), atol=1e-6)
    assert "a dog" in run("similarity", "a dog", "the sky").out


def test_evaluate(run, tmp_path):
    rows = [("5", "a dog", "a dog"), ("0", "the sky", "jump"), ("2", "a dog", "lazy dog")]
    (tmp_path / "p.tsv").write_text(
        "score\tsentence1\tsentence2\n" + "".join("\t".join(r) + "\n" for r in rows)
    )
    value = json.loads(run("evaluate", tmp_path / "p.tsv", "--json").out)
    assert value["num_pairs"] == 3
    assert -1 <= value["kendall"] <= 1
    assert "spearman" in run("evaluate", tmp_path / "p.tsv").out


def test_evaluate_prints_float32_beside_another_dtype(run, tmp_path):
    (tmp_path / "p.tsv").write_text(
        "score\tsentence1\tsentence2\n5\ta cat\ta cat\n1\ta cat\tthe sky\n2\tred\tblue sky\n"
    )
    scores = json.loads(run("evaluate", tmp_path / "p.tsv", "--dtype", "int8", "--json").out)
    assert list(scores) == ["int8", "float32"]
    assert scores["int8"].keys() == scores["float32"].keys()
    table = run("evaluate", tmp_path / "p.tsv", "--dtype", "bfloat16").out.splitlines()
    assert table[0].split() == ["bfloat16", "float32", "difference"]
    assert len(table) == 5


def test_profile_accounts_for_the_whole_encode(run, tmp_path):
    (tmp_path / "lines.txt").write_text("the sky is blue\na red car\n" * 40)
    path = tmp_path / "profile.json"
    out = run(
        "bench", "--profile", f"x={tmp_path}/lines.txt", "--rounds", "2", "--json", path
    ).out  # fmt: skip
    profiles = json.loads(path.read_text())["profiles"]
    assert list(profiles) == ["x, float32", "x, bfloat16", "x, int8"]
    for name, rows in profiles.items():
        assert name.split(", ")[1] in out
        *parts, whole = rows
        assert whole["stage"] == "encode"
        total = sum(row["us_per_token"] for row in parts)
        np.testing.assert_allclose(total, whole["us_per_token"], rtol=1e-6)
        times = {row["stage"]: row["us_per_token"] for row in parts}
        assert times["matrix products"] > 0
        # Float rows lie as they are: what is counted is reading the counter, a ten-thousandth.
        # int8 rounds its rows on every set, bfloat16 where an instruction multiplies pairs of it.
        is_rounded = times["quantisation"] > 0.01 * times["matrix products"]
        dtype = name.removeprefix("x, ")
        isa = hardware.describe()["isa"][dtype]
        rounds = dtype == "int8" or (dtype == "bfloat16" and isa in ("avx512_bf16", "amx"))
        assert is_rounded == rounds


def test_evaluate_retrieval(run, tmp_path):
    rows = {
        "corpus.jsonl": '{"_id": "d1", "text": "a lazy dog"}\n{"_id": "d2", "text": "the sky"}\n',
        "queries.jsonl": '{"_id": "q1", "text": "a lazy dog"}\n',
        "qrels.tsv": "query-id\tcorpus-id\tscore\nq1\td1\t1\n",
    }
    for name, text in rows.items():
        (tmp_path / name).write_text(text)
    value = json.loads(run("evaluate", tmp_path, "--json").out)
    assert value["num_documents"] == 2
    assert value["ndcg_at_10"] == 1
    assert "mrr_at_10" in run("evaluate", tmp_path).out


def test_parity(run):
    printed = run("parity", "--limit", 10)
    assert "BEYOND" not in printed.out
    assert "gelu_ffn" in printed.out


def test_parity_fails_beyond_the_tolerance(run, monkeypatch):
    monkeypatch.setattr("minifuse.bench.parity._EMBEDDING_BOUND", 1e-12)
    assert "BEYOND THE BOUND" in run("parity", "--limit", 5, status=1).out


def test_info(run):
    assert "float32" in run("info", model=False).out


@pytest.mark.parametrize("command", ["encode", "similarity", "evaluate", "parity", "bench", "info"])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert "usage: minifuse" in capsys.readouterr().out


def test_nobody_reads_on():
    """As `minifuse info | head -0`: no word, and the status of a program that SIGPIPE ends."""
    command = [sys.executable, "-m", "minifuse.cli", "info"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_models_of_the_caches(tiny_folder, tmp_path, monkeypatch, capsys):
    """Each with its class, or the reason why it does not run; then the families."""
    monkeypatch.setenv("MINIFUSE_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(tmp_path / "hub"))
    assert main(["models"]) == 0
    shown = capsys.readouterr().out
    assert "no model in the cache" in shown
    assert "xlm-roberta" in shown

    shutil.copytree(tiny_folder, tmp_path / "own" / "tiny")
    for name, changes in (("me--good", {}), ("me--odd", {"model_type": "deberta"})):
        repo = tmp_path / "hub" / f"models--{name}"
        (repo / "refs").mkdir(parents=True)
        (repo / "refs" / "main").write_text("a" * 40)
        folder = repo / "snapshots" / ("a" * 40)
        shutil.copytree(tiny_folder, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))
    assert main(["models", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    cached = {row["name"]: row for row in found["cached"]}
    assert set(cached) == {"tiny", "me/good", "me/odd"}
    for name in ("tiny", "me/good"):
        row = cached[name]
        assert (row["class"], row["family"], row["width"]) == ("SentenceTransformer", "bert", 48)
        assert row["MB"] > 0
    assert "does not run" in cached["me/odd"]["remark"]
    assert "deberta" in cached["me/odd"]["remark"]
    assert {row["family"] for row in found["families"]} >= {"bert", "modernbert", "qwen3"}


def test_bars_are_for_a_terminal(run, tmp_path, monkeypatch):
    path = tmp_path / "pairs.tsv"
    rows = [f"{i}\t{a}\t{b}" for i, (a, b) in enumerate(itertools.pairwise(TEXTS))]
    path.write_text("\n".join(["score\tsentence1\tsentence2", *rows]) + "\n")
    arguments = ("evaluate", path)
    assert run(*arguments).err == ""
    logger = logging.getLogger("minifuse.base_model")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    try:
        assert "Sentences" not in run(*arguments, "-q").err
        assert "Sentences" in run(*arguments).err
    finally:
        logger.setLevel(logging.NOTSET)
