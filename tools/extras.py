"""Print the requirements of an extra of pyproject.toml, one a line, without the package itself."""

import re
import sys
from pathlib import Path

text = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
section = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
match = re.search(rf"^{re.escape(sys.argv[1])} = \[(.*?)\n?\]$", section, re.M | re.S)
if match is None:
    sys.exit(f"pyproject.toml has no extra {sys.argv[1]!r}")
print("\n".join(r for r in re.findall(r'"([^"]+)"', match[1]) if not r.startswith("minifuse")))
