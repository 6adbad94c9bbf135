"""The parts of tools/gpu_check.sh: each builds, checks or times one thing for the report."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
KERNEL_TESTS = ("tests/cuda/test_cuda_kernels.py", "tests/cuda/test_cuda_encoder.py")
TESTS = (*KERNEL_TESTS, "tests/cuda/test_cuda_ops.py")
LIMIT_SECONDS = 540


class DryRun(Exception):
    """The first CUDA call is reached."""


class Check:
    """The parts, in the order in which they run; what they find goes into ``report``."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.out: Path = arguments.out.resolve()
        self.tests_path = self.out / "minifuse_cuda_tests.so"
        self.report: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "parts": {}}
        self.start = time.monotonic()

    def run(self) -> int:
        """Run all parts; returns 1 if one failed."""
        self.out.mkdir(parents=True, exist_ok=True)
        parts = (self.machine, self.packages, self.kernels, self.package, self.tests,
                 self.sanitizer, self.agreement, self.endurance, self.encoder,
                 self.ops)  # fmt: skip
        for part in parts:
            self._run_part(part)
            self._save()
        failed = [name for name, how in self.report["parts"].items() if how["status"] == "failed"]
        print("gpu_check:", f"failed: {', '.join(failed)}" if failed else "every part passed")
        return 1 if failed else 0

    def _run_part(self, part: Callable[[], Any]) -> None:
        name, start = part.__name__, time.monotonic()
        entry: dict[str, Any] = {}
        try:
            if time.monotonic() - self.start > LIMIT_SECONDS:
                raise TimeoutError(f"{LIMIT_SECONDS} s have gone")
            found = part()
            entry = {"status": "passed"} | ({"found": found} if found is not None else {})
        except DryRun:
            entry = {"status": "reached CUDA"}
        except Exception as error:  # a part that fails must not stop the others
            traceback.print_exc()
            entry = {"status": "failed", "error": f"{type(error).__name__}: {error}"[:2000]}
        entry["seconds"] = round(time.monotonic() - start, 1)
        self.report["parts"][name] = entry
        print(f"gpu_check: {name}: {entry['status']} ({entry['seconds']} s)", flush=True)

    def _save(self) -> None:
        path = self.out / "gpu.json"
        aside = path.with_suffix(".partial")
        aside.write_text(json.dumps(self.report, indent=1) + "\n", encoding="utf-8")
        aside.replace(path)

    def _cuda(self) -> None:
        """To be called before anything that needs a device."""
        if self.arguments.dry_run:
            raise DryRun

    def _command(self, *command: str, env: dict[str, str] | None = None, limit: float = 300) -> str:
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | (env or {}), text=True, timeout=limit,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)[:300]}: status {done.returncode}\n"
                               f"{done.stdout[-3000:]}")  # fmt: skip
        return done.stdout

    # ---- the machine and what is built -------------------------------------------------------

    def machine(self) -> dict[str, Any]:
        """Device, clocks, versions."""
        nvcc = shutil.which("nvcc")
        if nvcc is None:
            raise FileNotFoundError("nvcc is not on the PATH")
        found = {"nvcc": self._command(nvcc, "--version").strip().splitlines()[-1],
                 "python": platform.python_version()}  # fmt: skip
        self._cuda()
        query = "name,clocks.sm,clocks.max.sm,clocks.mem,driver_version,compute_cap,memory.total"
        values = self._command("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader")
        self.report["device"] = values.strip().splitlines()[0]
        return found

    def packages(self) -> None:
        """Install the packages that the tests import, from the folder of wheels if one is given."""
        if self.arguments.wheels:
            self._command(sys.executable, "-m", "pip", "install", "--quiet", "--no-index",
                          "--find-links", str(self.arguments.wheels), "pybind11",
                          "scikit-build-core", "tokenizers", "huggingface-hub", "tqdm",
                          "pytest")  # fmt: skip
        for name in ("numpy", "tokenizers", "tqdm", "pytest"):
            __import__(name)

    def _architecture(self) -> str:
        if self.arguments.dry_run:
            return "sm_80"
        capability = self._command("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
        number = capability.strip().splitlines()[0].replace(".", "")
        return "sm_90a" if number == "90" else f"sm_{number}"

    def kernels(self) -> None:
        """The kernels and their C interface by nvcc, one process a file."""
        sys.path.insert(0, str(ROOT / "tests"))
        from cuda_library import INTERFACE

        sources = [*INTERFACE, "tests/native/cuda_device.cpp", "csrc/cuda/device_runtime.cu"]
        sources += [f"csrc/cuda/kernels_{e}.cu" for e in ("float32", "bfloat16", "float16")]
        sources.append("csrc/cuda/hopper/kernels.cu")
        flags = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", "-fmad=false", "-Xcompiler",
                 "-fPIC", f"-I{ROOT / 'csrc'}"]  # fmt: skip
        objects, runs = [], []
        for source in sources:
            if self.arguments.dry_run and Path(source).name.startswith("kernels"):
                continue  # the ordinary build has compiled them
            target = self.out / (Path(source).name + ".o")
            objects.append(str(target))
            architecture = "sm_90a" if "hopper" in source else self._architecture()
            runs.append(subprocess.Popen(["nvcc", *flags, f"-arch={architecture}", "-c",
                                          str(ROOT / source), "-o", str(target)]))  # fmt: skip
        statuses = [run.wait() for run in runs]
        if any(statuses):
            raise RuntimeError("nvcc failed")
        self._cuda()
        self._command("nvcc", "-shared", *objects, "-o", str(self.tests_path))

    def package(self) -> None:
        """The package itself, for the CPU's figures and the model loader."""
        self._cuda()
        architecture = self._architecture().removeprefix("sm_")
        self._command(sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation",
                      "--no-deps", "-Ccmake.define.MINIFUSE_CUDA=ON",
                      f"-Ccmake.define.CMAKE_CUDA_ARCHITECTURES={architecture}-real", ".",
                      limit=400)  # fmt: skip

    # ---- right ---------------------------------------------------------------------------------

    def _test(self, files: tuple[str, ...], *command: str, limit: float) -> str:
        """The tests on the device, below a command if one is given; pytest's last line."""
        printed = self._command(
            *command, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files,
            env={"MINIFUSE_CUDA_LIBRARY": str(self.tests_path)}, limit=limit,
        )  # fmt: skip
        return printed.strip().splitlines()[-1]

    def tests(self) -> str:
        """Every kernel in every element type, the encoder, and the ops on torch's tensors."""
        self._cuda()
        return self._test(TESTS, limit=180)

    def sanitizer(self) -> dict[str, str]:
        """The kernels under compute-sanitizer: memory and races."""
        self._cuda()
        if shutil.which("compute-sanitizer") is None:
            raise FileNotFoundError("compute-sanitizer is not on the PATH")
        return {tool: self._test(KERNEL_TESTS, "compute-sanitizer", "--tool", tool,
                                 "--error-exitcode", "9", limit=100)
                for tool in ("memcheck", "racecheck")}  # fmt: skip

    def _texts(self) -> dict[str, list[str]]:
        from minifuse.bench.sample_text import SENTENCES

        found = {"sample": list(SENTENCES)}
        for name in ("short", "paragraphs"):
            path = getattr(self.arguments, name)
            if path:
                found[name] = path.read_text(encoding="utf-8").splitlines()
        return found

    def agreement(self) -> dict[str, Any]:
        """Largest difference and least cosine against the CPU's float32; bits alone and batched."""
        import numpy as np

        from minifuse import SentenceTransformer

        texts = [text for group in self._texts().values() for text in group[:500]]
        wanted = SentenceTransformer(self.arguments.model).encode(texts, normalize_embeddings=True)
        self._cuda()
        found: dict[str, Any] = {}
        for dtype, least, most in (("float32", 0.999999, 1e-5), ("bfloat16", 0.9999, None),
                                   ("float16", 0.99999, None)):  # fmt: skip
            model = SentenceTransformer(self.arguments.model, device="cuda", dtype=dtype)
            vectors = model.encode(texts, normalize_embeddings=True)
            cosine = float((vectors * wanted).sum(1).min())
            difference = float(np.abs(vectors - wanted).max())
            alone = np.stack([model.encode(text, normalize_embeddings=True) for text in texts[:50]])
            same = bool(np.array_equal(alone.view(np.uint32), vectors[:50].view(np.uint32)))
            found[dtype] = {"cosine_min": cosine, "max_difference": difference, "same_bits": same}
            if cosine < least or (most and difference > most) or not same:
                raise AssertionError(f"{dtype}: {found[dtype]}")
        return found

    def endurance(self) -> dict[str, Any]:
        """Ten thousand encodes by four threads: the same bits each time, and no memory lost."""
        from concurrent.futures import ThreadPoolExecutor

        import numpy as np

        from minifuse import SentenceTransformer
        from minifuse.bench.sample_text import SENTENCES

        self._cuda()
        import torch

        model = SentenceTransformer(self.arguments.model, device="cuda", dtype="float16")
        texts = [SENTENCES[i % len(SENTENCES)] for i in range(100)]
        wanted = model.encode(texts)
        free, _ = torch.cuda.mem_get_info()

        def encode(place: int) -> bool:
            return np.array_equal(model.encode(texts[place]), wanted[place])

        with ThreadPoolExecutor(4) as pool:
            same = all(pool.map(encode, list(range(100)) * 100))
        lost = free - torch.cuda.mem_get_info()[0]
        if not same or lost > 1 << 26:  # graphs of a hundred shapes stay
            raise AssertionError(f"the same bits: {same}; {lost} bytes fewer are free")
        return {"bytes_lost": lost}

    # ---- fast ----------------------------------------------------------------------------------

    def _isas(self) -> tuple[str, ...]:
        return ("sm_80", "sm_90a") if self._architecture() == "sm_90a" else ("sm_80",)

    def _for_each_isa(self, measure: Callable[[bool], Any]) -> dict[str, Any]:
        """Return the results of measure(is_first) for each instruction set of the device."""
        found = {}
        try:
            for place, isa in enumerate(self._isas()):
                os.environ["MINIFUSE_CUDA_ISA"] = isa
                found[isa] = measure(place == 0)
        finally:
            os.environ.pop("MINIFUSE_CUDA_ISA", None)
        return found

    def encoder(self) -> dict[str, Any]:
        """`minifuse bench --device cuda`: the encoder, whole encodes and one query."""
        from minifuse.bench.device import bench_device

        self._cuda()
        query = "how do i reset the password of my account"

        def measure(is_first: bool) -> dict[str, Any]:
            peers = ("sentence-transformers",) if is_first else ()
            model, texts = str(self.arguments.model), self._texts()
            return bench_device(model, texts, query, "cuda", peers=peers)

        return self._for_each_isa(measure)

    def ops(self) -> dict[str, Any]:
        """`minifuse bench --ops --device cuda` in each dtype."""
        from minifuse.bench.device import bench_device_ops
        from minifuse.native import cuda_ops

        self._cuda()

        def measure(is_first: bool) -> dict[str, Any]:
            cuda_ops._ops.cache_clear()
            return {dtype: bench_device_ops("cuda", dtype, 15, (128, 4096, 32768),
                                            compiles=is_first and dtype == "bfloat16")
                    for dtype in ("bfloat16", "float16", "float32")}  # fmt: skip

        return self._for_each_isa(measure)


def main() -> int:
    """Parse the arguments and run the parts."""
    parser = argparse.ArgumentParser(description="Check and time minifuse on an NVIDIA GPU.")
    parser.add_argument("--model", type=Path, required=True, help="the model's folder")
    parser.add_argument("--out", type=Path, required=True, help="gpu.json goes here")
    parser.add_argument("--short", type=Path, help="a file of short sentences, one a line")
    parser.add_argument("--paragraphs", type=Path, help="a file of paragraphs, one a line")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to install from")
    parser.add_argument("--dry-run", action="store_true", help="stop at the first CUDA call")
    return Check(parser.parse_args()).run()


if __name__ == "__main__":
    sys.exit(main())
