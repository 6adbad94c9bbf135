"""The hub's cache as this library reads it: what the hub's own client finds in it, without that client
or the ``tokenizers`` package being imported.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from minifuse.models import resolve
from minifuse.models.resolve import _cached_snapshot, resolve_model

COMMIT, OTHER = "a" * 40, "b" * 40


@pytest.fixture
def cache(tiny_folder, tmp_path, monkeypatch):
    """A cache with two commits of a model, of which the second lacks its weights."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    repo = tmp_path / "models--me--tiny"
    (repo / "refs" / "refs" / "pr").mkdir(parents=True)
    for name in ("main", "v1.0+cu121", "feat#2", "refs/pr/1"):
        (repo / "refs" / name).write_text(COMMIT)
    for name, commit in (("half", OTHER), ("by hand", "local"), ("outside", "../../x")):
        (repo / "refs" / name).write_text(commit)
    shutil.copytree(tiny_folder, repo / "snapshots" / COMMIT)
    shutil.copytree(tiny_folder, repo / "snapshots" / OTHER)
    (repo / "snapshots" / OTHER / "model.safetensors").unlink()
    return tmp_path


@pytest.mark.parametrize("revision", [None, "main", "v1.0+cu121", "feat#2", "refs/pr/1", COMMIT])
def test_what_the_hubs_client_finds(cache, revision):
    from huggingface_hub import snapshot_download

    theirs = snapshot_download("me/tiny", revision=revision, cache_dir=cache, local_files_only=True)
    assert str(_cached_snapshot("me/tiny", cache, revision)) == theirs
    options = {"cache_dir": cache, "revision": revision, "local_files_only": True}
    assert str(resolve_model("me/tiny", **options)) == theirs


@pytest.mark.parametrize(
    "revision",
    ["half", OTHER, "absent", "by hand", "outside", "c" * 40, "../main", "", "a/../../b"],
)
def test_what_is_not_whole_or_not_there(cache, revision):
    expected = cache / "models--me--tiny" / "snapshots" / COMMIT
    found = _cached_snapshot("me/tiny", cache, revision)
    assert found == (expected if revision == "" else None)  # none asked for: main


def test_a_download_that_was_broken_off(cache):
    """The hub's client lists a repository's files before it fetches them."""
    repo = cache / "models--me--tiny"
    snapshot = repo / "snapshots" / COMMIT
    names = [path.name for path in snapshot.iterdir() if path.is_file()]
    others = ["pytorch_model.bin", "onnx/model.onnx", ".gitattributes"]  # which are not fetched
    (repo / "trees").mkdir()

    def write(*more):
        files = {name: {"size": 1} for name in (*names, *others, *more)}
        listing = {"format_version": 1, "files": files}
        (repo / "trees" / f"{COMMIT}.json").write_text(json.dumps(listing))

    write()
    assert _cached_snapshot("me/tiny", cache, None) == snapshot
    for missing in ("2_Normalize/config.json", "merges.txt", "model-00002-of-00002.safetensors"):
        write(missing)
        assert _cached_snapshot("me/tiny", cache, None) is None
    (repo / "trees" / f"{COMMIT}.json").write_text("damaged")
    assert _cached_snapshot("me/tiny", cache, None) == snapshot


def test_a_snapshot_that_may_lack_its_modules(cache, monkeypatch, caplog):
    """Another program fetched the weights alone: with modules.json the pooling may be another."""
    repo = cache / "models--me--tiny"
    snapshot = repo / "snapshots" / COMMIT
    (snapshot / "modules.json").unlink()
    asked = []

    def fetch(*_):
        asked.append(1)
        raise ConnectionError("no network here")

    monkeypatch.setattr(resolve, "_fetch_snapshot", fetch)
    assert resolve_model("me/tiny", cache_dir=cache, local_files_only=True) == snapshot
    assert not asked
    assert "nothing says whether the repository has one" in caplog.text
    assert resolve_model("me/tiny", cache_dir=cache) == snapshot  # better than nothing
    assert asked
    caplog.clear()
    (repo / ".no_exist" / COMMIT).mkdir(parents=True)
    (repo / ".no_exist" / COMMIT / "modules.json").touch()
    assert resolve_model("me/tiny", cache_dir=cache) == snapshot
    assert resolve_model("me/tiny", cache_dir=cache, lists_modules=False) == snapshot
    assert len(asked) == 1
    assert not caplog.text


