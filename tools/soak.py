"""Everything at once for as long as asked: threads, forks, signals, Ctrl-C, mixed lengths and
dtypes, adds, searches and saves, every result compared with a reference, and memory watched.

    python tools/soak.py --minutes 30 [--model NAME]

Before the time begins, as many callers as there will be at once encode every text and then the
longest in every way, so that each buffer that an encoder keeps has served it, and every job has
done the number of rounds that WARM names, so that the threads' heaps have taken their shape however
slow the machine is. Resident memory is then read each second; its median over the last tenth of the
time is compared with that over the tenth in the middle: heaps take their shape for a while
longer, but a leak goes on. More than 0.5 % of growth, a wrong bit, a hang of a minute or an
unexpected error ends the run with status 1.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import itertools
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from minifuse import Index, SentenceTransformer, ops
from minifuse.native import core

WORDS = [
    "the",
    "sky",
    "is",
    "blue",
    "a",
    "dog",
    "jumps",
    "over",
    "lazy",
    "中文",
    "naïve",
    "\u200b",
    "1,000",
    "[MASK]",
    "ok",
]

# The rounds of each job before memory is compared: a fifth or less of what 30 minutes do on two
# slow cores, so that a leak of any of them still shows.
WARM = {"encode": 2000, "index": 1000, "ops": 2000, "fork": 600, "handler": 200, "interrupt": 500}


def resident_mib() -> float:
    """Resident memory of this process, without pages of mapped files."""
    if Path("/proc/self/status").exists():
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def malloc_mib() -> float:
    """Memory that malloc has handed out and not got back; 0 where the C library does not say.

    Where it is flat while resident memory grows, nothing leaks and the heap is getting ragged.
    """

    class Mallinfo2(ctypes.Structure):
        _fields_ = [(name, ctypes.c_size_t) for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
            "fordblks", "keepcost")]  # fmt: skip

    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        return 0.0
    mallinfo2.restype = Mallinfo2
    info = mallinfo2()
    return float(info.uordblks + info.hblkhd) / 2**20


class Soak:
    """The work of all threads, and what they have found."""

    def __init__(self, model: str, folder: Path, seed: int) -> None:
        rng = random.Random(seed)
        # Natural lengths, some longer than the model takes.
        self.texts = [
            " ".join(rng.choices(WORDS, k=min(600, int(rng.lognormvariate(2.8, 1.0)) + 1)))
            for _ in range(300)
        ]
        self.models = {
            dtype: SentenceTransformer(model, dtype=dtype, num_threads=2)
            for dtype in ("float32", "bfloat16", "int8")
        }
        self.expected = {
            dtype: np.stack([one.encode(text) for text in self.texts])
            for dtype, one in self.models.items()
        }
        self.folder = folder
        self.failures: list[str] = []
        self.counts = dict.fromkeys(("encode", "index", "ops", "fork", "handler", "interrupt"), 0)
        self.stop = threading.Event()
        self.is_armed = False  # whether the main thread wants to be interrupted
        self.beats: dict[str, float] = {}
        self.memory: list[float] = []  # MiB, second by second

    def check(self, condition: bool, text: str) -> None:
        if not condition:
            self.failures.append(text)
            self.stop.set()

    def loop(self, name: str, work, seed: int) -> None:
        rng = random.Random(seed)
        while not self.stop.is_set():
            try:
                work(rng)
            except Exception as error:  # whatever it is, it was not expected
                self.check(False, f"{name}: {type(error).__name__}: {error}")
            self.beats[name] = time.monotonic()

    def encode(self, rng: random.Random) -> None:
        """A batch of texts of any lengths, in any dtype, on any number of threads."""
        dtype = rng.choice(list(self.models))
        places = rng.sample(range(len(self.texts)), rng.choice((1, 1, 2, 3, 8, 40)))
        vectors = self.models[dtype].encode(
            [self.texts[i] for i in places], num_threads=rng.choice((1, 2, 3, 4)),
            batch_size=rng.choice((1, 4, 32)),
        )  # fmt: skip
        self.check(np.array_equal(vectors, self.expected[dtype][places]), f"{dtype}: {places}")
        self.counts["encode"] += 1

    def warm_up(self, callers: int = 4) -> None:
        """Encode from several callers at once, in every dtype and on 1 to 4 threads.

        All texts, then the longest alone: so that all callers encode it together, and each buffer
        that an encoder keeps has served it.
        """
        everything = list(range(len(self.texts)))
        longest = [max(everything, key=lambda place: len(self.texts[place]))] * 8

        def work(_: int) -> None:
            for places, dtype, num_threads, size in itertools.product(
                (everything, *[longest] * 4), self.models, (1, 2, 3, 4), (1, 4, 32)
            ):
                if places is everything and size != 32:
                    continue
                vectors = self.models[dtype].encode(
                    [self.texts[place] for place in places], num_threads=num_threads,
                    batch_size=size,
                )  # fmt: skip
                is_same = np.array_equal(vectors, self.expected[dtype][places])
                self.check(is_same, f"{dtype}: warming up")

        with ThreadPoolExecutor(callers) as pool:
            list(pool.map(work, range(callers)))

    def is_warm(self) -> bool:
        """Return whether every job has done its rounds of warming up."""
        return all(self.counts[job] >= rounds for job, rounds in WARM.items())

    def index(self, rng: random.Random) -> None:
        """An index of its own: filled by two threads, saved, loaded, appended to, searched."""
        path = self.folder / f"{threading.get_ident()}.index"
        path.unlink(missing_ok=True)
        dtype = rng.choice(("float32", "bfloat16", "int8"))
        rows = self.expected["float32"]
        index = Index(rows.shape[1], dtype=dtype, rescore=dtype == "int8")
        index.add(rows[:100], self.texts[:100])
        index.save(path)
        index = Index.load(path, mmap=rng.random() < 0.5)
        index.add(rows[100:200], self.texts[100:200])
        _, ids = index.search(rows[:20], 1)
        self.check(bool((ids[:, 0] >= 0).all()), "no neighbour")
        best = int(index.search(rows[7], 1)[1][0])
        self.check(np.array_equal(rows[best], rows[7]) or best == 7, f"{dtype}: 7's is {best}")
        index.save(path)
        self.check(len(Index.load(path, verify=True)) == 200, "an append is lost")
        self.check(index.text(150) == self.texts[150], "a text is lost")
        self.counts["index"] += 1

    def ops(self, rng: random.Random) -> None:
        """Attention and linear layers of any size: their memory is given back."""
        n = rng.choice((1, 7, 64, 300))
        q = np.ones((1, 2, n, 32), np.float32)
        self.check(bool(np.allclose(ops.attention(q, q, q), 1)), "attention")
        x = np.ones((n, 96), np.float32)
        self.check(bool(np.allclose(ops.linear(x, x), 96)), "linear")
        self.counts["ops"] += 1

    def fork(self, rng: random.Random) -> None:
        """A child that encodes, while the parent's other threads hold any lock."""
        child = os.fork()
        if child == 0:
            vector = self.models["int8"].encode(self.texts[3])
            os._exit(0 if np.array_equal(vector, self.expected["int8"][3]) else 1)
        deadline = time.monotonic() + 60
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                self.check(False, "a child hangs")
                return
            time.sleep(0.01)
        self.check(status == 0, f"a child ended with {status}")
        self.counts["fork"] += 1
        time.sleep(0.2)

    def handler(self, *_: object) -> None:
        """Handle SIGALRM: encode on the main thread, in the middle of whatever it computes."""
        vector = self.models["int8"].encode(self.texts[5])
        self.check(np.array_equal(vector, self.expected["int8"][5]), "in a handler")
        self.counts["handler"] += 1

    def main_thread(self, rng: random.Random) -> None:
        """Encodes until Ctrl-C stops one at a random moment."""
        try:
            self.is_armed = True
            while True:
                self.encode(rng)
        except KeyboardInterrupt:
            self.is_armed = False
            self.counts["interrupt"] += 1

    def interrupt(self) -> None:
        """Send Ctrl-C whenever the main thread waits for one, and once more where it got lost.

        The main thread calls nothing of threading meanwhile: Python's own locks do not survive an
        interrupt in the middle of a wait.
        """
        rng = random.Random(7)
        while not self.stop.is_set() or self.is_armed:
            time.sleep(rng.uniform(0, 0.15))
            if not self.is_armed:
                continue
            seen, until = self.counts["interrupt"], time.monotonic() + 30
            os.kill(os.getpid(), signal.SIGINT)
            while self.counts["interrupt"] == seen and time.monotonic() < until:
                time.sleep(0.002)

    def watch(self) -> None:
        """Record the memory; say where everybody is when a thread has not moved for a minute."""
        while not self.stop.wait(1):
            self.memory.append(resident_mib())
            for name, beat in list(self.beats.items()):
                if time.monotonic() - beat > 60:
                    faulthandler.dump_traceback()
                    print(f"{name} hangs: {self.counts}", flush=True)
                    os._exit(1)


