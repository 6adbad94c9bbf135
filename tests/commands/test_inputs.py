"""Commands read files, columns and texts in quotes; bars and summaries tell what becomes of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from minifuse import SentenceTransformer
from minifuse.cli import inputs, main
from minifuse.models import resolve
from minifuse.models.pipeline import EncodeInfo

TEXTS = ["the sky is blue.", "a dog runs", "lazy dogs jump over the sky", "the dog"]


@pytest.fixture
def notes(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    return path


def test_a_text_in_quotes_goes_to_the_standard_output(tiny, tiny_folder):
    done = subprocess.run(
        [sys.executable, "-m", "minifuse", "encode", TEXTS[0], "-o", "-", "-m", str(tiny_folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    row = json.loads(done.stdout)
    assert row["text"] == TEXTS[0]
    np.testing.assert_array_equal(np.array(row["embedding"], np.float32), tiny.encode(TEXTS[0]))
    assert done.stderr.startswith("1 text -> - (1 x 48), ")


def test_what_is_a_text_and_what_is_a_missing_file(run, tmp_path, notes, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "o.npy"
    for given in ("absent", "my notes.txt", "two words.CSV"):
        printed = run("encode", given, "-o", out, status=2)
        assert f"{given}: no such file" in printed.err
    (tmp_path / "d.csv").mkdir()
    assert "is a folder" in run("encode", "d.csv", "-o", out, status=2).err
    (tmp_path / "e.csv").write_text("")
    assert "column 'text' is missing" in run("encode", "e.csv", "-o", out, status=2).err
    assert (
        "no input has a column 'x'"
        in run("encode", "a dog", "--column", "x", "-o", out, status=2).err
    )
    (tmp_path / "a dog").write_text("one\ntwo\n")
    run("encode", "a dog", "a cat runs", "x" * 5000 + " y", "-o", out)
    assert len(np.load(out)) == 2 + 1 + 1
    run("encode", "x" * 5000 + " y", "-o", out)  # which is there now
    assert len(np.load(out)) == 1


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("one.csv", 'body\n"a dog"\n', ["a dog"]),
        ("text.tsv", "id\ttext\n1\ta dog\n", ["a dog"]),
        ("text.jsonl", '{"id": 1, "text": "a dog"}\n', ["a dog"]),
        ("one.ndjson", '\n{"body": "a dog"}\n', ["a dog"]),
        ("empty.jsonl", "", []),
        ("two.jsonl", '{"id": 1, "text": "a"}\n{"text": "b", "id": 2}\n', ["a", "b"]),
    ],
)
def test_the_column_is_the_only_one_or_text(run, tmp_path, name, content, expected):
    (tmp_path / name).write_text(content)
    run("encode", tmp_path / name, "-o", tmp_path / "o.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == expected


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", "id,body\n1,x\n"), ("a.jsonl", '{"id": 1, "body": "x"}\n')],
)
def test_columns_are_listed_where_one_has_to_be_chosen(run, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    printed = run("encode", tmp_path / name, "-o", tmp_path / "o.npy", status=2)
    assert "which column holds the text? It has id, body: pass --column NAME" in printed.err


def test_a_wrong_line_is_told_before_a_model_is_loaded(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("text\n" + "a dog\n" * 5000 + '"open')
    arguments = ["encode", str(tmp_path / "a.csv"), "-o", str(tmp_path / "o.npy")]
    assert main([*arguments, "-m", str(tmp_path / "no model")]) == 2
    assert "line 5002: not a row of a table" in capsys.readouterr().err


def test_a_text_is_told_by_its_number_in_the_input(run, tmp_path):
    texts = ["a dog"] * 100
    (tmp_path / "a.txt").write_text("\n".join([*texts[:80], "the sky " * 100, *texts[80:]]))
    arguments = ("encode", tmp_path / "a.txt", "-o", tmp_path / "o.npy")
    printed = run(*arguments, "--truncation", "error", status=2)
    assert "text 81 has more than 32 tokens and would be cut" in printed.err
    assert not (tmp_path / "o.npy").exists()
    assert "101 texts -> " in (told := run(*arguments).err)
    assert "(101 x 48), 1 cut at 32 tokens, " in told
    assert run(*arguments, "-q").err == ""
    rows = [json.dumps({"text": text}) for text in [*texts, "a \ud800 dog"]]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    printed = run("encode", tmp_path / "a.jsonl", "-o", tmp_path / "o.npy", status=2)
    assert "text 101 holds a lone surrogate at character 2" in printed.err


def test_more_dimensions_than_there_are_cannot_be_kept(run, notes, tmp_path):
    printed = run("encode", notes, "-o", tmp_path / "o.npy", "--truncate-dim", 500, status=2)
    assert "--truncate-dim is 500, and the vectors have 48 dimensions" in printed.err


def test_inputs_are_counted_where_they_can_be_read_twice(notes, tmp_path, monkeypatch):
    assert inputs.open_inputs([str(notes), "a text"], None).total == len(TEXTS) + 1
    assert list(inputs.open_inputs([str(notes), "a text"], None).texts) == [*TEXTS, "a text"]
    assert inputs.open_inputs([str(notes), "-"], None).total is None
    (tmp_path / "bad.txt").write_bytes(b"\xff\n")
    with pytest.raises(ValueError, match="not UTF-8"):  # though the standard input comes behind it
        inputs.open_inputs([str(tmp_path / "bad.txt"), "-"], None)
    monkeypatch.setattr(inputs, "_MOST_BYTES", 10)
    assert inputs.open_inputs([str(notes)], None).total is None
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.txt")
        assert inputs.open_inputs([str(tmp_path / "pipe.txt")], None).total is None


class Slow:
    """A model that takes 10 ms for each of the first 1,500 texts and 200 ms for later ones."""

    max_seq_length = 64

    def __init__(self, monkeypatch):
        self.now, self.sizes = 0.0, []
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def encode(self, texts, **options):
        self.now += len(texts) * (0.01 if sum(self.sizes) < 1500 else 0.2)
        self.sizes.append(len(texts))
        tokens, cut = np.ones(len(texts), np.int64), np.zeros(len(texts), np.bool_)
        return np.ones((len(texts), 4), np.float32), EncodeInfo(tokens, cut)


def test_pieces_take_about_a_second(monkeypatch):
    model = Slow(monkeypatch)
    with inputs.Encoding(model, 3000, is_quiet=True) as encoding:
        for first in range(0, 3000, 1000):
            assert encoding.vectors(["x"] * min(1000, 3000 - first)).shape == (1000, 4)
    assert (sum(model.sizes), encoding.done) == (3000, 3000)
    assert model.sizes[:3] == [16, 32, 64]
    assert max(model.sizes) == 64  # 0.64 s is near enough
    assert set(model.sizes[-20:-1]) == {8}


def test_the_summary(monkeypatch, capsys):
    with inputs.Encoding(Slow(monkeypatch), 3, is_quiet=False) as encoding:
        encoding.vectors(["x"] * 3)
        encoding.cut = 1
    encoding.tell("a.npy (3 x 4)")
    assert capsys.readouterr().err == "3 texts -> a.npy (3 x 4), 1 cut at 64 tokens, 0.0 s\n"


def test_parquet_is_the_same_however_fast_the_model_is(run, notes, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    run("encode", *[notes] * 1500, "-o", tmp_path / "o.parquet")
    file = parquet.ParquetFile(tmp_path / "o.parquet")
    groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert groups == [4096, 1904]


@pytest.mark.skipif(sys.platform == "win32", reason="redirects streams in a POSIX shell")
def test_streams_that_nobody_reads_or_that_are_full(notes, tmp_path, tiny_folder):
    command = f"'{sys.executable}' -m minifuse encode -m '{tiny_folder}' '{notes}'"

    def shell(text):
        return subprocess.run(text, shell=True, capture_output=True, text=True, check=False)

    if os.path.exists("/dev/full"):
        assert shell(f"{command} -o '{tmp_path}/o.npy' 2>/dev/full").returncode == 0
        assert shell(f"{command} -o - >/dev/full").returncode != 0
    done = shell(f"{command} -o - >> '{notes}'")
    assert (done.returncode, notes.read_text().count("\n")) == (2, len(TEXTS))
    assert f"the standard output is the input {notes}" in done.stderr


def test_the_standard_input_is_no_file_called_minus(tiny_folder, tmp_path):
    (tmp_path / "-").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "minifuse", "encode", "-", "-o", "-", "-q", "-m", str(tiny_folder)],
        input="a dog\n", capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert json.loads(done.stdout)["text"] == "a dog"


def test_printed_text_steers_no_terminal(run):
    given = "a \x9b31m dog \u202e"
    shown = run("encode", given, "-o", "-").out
    assert "\x9b" not in shown
    assert "\u202e" not in shown
    assert json.loads(shown)["text"] == given


def test_a_build_goes_on_where_it_was(run, tmp_path):
    path = tmp_path / "a.index"
    texts = [f"a dog {i % 50}" for i in range(5000)]
    (tmp_path / "a.txt").write_text("\n".join(texts[:4500]))
    run("index", "build", tmp_path / "a.txt", "-o", path)
    (tmp_path / "a.txt").write_text("\n".join(texts))
    told = run("index", "build", tmp_path / "a.txt", "-o", path)
    assert "4500 texts are there already" in told.err
    assert "500 texts -> " in told.err
    assert "(5,000 x 48)" in told.err
    rows = [json.dumps({"text": text}) for text in [*texts, "a \ud800 dog"]]
    (tmp_path / "b.jsonl").write_text("\n".join(rows))
    told = run("index", "build", tmp_path / "b.jsonl", "-o", tmp_path / "b.index", status=2)
    assert "text 5,001 holds a lone surrogate" in told.err


def test_a_failed_build_leaves_no_index(run, tmp_path, monkeypatch):
    path = tmp_path / "a.index"

    def fails(self, *args, **kwargs):
        raise ValueError("no")

    (tmp_path / "a.txt").write_text("a dog\n")
    with monkeypatch.context() as patch:
        patch.setattr(SentenceTransformer, "encode", fails)
        run("index", "build", tmp_path / "a.txt", "-o", path, status=2)
    assert not path.exists()
    told = run("index", "build", tmp_path / "a.txt", "-o", path)
    assert "1 text -> " in told.err
    (tmp_path / "none.txt").write_text("")
    run("index", "build", tmp_path / "none.txt", "-o", tmp_path / "none.index")
    assert (tmp_path / "none.index").exists()


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("all-MinLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
        ("sentence-transformer/all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
        ("sentence-transformers/all-mpnet-base-v2", None),
        ("BAAI/bge-smal-en-v1.5", "BAAI/bge-small-en-v1.5"),
        ("me/my-owm-model", "me/my-own-model"),
        ("something-else", None),
        ("BAAI/bge-small-en-v1.5", None),
    ],
)
def test_a_mistyped_name(tmp_path, given, meant):
    (tmp_path / "models--me--my-own-model").mkdir()
    question = resolve._meant(given, tmp_path)
    assert question == ("" if meant is None else f"; did you mean {meant!r}?")


def test_info_for_people_and_for_programs(run):
    shown = run("info", model=False).out
    assert "{" not in shown
    assert "float32 " in shown
    assert set(json.loads(run("info", "--json", model=False).out)["isa"]) >= {"float32", "int8"}
    assert json.loads(run("info", "--json", "--schedule", "5,3").out)["schedules"]
