"""Ctrl-C, signal handlers, forks, daemon threads and limits of the system leave calls that end."""

from __future__ import annotations

import json
import os
import sys
import threading

import numpy as np
import pytest
from test_memory_safety import run
from tokenizers import processors

from tiny_model import write_tiny_model
from tokenizer_kinds import TOKENIZERS

# Ctrl-C ends a call within so many seconds. The sanitizers' build takes many times as long for a part.
PROMISE = 20.0 if "MINIFUSE_SANITIZED" in os.environ else 1.0

# Interrupts at random moments while threads share chunks: so many, or as many encodes as fit some
# seconds. Prints how long the slowest took.
INTERRUPTED = """
import os, random, signal, sys, threading, time
import numpy as np
from minifuse import SentenceTransformer
signal.signal(signal.SIGINT, signal.default_int_handler)
folder, dtype, count, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
model = SentenceTransformer(folder, dtype=dtype, num_threads=threads)
texts = ["word " * 254] * 2 + ["word " * 200]
expected = model.encode(texts)
start = time.perf_counter()
model.encode(texts)
usual = time.perf_counter() - start
# An encode of the scalar build takes seconds.
count = max(6, min(count, int(float(sys.argv[6]) / usual)))
rng = random.Random(int(sys.argv[5]))
sent = [0.0]
armed = threading.Event()

def interrupt():
    while armed.wait():
        armed.clear()
        time.sleep(rng.uniform(0, 1.2 * usual))
        sent[0] = time.perf_counter()
        os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt, daemon=True).start()
slowest = stopped = 0
for number in range(count):
    try:
        armed.set()
        while True:
            model.encode(texts)
    except KeyboardInterrupt:
        slowest = max(slowest, time.perf_counter() - sent[0])
        stopped += 1
    if number % 10 == 0:
        assert np.array_equal(model.encode(texts), expected), number
assert np.array_equal(model.encode(texts), expected)
assert stopped == count, stopped
print(slowest)
"""


@pytest.mark.parametrize("num_threads", [2, 4])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_ctrl_c_while_threads_share_chunks(minilm_folder, dtype, num_threads):
    slowest = run(INTERRUPTED, minilm_folder, dtype, 60, num_threads, 1, 30, timeout=400)
    assert float(slowest) < PROMISE


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_ctrl_c_at_500_random_moments(minilm_folder, dtype):
    slowest = run(INTERRUPTED, minilm_folder, dtype, 500, 2, 7, 900, timeout=900)
    assert float(slowest) < PROMISE


# How long Ctrl-C takes to end a call that is made again and again: call() of a script's own.
STOPPED = """
import json, os, signal, sys, threading, time
import numpy as np
signal.signal(signal.SIGINT, signal.default_int_handler)
%s
sent = []

def interrupt():
    sent.append(time.perf_counter())
    os.kill(os.getpid(), signal.SIGINT)

threading.Timer(0.3, interrupt).start()
try:
    while True:  # a fast machine makes it more than once
        call()
except KeyboardInterrupt:
    print(time.perf_counter() - sent[0])
"""


# One long text is read, by the caller or by another thread for which it waits. It takes four seconds.
READING = """
from minifuse.tokens.tokenization import TextTokenizer
tokenizer = TextTokenizer(open(sys.argv[1], encoding="utf-8").read())
assert tokenizer.native is not None
few = int(sys.argv[3]) // 20
start = time.perf_counter()
tokenizer.encode([sys.argv[2] * few], 10**9, 1)
count = min(4.0 / (time.perf_counter() - start), 100.0) * few
texts = ["a"] * int(sys.argv[4]) + [sys.argv[2] * int(count)]
call = lambda: tokenizer.encode(texts, 10**9, 2)
"""


@pytest.mark.parametrize("before", [0, 31])
@pytest.mark.parametrize(
    ("kind", "unit", "count"),
    [
        ("bert", "ab ", 20_000_000),
        ("bert", "\u200b", 40_000_000),
        ("unigram-split", "ab ", 10_000_000),
        ("gpt2", "y", 10_000_000),  # which is merged again and again
        ("gpt2-composed", "\u0301", 10_000_000),
    ],
)
def test_ctrl_c_while_a_long_text_is_read(tmp_path, kind, unit, count, before):
    path = tmp_path / "tokenizer.json"
    path.write_text(TOKENIZERS[kind].to_str(), encoding="utf-8")
    assert float(run(STOPPED % READING, path, unit, count, before, timeout=120)) < PROMISE


