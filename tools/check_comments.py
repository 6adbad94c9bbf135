"""Refuse comments and docstrings that begin with "Of", "What", "Whose", "Where" or "Whether".

    python tools/check_comments.py FILE...

Such a comment is a fragment without a subject, which readers must guess. Say what the thing is
("Returns whether ...", "Size of ..."). Only the first line of a comment is looked at.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

_COMMENT = re.compile(r"\s*(//|#)")
_FRAGMENT = re.compile(r'\s*(//+|#+|[rfb]?"""|/\*+)\s*(Of|What|Whose|Where|Whether)\b')


def fragments(path: Path) -> list[str]:
    """Return "FILE:LINE: text" for each comment of a file that is a fragment."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [
        f"{path}:{number}: {line.strip()}"
        for number, (before, line) in enumerate(zip(["", *lines], lines, strict=False), 1)
        if _FRAGMENT.match(line) and not (_COMMENT.match(line) and _COMMENT.match(before))
    ]


def main() -> int:
    """Print the fragments of the named files; returns 1 if there are any."""
    found = [line for name in sys.argv[1:] for line in fragments(Path(name))]
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
