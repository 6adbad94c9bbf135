"""Texts are read whole or refused, and outputs appear whole, beside nobody else's, or not at all."""

from __future__ import annotations

import csv
import os
import stat
import subprocess
import sys

import numpy as np
import pytest

from minifuse.cli import main
from minifuse.files.texts import read_header, read_rows, read_texts
from minifuse.files.vectors import open_writer
from minifuse.files.whole import replacing

# ---- texts in ------------------------------------------------------------------------------------


def test_a_row_with_more_fields_than_the_header(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("id,text\n1,hello\n2,hello, world\n")
    texts = read_texts(str(path), "text")
    assert next(texts) == "hello"
    with pytest.raises(ValueError, match=r"x\.csv, line 3: 3 columns, the header has 2"):
        next(texts)
    path.write_text('id,text\n\n\n1,"two\nlines"\n\n2,hello, world\n')  # empty lines count as lines
    with pytest.raises(ValueError, match=r"x\.csv, line 7: 3 columns"):
        list(read_texts(str(path), "text"))
    path.write_text('id,text\n\n1,"two\nlines",more\n')
    with pytest.raises(ValueError, match=r"x\.csv, line 3: 3 columns"):
        list(read_texts(str(path), "text"))
    path.with_suffix(".tsv").write_text("id\ttext\n1\ta\tb\n")
    with pytest.raises(ValueError, match="line 2: 3 columns"):
        list(read_rows(path.with_suffix(".tsv"), ["text"]))


def test_a_quotation_without_an_end(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('id,text\n1,a\n2,"b\n3,c\n4,d\n')
    with pytest.raises(ValueError, match=r"x\.csv, line 3: .*quotation mark"):
        list(read_texts(str(path), "text"))
    path.write_text('id,text\n1,"two\nlines"\n2,b\n')
    assert list(read_texts(str(path), "text")) == ["two\nlines", "b"]
    path.write_text('"id,text\n')
    with pytest.raises(ValueError, match="not a table"):
        read_header(path)


def test_any_text_written_by_csv_comes_back(tmp_path):
    path = tmp_path / "x.csv"
    texts = ["", "plain", 'with "quotes"', "a,b", "line\nbreak", "\ttab", "é 中", '"']
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "text"])
        rows.writerows(enumerate(texts))
    assert list(read_texts(str(path), "text")) == texts


def test_a_column_that_stands_there_twice(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("text,text\na,b\n")
    with pytest.raises(ValueError, match="column 'text' stands there twice"):
        list(read_texts(str(path), "text"))


def test_only_a_line_feed_ends_a_line(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes("a\rb\x0b\u2028c\r\n\nd".encode())
    assert list(read_texts(str(path))) == ["a\rb\x0b\u2028c", "", "d"]
    read = subprocess.run(
        [
            sys.executable,
            "-c",
            "from minifuse.files.texts import read_texts; print(list(read_texts('-')))",
        ],
        input=path.read_bytes(),
        env=os.environ | {"PYTHONUTF8": "1"},
        capture_output=True,
        check=True,
    )
    assert read.stdout.decode().strip() == repr(["a\rb\x0b\u2028c", "", "d"])


@pytest.mark.parametrize(("name", "content"), [("x.txt", "a"), ("x.csv", "text\na"),
                                               ("x.jsonl", '{"text": "a"}')])  # fmt: skip
def test_a_byte_order_mark_is_no_text(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8-sig")
    column = None if name == "x.txt" else "text"
    assert list(read_texts(str(path), column)) == ["a"]


# ---- files out -----------------------------------------------------------------------------------


def test_an_output_never_overwrites_its_input(tmp_path, capsys, tiny_folder):
    notes = tmp_path / "notes.html"
    notes.write_text("a dog\nthe sky\n" * 20)
    before = notes.read_bytes()
    link = tmp_path / "link.jsonl"
    link.symlink_to(notes)
    model = ["--model", str(tiny_folder)]
    for arguments in (
        ["explore", str(notes), *model],
        ["explore", str(notes), "-o", str(notes), *model],
        ["encode", str(notes), "-o", str(link), *model],
        ["index", "build", str(notes), "-o", str(notes), *model],
    ):
        assert main(arguments) == 2
        assert "overwrite" in capsys.readouterr().err
        assert notes.read_bytes() == before


def test_a_partial_file_has_a_name_of_its_own(tmp_path):
    path = tmp_path / "x.bin"
    with replacing(path) as one, replacing(path) as other:
        assert len([p for p in tmp_path.iterdir() if p.name.endswith(".partial")]) == 2
        one.write(b"one")
        other.write(b"other")
    assert path.read_bytes() == b"one"  # the outer block ended last
    assert [p.name for p in tmp_path.iterdir()] == ["x.bin"]


def test_a_partial_file_follows_no_link(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    tokens = iter([bytes(8), bytes(range(8))])
    monkeypatch.setattr("minifuse.files.whole.os.urandom", lambda _: next(tokens))
    for name in (bytes(8).hex(), str(os.getpid())):
        (tmp_path / f".x.npy.{name}.partial").symlink_to(victim)
    with open_writer(tmp_path / "x.npy") as writer:
        writer.write(["a"], np.ones((1, 2), np.float32))
    assert victim.read_text() == "precious"
    assert np.load(tmp_path / "x.npy").shape == (1, 2)


def test_a_new_file_has_the_usual_permissions(tmp_path):
    mask = os.umask(0o027)
    try:
        with replacing(tmp_path / "x") as file:
            file.write(b"x")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


def test_file_and_folder_are_synced_before_and_after_the_rename(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(descriptor):
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        events.append(kind)
        fsync(descriptor)

    def spy_replace(*names):
        events.append("rename")
        replace(*names)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    with open_writer(tmp_path / "x.jsonl") as writer:
        writer.write(["a"], np.ones((1, 2), np.float32))
    assert events == ["file", "rename", "folder"]


def test_outputs_keep_links_modes_and_devices(tmp_path):
    real, link = tmp_path / "real.npy", tmp_path / "link.npy"
    real.write_bytes(b"old")
    real.chmod(0o600)
    link.symlink_to(real)
    with open_writer(link) as writer:
        writer.write(["a"], np.ones((1, 2), np.float32))
    assert link.is_symlink()
    assert np.load(real).shape == (1, 2)
    assert stat.S_IMODE(real.stat().st_mode) == 0o600
    os.mkfifo(tmp_path / "pipe")
    for special in (tmp_path / "pipe", tmp_path):
        with pytest.raises(ValueError, match="no ordinary file"), replacing(special):
            pass
    with replacing(tmp_path / ("漢" * 80)) as file:
        file.write(b"x")