# Calls that take seconds at least, on any machine, and the shapes of the arrays that they get.
LONG = {
    "attention": ("lambda x: ops.attention(x, x, x)", [[1, 12, 12000, 64]]),
    "attention of a batch": (
        "lambda x: ops.attention_varlen(x, x, x, np.array([0, 12000, 24000], np.int32))",
        [[24000, 12, 64]],
    ),
    "a matrix": ("ops.linear", [[100000, 1024], [2048, 1024]]),
    "a matrix in int8": (
        "lambda x, w: ops.linear(x, ops.pack_linear(w, 'int8'))",
        [[60000, 1024], [2048, 1024]],
    ),
    "a feed-forward": ("lambda x, a, b: ops.gelu_ffn(x, a, None, b, None)",
                       [[50000, 512], [2048, 512], [512, 2048]]),
    "quantisation": ("lambda w: ops.pack_linear(w, 'int8')", [[40000, 4096]]),
    "words of a sparse encoder": (
        "lambda x, w, b: core.splade_weights(x, np.array([0, len(x)], np.int32),"
        " ops.pack_linear(w), b, False)",
        [[60000, 256], [30000, 256], [30000]],
    ),
    "a loss": ("lambda a, b: core.contrastive_loss(a, b, 20.0, 1.0)", [[30000, 128]] * 2),
    "attention in training": (
        "lambda qkv: core.attention_forward(qkv, np.arange(0, 40001, 8000, dtype=np.int32),"
        " np.zeros(5, np.int64), num_heads=4, dropout=0.0, seed=0)",
        [[40000, 384]],
    ),
    "a measurement": ("lambda: core.measure_peak('float32', 2, 30.0)", []),
}  # fmt: skip
CALLING = """
from minifuse import ops
from minifuse.native import core
rng = np.random.default_rng(0)
arrays = [rng.standard_normal(shape, np.float32) for shape in json.loads(sys.argv[2])]
f = eval(sys.argv[1])
call = lambda: f(*arrays)
"""


@pytest.mark.parametrize("name", LONG)
def test_ctrl_c_during_a_long_call(name):
    call, shapes = LONG[name]
    assert float(run(STOPPED % CALLING, call, json.dumps(shapes), timeout=120)) < PROMISE


ENCODING = """
from minifuse import SentenceTransformer
model = SentenceTransformer(sys.argv[1], num_threads=int(sys.argv[2]))
model.max_seq_length = 12000
call = lambda: model.encode("a " * 20000)
"""


@pytest.mark.parametrize("num_threads", [1, 2])
def test_ctrl_c_within_a_step_of_a_long_text(tmp_path, num_threads):
    """The attention of one layer takes seconds here."""
    folder = write_tiny_model(
        tmp_path / "m", hidden_size=256, num_attention_heads=8, num_hidden_layers=1,
        intermediate_size=256, max_position_embeddings=12000,
    )  # fmt: skip
    assert float(run(STOPPED % ENCODING, folder, num_threads, timeout=120)) < PROMISE


def test_a_signal_handler_that_asks_for_the_tokenizers_package(tmp_path):
    """It may come at any moment while the package's tokenizer is made, and wants it as well."""
    script = """
import signal, sys, time
from minifuse.tokens.tokenization import TextTokenizer
state = open(sys.argv[1], encoding="utf-8").read()
pair = [("a", "b")]
wanted = TextTokenizer(state).encode(pair, 16).ids.tolist()
made = []
signal.signal(signal.SIGALRM, lambda *_: made.append(tokenizer.encode(pair, 16).ids.tolist()))
end = time.perf_counter() + 2
while time.perf_counter() < end:
    tokenizer = TextTokenizer(state)
    signal.setitimer(signal.ITIMER_REAL, 0.0005)
    assert tokenizer.encode(pair, 16).ids.tolist() == wanted
    while not made:
        pass
    assert made.pop() == wanted
print("done")
"""
    path = tmp_path / "tokenizer.json"
    backend = TOKENIZERS["bert"]
    backend.post_processor = processors.BertProcessing(("</s>", 1), ("<s>", 0))
    path.write_text(backend.to_str(), encoding="utf-8")
    assert run(script, path, timeout=120).strip() == "done"


