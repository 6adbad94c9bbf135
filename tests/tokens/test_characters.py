"""The tables of characters are those of the installed ``tokenizers`` package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

UNICODE = Path(__file__).parent.parent.parent / "csrc" / "tokenizer" / "unicode"


@pytest.mark.slow
def test_the_tables_are_those_of_the_package(tmp_path):
    """All code points; tests/tokens/test_native.py asks those of the basic plane by other ways."""
    tool = UNICODE / "make_character_tables.py"
    subprocess.run([sys.executable, tool, tmp_path], check=True)
    for name in ("character_tables.inc", "grapheme_tables.inc"):
        committed = (UNICODE / name).read_text()
        assert (tmp_path / name).read_text() == committed, f"write it again: python {tool}"
