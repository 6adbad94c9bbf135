"""The structure of the code: who may include, import and touch what, and how long things are."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "python" / "minifuse"
MOST_FILES, MOST_LINES = 15, 80

# Members that are everybody's in spite of their name: of named tuples, and os._exit.
PUBLIC = ("_asdict", "_fields", "_replace", "_exit")

# Longer functions, and why they are one.
LONG_FUNCTIONS = {
    "sentence_transformer.py: encode": "half of it says what its arguments mean",
    "csrc/cuda/kernels/attention.cuh: attention_kernel": "its steps share fragments in registers",
    "csrc/cuda/hopper/ffn.cuh: hopper_ffn_residual_layer_norm_kernel": "its steps share accumulators",
}

# Folders of csrc, each of which may include those behind it and never those before.
ORDER = (
    ("bindings",),
    ("search", "training", "tokenizer", "model"),
    ("linear", "threads"),
    ("cpu", "cuda"),
    ("common",),
)


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Modules of the package that a file imports, wherever it does, but for type checkers."""

    def visit(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from (one.name for one in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module:
                for one in child.names:
                    name = f"{child.module}.{one.name}"
                    is_native = one.name in ("_core", "_cuda")
                    yield name if name in known or is_native else child.module
            yield from visit(child)

    return (name for name in visit(ast.parse(path.read_text("utf-8"))) if name in known)


def test_no_module_imports_itself_through_others():
    known = modules()
    graph = {name: set(imports_of(path, known)) - {name} for name, path in known.items()}
    assert len(graph) > 50
    while leaves := {name for name, imported in graph.items() if not imported}:
        graph = {name: imported - leaves for name, imported in graph.items() if name not in leaves}
    assert not graph, f"a circle among {sorted(graph)}"


def test_underscores_stay_within_their_package():
    """A member whose name begins with _ is touched by its own package's code only."""
    trees = {path: ast.parse(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")}
    own: dict[Path, set[str]] = {}
    for path, tree in trees.items():
        names = own.setdefault(path.parent, set())
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "cls"):
                names.add(node.attr)
            elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
    strangers = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)}"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and re.match(r"_(?!_)", node.attr)
        and node.attr not in PUBLIC
        and node.attr not in own[path.parent]
    ]
    assert strangers == []


def test_includes_go_one_way():
    place = {name: level for level, names in enumerate(ORDER) for name in names}
    wrong = []
    for path in (ROOT / "csrc").rglob("*"):
        if path.suffix not in (".h", ".cpp", ".cu", ".cuh"):
            continue
        folder = path.relative_to(ROOT / "csrc").parts[0]
        for included in re.findall(r'^#include "(\w+)/', path.read_text("utf-8"), re.MULTILINE):
            # The instructions' emulated form stands in for the device's where there is no nvcc.
            if included == "cuda_emulator" and path.name == "ptx.cuh":
                continue
            if included != folder and place[included] <= place[folder]:
                wrong.append(f"{path.relative_to(ROOT)} includes {included}")
    assert wrong == []


def test_folders_are_small():
    folders = ("csrc", "python", "tests", "tools", "benchmarks", "docs", "examples")
    built = (".so", ".pyc", ".o")
    counts: dict[str, int] = {}
    for path in (one for folder in folders for one in (ROOT / folder).rglob("*")):
        if path.is_file() and path.suffix not in built:
            name = str(path.parent.relative_to(ROOT))
            counts[name] = counts.get(name, 0) + 1
    assert counts
    assert {name: count for name, count in counts.items() if count > MOST_FILES} == {}


def test_functions_are_short():
    long = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > MOST_LINES:
                    long[f"{path.relative_to(PACKAGE)}: {node.name}"] = lines
    for path in (ROOT / "csrc").rglob("*"):
        if path.suffix in (".h", ".cpp", ".cu", ".cuh"):
            long |= dict(long_functions_of(path))
    assert {name: lines for name, lines in long.items() if name not in LONG_FUNCTIONS} == {}


def long_functions_of(path: Path) -> Iterator[tuple[str, int]]:
    """Functions of a formatted C++ file: from a line that ends with { to the } of its indentation."""
    lines = path.read_text("utf-8").split("\n")
    for start, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if (
            not line.endswith("{")
            or indent > 2
            or re.match(r"\s*(namespace|struct|class|union|enum|extern)", line)
        ):
            continue
        if line.strip() == "{" or "(" not in " ".join(lines[max(0, start - 4) : start + 1]):
            continue
        for end in range(start + 1, len(lines)):
            if re.match(rf"{' ' * indent}}}", lines[end]):
                if end - start + 1 > MOST_LINES:
                    name = line.strip().partition("(")[0].split()[-1]
                    yield f"{path.relative_to(ROOT)}: {name}", end - start + 1
                break