def test_a_signal_handler_that_encodes(minilm_folder):
    """It runs within the native call, which asks for signals every 50 ms."""
    script = """
import signal, sys, time
import numpy as np
from minifuse import SentenceTransformer
model = SentenceTransformer(sys.argv[1], num_threads=2)
texts = ["word " * 200] * 48
start = time.perf_counter()
model.encode(texts[:2])
each = (time.perf_counter() - start) / 2
texts = texts[:max(4, int(1 / each))]  # about a second; a few on the scalar build
expected = model.encode(texts)
pause = max(0.1, len(texts) * each / 5)
handled = []
def handler(*_):
    handled.append(model.encode(texts[:1]))
    signal.setitimer(signal.ITIMER_REAL, pause)  # one at a time: on a busy machine they would nest
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, pause)
for _ in range(3):
    assert np.array_equal(model.encode(texts), expected)
signal.setitimer(signal.ITIMER_REAL, 0)
assert len(handled) > 3
assert all(np.array_equal(one, expected[:1]) for one in handled)
"""
    run(script, minilm_folder, timeout=400)  # on a busy machine; half a minute on a quiet one


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.3])
def test_daemon_threads_that_encode_while_the_interpreter_ends(tiny_folder, seconds):
    script = """
import sys, threading, time
from minifuse import SentenceTransformer
model = SentenceTransformer(sys.argv[1], num_threads=2)
texts = ["the sky is blue " * 8] * 200
def work():
    while True:
        model.encode(texts)
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
time.sleep(float(sys.argv[2]))
"""
    for _ in range(4):
        run(script, tiny_folder, seconds)


def test_daemon_threads_that_make_tokens_while_the_interpreter_ends(tiny_folder):
    """They hold Python's objects, and must keep the GIL whenever they could be ended."""
    script = """
import json, pathlib, sys, threading, time
from minifuse.tokens.native import native_tokenizer
tokenizer = native_tokenizer(json.loads(pathlib.Path(sys.argv[1], "tokenizer.json").read_text()))
texts = ["the sky is blue " * 8] * 200
def work():
    while True:
        tokenizer.encoder.encode(texts, prefix=[2], suffix=[3], max_length=64, num_threads=1)
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.05)
"""
    for _ in range(10):
        run(script, tiny_folder)


def test_native_calls_import_nothing(tiny_folder):
    """A daemon thread that first looks NumPy up while the interpreter shuts down would be ended in
    the middle of the call, without the GIL that the objects of its stack need."""
    script = """
import json, pathlib, sys
from minifuse.tokens.native import native_tokenizer
tokenizer = native_tokenizer(json.loads(pathlib.Path(sys.argv[1], "tokenizer.json").read_text()))
for name in list(sys.modules):
    if name.split(".")[0] == "numpy":
        sys.modules[name] = None  # an import of it raises
ids, *_ = tokenizer.encoder.encode(
    ["a dog"], prefix=[], suffix=[], max_length=8, num_threads=1)
assert len(ids) > 0
"""
    run(script, tiny_folder)


@pytest.mark.skipif(
    "MINIFUSE_SANITIZED" in os.environ,
    reason="the sanitizer's allocator of GCC 12 does not hand its own locks to the child of a fork",
)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_forks_while_other_threads_encode(tiny_folder):
    """A child finds no lock that a thread of its parent held, and no half-changed list."""
    script = """
import os, sys, threading, time
import numpy as np
from minifuse import SentenceTransformer
model = SentenceTransformer(sys.argv[1], num_threads=2)
texts = ["a dog", "the sky is blue", "jump over"]
expected = model.encode(texts)
stop = threading.Event()
def work():
    while not stop.is_set():
        model.encode(texts)
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
children = []
for _ in range(60):
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(model.encode(texts), expected) else 1)
    children.append(child)
    time.sleep(0.002)
deadline = time.monotonic() + 60
for child in children:
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, status
            break
        assert time.monotonic() < deadline, "a child hangs"
        time.sleep(0.01)
stop.set()
for thread in threads:
    thread.join()
"""
    run(script, tiny_folder)


def test_an_absurd_number_of_threads(tiny_folder):
    script = """
import sys, time
from pathlib import Path
import numpy as np
from minifuse import SentenceTransformer
model = SentenceTransformer(sys.argv[1], num_threads=1)
texts = ["the sky is blue " * 8] * 2
expected = model.encode(texts)
start = time.perf_counter()
assert np.array_equal(model.encode(texts, num_threads=1024), expected)
seconds = time.perf_counter() - start
threads = len(list(Path("/proc/self/task").iterdir())) if sys.platform == "linux" else 0
print(seconds, threads)
"""
    seconds, threads = run(script, tiny_folder).split()
    assert float(seconds) < 2.0
    assert int(threads) <= max(8, os.cpu_count() or 1) + 16