def test_weights_are_wanted_folder_by_folder():
    """A module that was never converted comes as torch.save wrote it."""
    listed = [
        *("model.safetensors", "pytorch_model.bin", "chat_template.jinja", "onnx/model.onnx"),
        *("2_Dense/pytorch_model.bin", "3_Dense/model.safetensors", "3_Dense/pytorch_model.bin"),
    ]
    assert resolve._wanted(listed) == [
        *("model.safetensors", "chat_template.jinja", "2_Dense/pytorch_model.bin"),
        "3_Dense/model.safetensors",
    ]


def test_a_folder_by_hand_is_found(cache):
    """Its commit has no number."""
    snapshots = cache / "models--me--tiny" / "snapshots"
    (snapshots / COMMIT).rename(snapshots / "local")
    assert _cached_snapshot("me/tiny", cache, "by hand") == snapshots / "local"


def test_home_and_variables_in_a_cache_folder(cache, monkeypatch):
    monkeypatch.setenv("HOME", str(cache.parent))
    monkeypatch.setenv("PART", cache.name)
    found = resolve_model("me/tiny", cache_dir=f"~/{cache.name}", local_files_only=True)
    assert found.parents[2] == cache
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    assert resolve_model("me/tiny", local_files_only=True) == found
    monkeypatch.delitem(sys.modules, "huggingface_hub.constants")
    monkeypatch.setenv("HF_HUB_CACHE", "~/$PART")
    assert resolve_model("me/tiny", local_files_only=True) == found


@pytest.mark.parametrize("repo", ["me/other", "../tiny", "me/..", "me/ti ny", "tiny", "me/tiny/x"])
def test_names_of_no_model(cache, repo):
    assert _cached_snapshot(repo, cache, None) is None


@pytest.mark.parametrize(
    ("variable", "inner"),
    [
        ("HF_HUB_CACHE", "."),
        ("HUGGINGFACE_HUB_CACHE", "."),
        ("HF_HOME", "hub"),
        ("XDG_CACHE_HOME", "huggingface/hub"),
        ("HOME", ".cache/huggingface/hub"),
        ("SENTENCE_TRANSFORMERS_HOME", "."),
    ],
)
def test_where_the_cache_may_lie(cache, tmp_path, monkeypatch, variable, inner):
    """The hub's client reads these variables when it is imported, so it is asked in a process."""
    home = tmp_path / "home"
    (home / inner).mkdir(parents=True)
    shutil.move(cache / "models--me--tiny", home / inner / "models--me--tiny")
    monkeypatch.setenv(variable, str(home))
    monkeypatch.delitem(sys.modules, "huggingface_hub.constants", raising=False)
    found = resolve_model("me/tiny", local_files_only=True)
    assert found == home / inner / "models--me--tiny" / "snapshots" / COMMIT
    if variable != "SENTENCE_TRANSFORMERS_HOME":
        script = (
            "from huggingface_hub import snapshot_download as f\n"
            "print(f('me/tiny', local_files_only=True))"
        )
        command = [sys.executable, "-c", script]
        theirs = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert theirs.strip() == str(found)


def test_a_cached_model_needs_neither_the_hubs_client_nor_the_tokenizers_package(cache):
    """Each would cost every process memory and more time than loading the model takes."""
    script = """
import sys
from minifuse import SentenceTransformer
model = SentenceTransformer("me/tiny", cache_folder=sys.argv[1])
model.encode(["hello world"])
print([name for name in ("huggingface_hub", "tokenizers", "torch") if name in sys.modules])
"""
    command = [sys.executable, "-c", script, str(cache)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "[]\n"
