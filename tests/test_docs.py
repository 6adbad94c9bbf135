"""The pages say what the code does: examples run, tables are the results', links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("name", ["usage", "kernels", "mathematics"])
def test_every_example_of_a_page_runs(name, minilm_folder):
    text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, f"docs/{name}.md", "exec"), names)


def test_the_readme_starts_with_an_example_that_runs(minilm_folder, capsys):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first = re.search(r"^```python\n(.*?)^```", text, re.S | re.M)
    assert first is not None
    exec(compile(first[1], "README.md", "exec"), {})
    assert "(2, 384)" in capsys.readouterr().out


def test_tables_are_those_of_the_results():
    script = ROOT / "benchmarks" / "render_tables.py"
    done = subprocess.run(
        [sys.executable, script, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_that_a_page_names_exist(page):
    """The changelog may name what is gone."""
    named = re.findall(
        r"`((?:csrc|tests|tools|docs|benchmarks|python)/[\w./-]+\.\w+)`", page.read_text()
    )
    missing = [name for name in named if not (ROOT / name).exists()]
    assert missing == [] or page.name == "CHANGELOG.md"