def main() -> int:
    """Run it and report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--model", default="all-MiniLM-L6-v2")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as scratch:
        soak = Soak(arguments.model, Path(scratch), arguments.seed)
        begin = time.monotonic()
        soak.warm_up()
        signal.signal(signal.SIGALRM, soak.handler)
        signal.setitimer(signal.ITIMER_REAL, 0.5, 0.35)
        jobs = [("encode 1", soak.encode), ("encode 2", soak.encode), ("index 1", soak.index),
                ("index 2", soak.index), ("ops", soak.ops), ("fork", soak.fork)]  # fmt: skip
        threads = [
            threading.Thread(target=soak.loop, args=(name, work, seed), daemon=True)
            for seed, (name, work) in enumerate(jobs)
        ]
        for work in (soak.watch, soak.interrupt):
            threads.append(threading.Thread(target=work, daemon=True))
        for thread in threads:
            thread.start()
        rng = random.Random(arguments.seed)
        while not soak.is_warm() and not soak.failures:
            soak.main_thread(rng)
            soak.beats["main"] = time.monotonic()
        start, report = time.monotonic(), time.monotonic() + 60
        soak.memory = [resident_mib()]
        print(
            f"warm after {start - begin:.0f} s: {soak.memory[0]:.1f} MiB  {soak.counts}", flush=True
        )
        while (elapsed := time.monotonic() - start) < 60 * arguments.minutes and not soak.failures:
            soak.main_thread(rng)
            soak.beats["main"] = time.monotonic()
            if time.monotonic() > report:
                report += 60
                print(
                    f"{elapsed / 60:5.1f} min  {resident_mib():7.1f} MiB, "
                    f"{malloc_mib():.1f} by malloc  {soak.counts}",
                    flush=True,
                )
        soak.stop.set()
        signal.setitimer(signal.ITIMER_REAL, 0)
        for thread in threads:
            thread.join(90)
    tenth, middle = max(1, len(soak.memory) // 10), len(soak.memory) // 2
    before = statistics.median(soak.memory[middle : middle + tenth])
    after = statistics.median(soak.memory[-tenth:])
    growth = after / before - 1
    print(f"{soak.counts}; {before:.1f} -> {after:.1f} MiB ({growth:+.2%}), {core.isa()}")
    for failure in soak.failures:
        print(f"FAILED {failure}")
    return 1 if soak.failures or growth > 0.005 else 0


if __name__ == "__main__":
    sys.exit(main())
