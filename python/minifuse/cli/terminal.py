"""Texts of strangers on a terminal: shown so that they can neither steer it nor hide in it.

A terminal obeys control characters: an escape sequence in a stored text may change colours, move
the cursor over what was printed before, or set the window's title; bidirectional marks reorder a
line.
"""

from __future__ import annotations

import json
import re
from typing import Any

__all__ = ["printable", "printable_json"]

# C0 and C1 controls with DEL; the marks that reorder text; line and paragraph separators; lone
# surrogates, which no terminal can take; characters that show nothing, in which text can hide: soft
# hyphens, zero-width spaces, invisible operators and tags. Joiners stay: emoji and several scripts
# need them.
_CONTROLS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
    "\xad\u180e\u200b\u2060-\u2064\ufeff\U000e0000-\U000e007f]"
)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code > 0xFFFF:
        return f"\\U{code:08x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def printable(text: str, keep: str = "") -> str:
    """Return text on one line, control characters written as Python escapes them.

    Args:
        text: any string.
        keep: control characters that stay, such as a line break in a message.
    """
    if not keep:
        return _CONTROLS.sub(_escaped, text)
    return _CONTROLS.sub(lambda match: match[0] if match[0] in keep else _escaped(match), text)


def printable_json(value: Any) -> str:
    """Return value as one line of JSON that any parser reads back and no terminal obeys."""
    text = json.dumps(value, ensure_ascii=False)
    # json.dumps escapes C0 controls itself; others may stand in strings only, where an escape, or
    # two of them beyond U+FFFF, is the same character.
    return _CONTROLS.sub(lambda match: json.dumps(match[0])[1:-1], text)