@pytest.mark.skipif(
    "MINIFUSE_SANITIZED" in os.environ,
    reason="the sanitizer maps terabytes of address space, which this test limits",
)
@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the number of threads")
def test_threads_that_cannot_be_started(tiny_folder):
    """Fewer threads do the work; later calls have not lost their turn."""
    script = """
import ctypes, sys
import numpy as np
from minifuse import SentenceTransformer
model = SentenceTransformer(sys.argv[1], num_threads=1)
texts = ["the sky is blue " * 8] * 500
expected = model.encode(texts)
import resource
resource.setrlimit(resource.RLIMIT_AS, (1 << 33, 1 << 33))
# A stack larger than the address space that is left: pthread_create fails.
libc = ctypes.CDLL(None)
attributes = ctypes.create_string_buffer(64)
libc.pthread_attr_init(attributes)
libc.pthread_attr_setstacksize(attributes, ctypes.c_size_t(1 << 40))
assert libc.pthread_setattr_default_np(attributes) == 0
for _ in range(3):
    assert np.array_equal(model.encode(texts, num_threads=4), expected)
libc.pthread_attr_setstacksize(attributes, ctypes.c_size_t(1 << 20))
assert libc.pthread_setattr_default_np(attributes) == 0
for _ in range(3):
    assert np.array_equal(model.encode(texts, num_threads=4), expected)
"""
    run(script, tiny_folder)


def test_many_callers_that_ask_for_more_than_there_is(tiny):
    texts = ["the sky is blue"] * 40
    expected = tiny.encode(texts)
    failures = []

    def call(num_threads: int) -> None:
        for _ in range(10):
            if not np.array_equal(tiny.encode(texts, num_threads=num_threads), expected):
                failures.append(num_threads)

    callers = [threading.Thread(target=call, args=(n,)) for n in (1, 1, 2, 3, 8, 1024)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
        assert not caller.is_alive()
    assert not failures


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_signal_handler_that_forks(minilm_folder):
    """The child has none of the threads that share the work: it is told so, and can encode anew."""
    script = """
import os, signal, sys, time
import numpy as np
from minifuse import SentenceTransformer
model = SentenceTransformer(sys.argv[1], num_threads=2)
texts = ["word " * 250] * 3
start = time.perf_counter()
expected = model.encode(texts)
pause = max(0.15, (time.perf_counter() - start) / 4)  # the scalar build takes seconds
parent, children = os.getpid(), []
def handler(*_):
    if os.getpid() == parent:
        child = os.fork()
        if child:
            children.append(child)
            signal.setitimer(signal.ITIMER_REAL, pause)  # one at a time: a fork takes a while
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, pause)
try:
    while len(children) < 3 and os.getpid() == parent:
        assert np.array_equal(model.encode(texts), expected)
except RuntimeError as error:
    assert os.getpid() != parent and "forked by a signal handler" in str(error)
finally:
    if os.getpid() != parent:
        signal.setitimer(signal.ITIMER_REAL, 0)
        os._exit(0 if np.array_equal(model.encode(texts), expected) else 1)
signal.setitimer(signal.ITIMER_REAL, 0)
for child in children:
    assert os.waitpid(child, 0)[1] == 0
"""
    run(script, minilm_folder, timeout=400)


def test_a_signal_handler_that_forks_while_its_thread_waits_for_a_turn(minilm_folder):
    """The threads that the child would wait for are its parent's."""
    script = """
import os, signal, sys, threading, time
import numpy as np
from minifuse import SentenceTransformer
model = SentenceTransformer(sys.argv[1], num_threads=2)
texts = ["word " * 250] * 3
expected = model.encode(texts)
parent, children, done = os.getpid(), [], []

def work():
    while not done:
        model.encode(texts * 8)

def handler(*_):
    if os.getpid() == parent and not children:
        child = os.fork()
        if child:
            children.append(child)

signal.signal(signal.SIGALRM, handler)
others = [threading.Thread(target=work, daemon=True) for _ in range(2)]
for other in others:
    other.start()
time.sleep(0.1)
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
try:
    while not children and os.getpid() == parent:
        assert np.array_equal(model.encode(texts), expected)
except RuntimeError as error:
    assert os.getpid() != parent and "forked by a signal handler" in str(error)
finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    if os.getpid() != parent:
        os._exit(0 if np.array_equal(model.encode(texts), expected) else 1)
assert os.waitpid(children[0], 0)[1] == 0
done.append(True)
for other in others:
    other.join()
"""
    run(script, minilm_folder, timeout=120)
