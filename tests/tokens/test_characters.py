"""The tables of characters are those of the installed ``tokenizers`` package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
def test_the_tables_are_those_of_the_package(tmp_path):
    """All code points; tests/tokens/test_native.py asks those of the basic plane by other ways."""
    tool = ROOT / "tools" / "make_character_tables.py"
    subprocess.run([sys.executable, tool, tmp_path], check=True)
    for name in ("character_tables.inc", "grapheme_tables.inc"):
        committed = ROOT / "csrc" / "tokenizer" / "unicode" / name
        assert (tmp_path / name).read_text() == committed.read_text(), (
            f"write it again: python tools/{tool.name} {committed.parent}"
        )
