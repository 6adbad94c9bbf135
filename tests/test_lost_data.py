"""Nothing is lost or changed in silence: outputs, indexes under two writers, settings, codes, updates."""

from __future__ import annotations

import copy
import csv
import logging
import os
import pickle
import signal
import stat
import sys
import threading

import numpy as np
import pytest

from minifuse import Index, SentenceTransformer, util
from minifuse.cli import main
from minifuse.files import open_writer, read_header, read_rows, read_texts
from minifuse.index_file import _SECTOR
from minifuse.whole_files import replacing

# ---- texts in ------------------------------------------------------------------------------------


def test_a_row_with_more_fields_than_the_header(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("id,text\n1,hello\n2,hello, world\n")
    texts = read_texts(str(path), "text")
    assert next(texts) == "hello"
    with pytest.raises(ValueError, match=r"x\.csv, line 3: 3 columns, the header has 2"):
        next(texts)
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
    tokens = iter(["same", "other"])
    monkeypatch.setattr("minifuse.whole_files.secrets.token_hex", lambda _: next(tokens))
    for name in ("same", str(os.getpid())):
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


# ---- indexes -------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path, rng):
    index = Index(16)
    path = tmp_path / "some.index"
    for first in range(0, 150, 50):
        index.add(rng.standard_normal((50, 16)), [f"text {i}" for i in range(first, first + 50)])
        index.save(path)
    return path


class Model:
    name = "some model"

    def encode(self, text):
        return np.ones(16)


def test_a_file_that_another_writer_has_replaced(saved):
    one, other = Index.load(saved), Index.load(saved)
    one.bind(Model())
    one.add(np.ones((1, 16)), ["one"])
    one.save(saved)  # another header: another file under the name
    other.add(np.ones((1, 16)), ["other"])
    with pytest.raises(ValueError, match="another writer has replaced it"):
        other.save(saved)
    assert Index.load(saved).text(150) == "one"
    saved.unlink()  # rebuilt by somebody, perhaps with the same inode
    fresh = Index(16)
    fresh.add(np.ones((1, 16)), ["fresh"])
    fresh.save(saved)
    with pytest.raises(ValueError, match=r"another writer has (replaced|appended)"):
        one.save(saved)
    assert Index.load(saved).text(0) == "fresh"


def test_a_file_that_is_replaced_between_opening_and_locking(saved, monkeypatch):
    import fcntl

    index = Index.load(saved)
    index.add(np.ones((1, 16)), ["lost?"])
    flock = fcntl.flock

    def replaced(file, how):
        rebuilt = Index(16)
        rebuilt.add(np.ones((1, 16)), ["rebuilt"])
        monkeypatch.undo()
        aside = saved.with_name("aside.index")
        rebuilt.save(aside)
        os.replace(aside, saved)
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", replaced)
    with pytest.raises(ValueError, match="another writer has replaced it"):
        index.save(saved)
    assert Index.load(saved).text(0) == "rebuilt"


def test_two_writers_of_a_new_file(tmp_path, monkeypatch):
    from minifuse import index_file

    path = tmp_path / "new.index"
    one, other = Index(2), Index(2)
    one.add(np.eye(2), ["a", "b"])
    other.add(np.eye(2), ["c", "d"])
    append = index_file._append_segment

    def slowly(*arguments):
        monkeypatch.undo()
        other.save(path)
        return append(*arguments)

    monkeypatch.setattr(index_file, "_append_segment", slowly)
    with pytest.raises(ValueError, match="another writer has made it meanwhile"):
        one.save(path)
    assert Index.load(path).text(0) == "c"


def head_offsets(path):
    data = path.read_bytes()
    salt = bytes.fromhex(data.split(b'"salt": "', 1)[1][:16].decode())
    return [
        at for at in range(4096, len(data), _SECTOR) if data[at : at + 16] == b"vectors\0" + salt
    ]


def test_a_zeroed_head_is_damage_and_is_never_cut_off(saved):
    whole = bytearray(saved.read_bytes())
    heads = head_offsets(saved)
    assert len(heads) == 3
    index = Index.load(saved)
    index.add(np.ones((1, 16)), ["new"])
    whole[heads[1] : heads[1] + _SECTOR] = bytes(_SECTOR)
    saved.write_bytes(whole)
    for verify in (False, True):
        with pytest.raises(
            ValueError, match=f"byte {heads[1]}: zeros before .* {heads[2]}.*repair"
        ):
            Index.load(saved, verify=verify)
    with pytest.raises(ValueError, match="damaged"):
        index.save(saved)
    assert saved.read_bytes() == whole


def test_an_unfinished_append_is_no_damage(saved):
    """Zeros where the head would be, any bytes behind them, heads of other files among these."""
    whole = saved.read_bytes()
    foreign = whole[head_offsets(saved)[0] :][:_SECTOR].replace(whole[4106:4110], b"\1\2\3\4")
    saved.write_bytes(whole + bytes(_SECTOR) + foreign + b"\xff" * 5000)
    index = Index.load(saved, verify=True)
    assert len(index) == 150
    index.add(np.ones((1, 16)), ["next"])
    index.save(saved)
    assert Index.load(saved, verify=True).text(150) == "next"


def test_a_missing_segment_breaks_the_chain(saved):
    whole = saved.read_bytes()
    _, second, third = head_offsets(saved)
    saved.write_bytes(whole[:second] + whole[third:])
    with pytest.raises(ValueError, match="vectors from 100 on follow 50"):
        Index.load(saved)


@pytest.mark.parametrize("damage", ["zeroed head", "torn head", "vectors", "truncated"])
def test_repair(saved, damage, capsys):
    whole = bytearray(saved.read_bytes())
    texts = [Index.load(saved).text(i) for i in range(150)]
    _, second, _ = head_offsets(saved)
    kept = [*range(50), *range(100, 150)]
    if damage == "zeroed head":
        whole[second : second + _SECTOR] = bytes(_SECTOR)
    elif damage == "torn head":
        whole[second + 40 : second + 70] = bytes(30)
    elif damage == "vectors":
        whole[second + _SECTOR + 100] ^= 1
    else:
        whole, kept = whole[:-600], [*range(100)]
    saved.write_bytes(whole)
    output = saved.with_name("repaired.index")
    assert main(["index", "repair", str(saved), "-o", str(output)]) == 1
    assert "ids of what follows become smaller" in capsys.readouterr().out
    assert saved.read_bytes() == whole
    repaired = Index.load(output, verify=True)
    assert [repaired.text(i) for i in range(len(repaired))] == [texts[i] for i in kept]
    with pytest.raises(FileExistsError):
        Index.repair(saved, output)


def test_repair_of_a_whole_file(saved, capsys):
    output = saved.with_name("repaired.index")
    assert main(["index", "repair", str(saved), "-o", str(output)]) == 0
    assert "nothing is lost" in capsys.readouterr().out
    assert len(Index.load(output)) == 150


def test_a_file_of_version_1_is_read_and_written_anew(tmp_path):
    """Made as version 1 wrote it: heads of 128 bytes at multiples of 64, without salt and chain."""
    import json
    import struct
    import zlib

    about = {"dim": 2, "dtype": "float32", "metric": "dot", "rescore": False, "model": None}
    text = json.dumps(about).encode()
    data = b"minifuse index\0\1" + struct.pack("<II", len(text), zlib.crc32(text)) + text
    data += bytes(4096 - len(data))
    for first in (0, 3):
        vectors = np.arange(first, first + 3, dtype="<f4")[:, None] * np.ones(2, "<f4")
        parts = vectors.tobytes() + bytes(64 - vectors.nbytes)
        head = struct.pack(
            "<8sQ5QI", b"vectors\0", 3, vectors.nbytes, 0, 0, 0, 0, zlib.crc32(parts)
        )
        head += struct.pack("<I", zlib.crc32(head))
        data += head + bytes(128 - len(head)) + parts
    path = tmp_path / "old.index"
    path.write_bytes(data)
    index = Index.load(path, verify=True)
    np.testing.assert_array_equal(index.reconstruct(range(6))[:, 0], np.arange(6))
    index.add(np.full((1, 2), 6.0))
    index.save(path)
    assert path.read_bytes()[15] == 2
    again = Index.load(path, verify=True)
    np.testing.assert_array_equal(again.reconstruct(range(7))[:, 0], np.arange(7))
    again.add(np.full((1, 2), 7.0))
    again.save(path)
    assert len(Index.load(path, verify=True)) == 8


@pytest.mark.parametrize("call", ["search", "text", "reconstruct", "save", "pickle"])
def test_a_mapped_file_that_shrinks(saved, call):
    index = Index.load(saved)
    index.add(np.ones((1, 16)), ["new"])
    os.truncate(saved, 5000)
    calls = {
        "search": lambda: index.search(np.ones(16), 1),
        "text": lambda: index.text(149),
        "reconstruct": lambda: index.reconstruct([149]),
        "save": lambda: index.save(saved.with_name("copy.index")),
        "pickle": lambda: pickle.dumps(index),
    }
    with pytest.raises(ValueError, match="shorter since it was opened"):
        calls[call]()


def test_opening_a_large_index_reads_little(tmp_path, monkeypatch):
    from minifuse import index_file

    path = tmp_path / "large.index"
    index = Index(64, metric="dot")
    index.add(np.ones((70_000, 64), np.float32))
    index.save(path)
    monkeypatch.setattr(index_file, "_CHECKED_AT_OPEN_BYTES", 1 << 20)
    checked = []
    has_checksum = index_file._has_checksum
    monkeypatch.setattr(
        index_file, "_has_checksum", lambda *a: checked.append(1) or has_checksum(*a)
    )
    assert len(Index.load(path)) == 70_000
    assert not checked
    Index.load(path, verify=True)
    assert checked


def test_threads_that_add_and_search_at_once():
    index = Index(8, metric="dot")
    index.add(np.zeros((1, 8)), ["-"])
    ids: dict[str, range] = {}
    failures = []

    def add(name: int) -> None:
        for round_ in range(150):
            vectors = np.full((2, 8), name * 1000 + round_, np.float32)
            ids[f"{name} {round_}"] = index.add(vectors, [f"{name} {round_} {i}" for i in range(2)])

    def search() -> None:
        for _ in range(200):
            _, found = index.search(np.ones(8), 1)
            if not 0 <= found[0] < len(index):
                failures.append(found)

    threads = [threading.Thread(target=add, args=(n,)) for n in range(4)]
    threads += [threading.Thread(target=search) for _ in range(2)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not failures
    assert len(index) == 1 + 4 * 150 * 2
    assert len({i for one in ids.values() for i in one}) == 4 * 150 * 2
    for name, places in ids.items():
        for k, i in enumerate(places):
            assert index.text(i) == f"{name} {k}"
            assert index.reconstruct([i])[0, 0] == int(name.split()[0]) * 1000 + int(
                name.split()[1]
            )


def test_a_copy_of_an_index_is_whole_and_apart(saved):
    index = Index.load(saved)
    for other in (pickle.loads(pickle.dumps(index)), copy.deepcopy(index)):
        np.testing.assert_array_equal(other.reconstruct(range(150)), index.reconstruct(range(150)))
        other.add(np.ones((1, 16)), ["more"])
        assert (len(other), len(index)) == (151, 150)


def test_a_file_that_is_not_its_own_is_never_replaced_in_silence(saved, tmp_path):
    """Save-as, copies and fresh indexes: what somebody appended meanwhile stays."""
    index = Index.load(saved)
    index.save(tmp_path / "backup.index")
    copy_ = pickle.loads(pickle.dumps(index))
    fresh = Index(16)
    fresh.add(np.ones((1, 16)), ["fresh"])
    other = Index.load(saved)
    other.add(np.ones((1, 16)), ["other's"])
    other.save(saved)
    for one in (index, copy_, fresh):
        one.add(np.ones((1, 16)), ["mine"])
        with pytest.raises(FileExistsError, match="overwrite=True"):
            one.save(saved)
        assert Index.load(saved).text(150) == "other's"
    fresh.save(saved, overwrite=True)
    assert Index.load(saved).text(0) == "fresh"
    with pytest.raises(ValueError, match="another writer has replaced it"):
        other.save(saved)


def test_overwriting_waits_for_nobody_who_appends(saved):
    from minifuse.index_file import open_locked

    fresh = Index(16)
    fresh.add(np.ones((1, 16)), ["fresh"])
    with open_locked(saved), pytest.raises(BlockingIOError):
        fresh.save(saved, overwrite=True)


def test_a_killed_append_behind_a_mapped_index(saved):
    saved.write_bytes(saved.read_bytes() + bytes(1_000_000))
    reader, writer = Index.load(saved), Index.load(saved)
    writer.add(np.ones((1, 16)), ["new"])
    writer.save(saved)  # cuts off what the killed writer left
    for index in (reader, writer):
        index.search(np.ones(16), 1)
        assert index.text(149) == "text 149"


def test_a_reader_while_a_writer_appends(saved, monkeypatch):
    """Between two looks of a reader the writer commits a head: nothing is damaged."""
    from minifuse import index_file

    writer = Index.load(saved)
    state, turns = index_file._state, iter(range(100))

    def slow_state(file, tail):
        before = state(file, tail)
        if tail.num_vectors == 150 and next(turns) == 0:
            writer.add(np.ones((1, 16)), ["new"])
            writer.save(saved)
            return before[0] + 4096, bytes(512)  # zeros seen before the head was there
        return before

    monkeypatch.setattr(index_file, "_state", slow_state)
    monkeypatch.setattr(index_file, "_find_head", lambda *_: (0, None))
    assert len(Index.load(saved)) in (150, 151)


@pytest.mark.parametrize("number", [1, 2])
def test_a_save_that_failed_can_be_repeated(saved, monkeypatch, number):
    index = Index.load(saved)
    index.add(np.ones((1, 16)), ["new"])
    calls, fsync = [], os.fsync

    def failing(descriptor):
        calls.append(descriptor)
        if len(calls) == number:
            raise OSError(5, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="Input/output"):
        index.save(saved)
    monkeypatch.undo()
    assert len(Index.load(saved, verify=True)) == 150
    index.save(saved)
    assert Index.load(saved, verify=True).text(150) == "new"


def test_a_rename_whose_folder_cannot_be_synced(saved, monkeypatch):
    index = Index.load(saved)
    index.bind(Model())
    monkeypatch.setattr(
        "minifuse.whole_files.sync_folder", lambda _: (_ for _ in ()).throw(OSError(5, "EIO"))
    )
    with pytest.raises(OSError, match="EIO"):
        index.save(saved)
    monkeypatch.undo()
    index.add(np.ones((1, 16)), ["new"])
    index.save(saved)
    assert Index.load(saved, verify=True).text(150) == "new"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_during_a_save(saved):
    index = Index.load(saved)
    index._lock.acquire()  # as a save of another thread does
    try:
        child = os.fork()
        if child == 0:
            locked = threading.Thread(target=lambda: index.search(np.ones(16), 1), daemon=True)
            locked.start()
            locked.join(20)
            os._exit(1 if locked.is_alive() else 0)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        index._lock.release()


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


# ---- models --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("by", [lambda m: pickle.loads(pickle.dumps(m)), copy.deepcopy])
def test_a_copied_model_is_the_same(tiny_folder, dtype, by):
    model = SentenceTransformer(tiny_folder, dtype=dtype, num_threads=2)
    model.prompts["extra"] = "say: "
    model.default_prompt_name = "extra"
    model.truncate_dim = 8
    model.max_seq_length = 12
    model.similarity_fn_name = "dot"
    model.set_pooling_include_prompt(False)
    other = by(model)
    assert other.dtype == dtype
    for name in ("prompts", "default_prompt_name", "truncate_dim", "max_seq_length",
                 "similarity_fn_name", "num_threads", "name", "device"):  # fmt: skip
        assert getattr(other, name) == getattr(model, name), name
    texts = ["the sky is blue", "a lazy dog jump over"]
    np.testing.assert_array_equal(other.encode(texts), model.encode(texts))


def test_a_replaced_tokenizer_travels(tiny_folder):
    model = SentenceTransformer(tiny_folder)
    state = model.tokenizer.to_str()
    lowered = state.replace('"lowercase":true', '"lowercase":false')
    assert lowered != state
    model.tokenizer = type(model.tokenizer).from_str(lowered)
    other = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(other.encode("The SKY"), model.encode("The SKY"))
    assert not np.array_equal(
        SentenceTransformer(tiny_folder).encode("The SKY"), model.encode("The SKY")
    )


def test_a_model_of_a_relative_path_travels(tiny_folder, tmp_path, monkeypatch):
    import shutil

    shutil.copytree(tiny_folder, tmp_path / "all-MiniLM-L6-v2")
    monkeypatch.chdir(tmp_path)
    model = SentenceTransformer("all-MiniLM-L6-v2")
    data = pickle.dumps(model)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    np.testing.assert_array_equal(pickle.loads(data).encode("a dog"), model.encode("a dog"))
    shutil.rmtree(tmp_path / "all-MiniLM-L6-v2")
    with pytest.raises(FileNotFoundError, match="is gone"):
        pickle.loads(data)


def test_a_tokenizer_changed_in_place_travels(tiny_folder):
    model = SentenceTransformer(tiny_folder)
    model.tokenizer.add_tokens(["sky"])
    size = model.tokenizer.get_vocab_size()
    assert pickle.loads(pickle.dumps(model)).tokenizer.get_vocab_size() == size


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_codes_of_one_corpus_can_be_compared(tiny, precision, caplog):
    texts = [f"a dog {i}" for i in range(30)]
    vectors = tiny.encode(texts)
    ranges = np.stack([vectors.min(0), vectors.max(0)])
    together = tiny.encode(texts, precision=precision, ranges=ranges)
    for i in (0, 13, 29):
        one = tiny.encode(texts[i], precision=precision, ranges=ranges)
        np.testing.assert_array_equal(one, together[i])
    windows = tiny.encode_iter(iter(texts), window=7, precision=precision, ranges=ranges)
    np.testing.assert_array_equal(np.stack(list(windows)), together)
    with pytest.raises(ValueError, match="pass ranges="):
        list(tiny.encode_iter(iter(texts), precision=precision))
    with caplog.at_level(logging.WARNING):
        tiny.encode(texts, precision=precision)
    assert "pass ranges=" in caplog.text
    with pytest.raises(ValueError, match=r"ranges has shape \(2, 3\)"):
        tiny.encode(texts, precision=precision, ranges=np.zeros((2, 3)))
    with pytest.raises(ValueError, match="ranges are given, but precision is"):
        tiny.encode(texts, ranges=ranges)


def test_a_neighbour_that_is_no_number():
    corpus = np.eye(3, dtype=np.float32)
    bad = corpus.copy()
    bad[1, 0] = np.nan
    for call in (
        lambda: util.semantic_search(bad, corpus),
        lambda: util.semantic_search(corpus, bad),
        lambda: util.paraphrase_mining_embeddings(bad),
        lambda: util.community_detection(np.repeat(bad, 10, 0)),
    ):
        with pytest.raises(ValueError, match=r"\[1\d?\] holds a NaN"):
            call()
    huge = np.full((2, 4), 3e38, np.float32) * np.array([[1], [-1]], np.float32)
    hits = util.semantic_search(huge, np.concatenate([huge, -huge]), score_function=util.dot_score)
    assert all(hit["corpus_id"] >= 0 for row in hits for hit in row)


# ---- training ------------------------------------------------------------------------------------


def test_ctrl_c_waits_for_the_end_of_an_update():
    pytest.importorskip("torch")
    from minifuse.training.trainer import _deferred_interrupt

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    done = []
    try:
        with pytest.raises(KeyboardInterrupt), _deferred_interrupt():  # noqa: PT012
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):
                pass
            done.append("weights")
            done.append("step")
        assert done == ["weights", "step"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        worker = []
        thread = threading.Thread(target=lambda: worker.append(_deferred_interrupt().__enter__()))
        thread.start()
        thread.join()
        assert worker == [None]
    finally:
        signal.signal(signal.SIGINT, previous)


def test_the_trainer_lowers_text_as_the_model_does(tmp_path, tiny_folder):
    pytest.importorskip("torch")
    import json
    import shutil

    from minifuse.training import TrainingConfig, read_training_pairs
    from minifuse.training.trainer import _Trainer

    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    state = json.loads((folder / "tokenizer.json").read_text())
    state["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(state))
    settings = {"max_seq_length": 32, "do_lower_case": True}
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("question\tanswer\nThe SKY\tis BLUE\nA dog\truns\n")
    trainer = _Trainer(folder, read_training_pairs(pairs), tmp_path / "out", TrainingConfig(), None)
    ours = SentenceTransformer(folder).encode(["The SKY"], normalize_embeddings=True)
    np.testing.assert_allclose(trainer.encode(["The SKY"]), ours, atol=1e-5)


def test_an_interrupt_during_an_evaluation_changes_nothing(tmp_path, tiny_folder):
    """The run that goes on evaluates what was interrupted, and ends with the same weights."""
    pytest.importorskip("torch")
    from minifuse.safetensors import SafetensorsFile
    from minifuse.training import TrainingConfig, finetune, read_training_pairs

    path = tmp_path / "pairs.tsv"
    rows = [f"the sky {i}\tis blue {i}" for i in range(12)]
    path.write_text("question\tanswer\n" + "\n".join(rows) + "\n")
    pairs = read_training_pairs(path)
    config = TrainingConfig(epochs=2, batch_size=4, evaluate_every=2, learning_rate=1e-3)
    scores = [0.1, 0.9, 0.3, 0.2]  # the best is that of step 2

    def judge(interrupted: bool):
        asked = []

        def evaluate(encode):
            asked.append(1)
            if interrupted and len(asked) == 2:
                raise KeyboardInterrupt
            return scores[len(asked) - 1 - (interrupted and len(asked) > 2)]

        return evaluate

    whole = finetune(tiny_folder, pairs, tmp_path / "whole", config, judge(False))
    evaluate = judge(True)
    with pytest.raises(KeyboardInterrupt):
        finetune(tiny_folder, pairs, tmp_path / "resumed", config, evaluate)
    resumed = finetune(tiny_folder, pairs, tmp_path / "resumed", config, evaluate)
    assert resumed.evaluations == whole.evaluations
    assert resumed.best_step == whole.best_step == 2
    with (
        SafetensorsFile(tmp_path / "whole" / "model.safetensors") as a,
        SafetensorsFile(tmp_path / "resumed" / "model.safetensors") as b,
    ):
        for name in a.names():
            if name in b.names() and "position_ids" not in name:
                np.testing.assert_array_equal(a.read(name), b.read(name))


def test_a_damaged_checkpoint_is_named(tmp_path, tiny_folder):
    pytest.importorskip("torch")
    from minifuse.training import finetune, read_training_pairs

    path = tmp_path / "pairs.tsv"
    path.write_text("question\tanswer\na\tb\nc\td\n")
    (tmp_path / "out.training").mkdir()
    for content in (b"", b"x" * 100, b"\x80\x02."):
        (tmp_path / "out.training" / "checkpoint.pt").write_bytes(content)
        with pytest.raises(ValueError, match=r"checkpoint\.pt: the checkpoint is damaged"):
            finetune(tiny_folder, read_training_pairs(path), tmp_path / "out")
