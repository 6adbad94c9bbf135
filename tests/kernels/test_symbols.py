"""Nothing leaves an instruction set's file, and no hot loop keeps an accumulator on the stack.

The objects are compiled here with the project's own flags, optimised and not (inlining hides leaks).
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SETS = (ROOT / "csrc" / "cpu" / "sets_x86.def").read_text()
ISAS = ("scalar", *re.findall(r"^MINIFUSE_[A-Z]+\((\w+)", SETS, re.MULTILINE))
TABLE = "kTable"  # what an instruction set's file may export

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64 objects")


@pytest.fixture(scope="module", params=["Release", "Debug"])
def objects(request, tmp_path_factory):
    # They come with the compiler that built the package: where one is missing the promise is unkept.
    missing = [tool for tool in ("nm", "readelf", "objdump", "c++") if shutil.which(tool) is None]
    assert not missing, f"install {', '.join(missing)}"
    build = tmp_path_factory.mktemp(request.param)
    configure = [_cmake(), "-S", ROOT, "-B", build, f"-DCMAKE_BUILD_TYPE={request.param}"]
    configure += ["-DMINIFUSE_BUILD_PYTHON=OFF"]
    subprocess.run(configure, check=True, capture_output=True)
    target = [_cmake(), "--build", build, "--target", "minifuse_isa", "--parallel", "2"]
    subprocess.run(target, check=True, capture_output=True)
    found = {isa: next(build.rglob(f"isa_{isa}.cpp.o")) for isa in ISAS}
    return request.param, found


def _cmake() -> str:
    try:
        import cmake
    except ImportError:
        return "cmake"
    return str(Path(cmake.CMAKE_BIN_DIR) / "cmake")


def _read(*command) -> str:
    return subprocess.run(
        list(map(str, command)), check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.parametrize("isa", ISAS)
def test_one_symbol_is_exported_and_none_is_weak(objects, isa):
    defined, undefined = [], []
    for line in _read("nm", objects[1][isa]).splitlines():
        kind, name = line.split()[-2:]
        assert kind.upper() not in ("W", "V"), f"{name} is weak: another file could use it"
        assert kind != "u", f"{name} is unique across files"
        if kind == "U":
            undefined.append(name)
        elif kind.isupper():
            defined.append(name)
    assert defined == [f"_ZN8minifuse{len(isa) + 4}isa_{isa}{len(TABLE)}{TABLE}E"]
    # The compiler may call these by itself; fmaf is the scalar form's exact multiply-add.
    assert set(undefined) <= {"memcpy", "memset", "memmove", "fmaf", "_GLOBAL_OFFSET_TABLE_"}


@pytest.mark.parametrize("isa", ISAS)
def test_nothing_runs_at_load(objects, isa):
    sections = _read("readelf", "--sections", "--wide", objects[1][isa])
    assert ".init_array" not in sections
    assert ".ctors" not in sections


# Unoptimised code keeps every vector on the stack, so there is nothing to hold it to.
@pytest.mark.parametrize("objects", ["Release"], indirect=True)
@pytest.mark.parametrize(
    ("isa", "register", "multiply", "broadcast", "loops"),
    [
        ("avx2", "ymm", "vfmadd", "vbroadcastss", 5),
        ("avx512", "zmm", "vfmadd", r"vbroadcastss|\{1to16\}", 5),
        ("avx2", "ymm", "vpmaddubsw", "vpbroadcastd", 3),
        ("avx512", "zmm", "vpmaddubsw", "vpbroadcastd", 5),
        ("avx2_vnni", "ymm", "vpdpbusd", "vpbroadcastd", 3),
        ("avx512_vnni", "zmm", "vpdpbusd", "vpbroadcastd", 5),
        ("avx512_bf16", "zmm", "vdpbf16ps", "vpbroadcastd", 5),
        ("avx2_vnni", "ymm", "vpdpwssd", "vpbroadcastd", 3),
        ("avx512_vnni", "zmm", "vpdpwssd", "vpbroadcastd", 5),
    ],
)
def test_the_inner_loops_keep_their_accumulators_in_registers(
    objects, isa, register, multiply, broadcast, loops
):
    """Micro-kernels, the loops that broadcast and multiply, keep no vector on the stack."""
    lines = _read("objdump", "-d", "--no-show-raw-insn", objects[1][isa]).splitlines()
    address = {}
    for index, line in enumerate(lines):
        if match := re.match(r"\s*([0-9a-f]+):\t", line):
            address[int(match[1], 16)] = index
    hot = 0
    for index, line in enumerate(lines):
        jump = re.match(r"\s*([0-9a-f]+):\tj\w+\s+([0-9a-f]+) ", line)
        if not jump or int(jump[2], 16) >= int(jump[1], 16) or int(jump[2], 16) not in address:
            continue
        body = lines[address[int(jump[2], 16)] : index]
        multiplies = sum(multiply in one for one in body)
        is_inner = not any(re.search(r"\tj\w+ |\tcall", one) for one in body)
        broadcasts = sum(bool(re.search(broadcast, one)) for one in body)
        share = 0.15 if multiply == "vpmaddubsw" else 0.4  # one of three instructions
        if not is_inner or broadcasts < 4 or multiplies < 8 or multiplies < share * len(body):
            continue
        hot += 1
        slots = {"store": set(), "load": set()}
        for one in body:
            if register in one and (slot := re.search(r"(-?(?:0x)?[0-9a-f]*)\(%rsp\)(,?)", one)):
                slots["load" if slot[2] else "store"].add(slot[1])
        # A slot that is only stored waits for the tail behind the loop, which costs nothing.
        assert not slots["store"] & slots["load"], body
    assert hot >= loops, "the micro-kernels' loops were not found"


def test_flags_stay_in_their_files():
    text = (ROOT / "CMakeLists.txt").read_text()
    assert "-march=native" not in text
    assert "-ffast-math" not in text
    for path in (ROOT / "csrc").rglob("*"):
        if path.suffix in (".h", ".cpp") and not path.name.startswith(("isa_", "vec_", "dot_")):
            assert "immintrin" not in path.read_text(), path
