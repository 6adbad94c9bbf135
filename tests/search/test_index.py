"""minifuse.Index: exact order, the same bits whatever is searched together, and files that last."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import minifuse
from minifuse import Index
from minifuse.native import core


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def exact(queries, vectors, k):
    """Scores in float64 and ids, best first, ties by the lower id."""
    scores = queries.astype(np.float64) @ vectors.astype(np.float64).T
    ids = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, ids, 1), ids


def same_ranking(ids, wanted, scores, gap):
    """Equal wherever neighbouring scores of the exact ranking differ by more than gap."""
    for row, (ours, theirs) in enumerate(zip(ids, wanted, strict=True)):
        for place in np.flatnonzero(ours != theirs):
            others = np.flatnonzero(theirs == ours[place])
            assert others.size, f"query {row}: {ours[place]} is not among the best"
            assert abs(scores[row, place] - scores[row, others[0]]) <= gap


@pytest.fixture
def every_isa():
    before = core.isa()
    yield core.supported_isas()
    core.select_isa(before)


@pytest.mark.parametrize("dim", [1, 2, 3, 15, 16, 17, 31, 33, 64, 100, 384])
@pytest.mark.parametrize("num_queries", [1, 2, 3, 4, 6, 8, 9, 16, 17, 33, 70])
def test_float32_is_the_exact_ranking(rng, dim, num_queries):
    vectors = rng.standard_normal((333, dim)).astype(np.float32)
    queries = rng.standard_normal((num_queries, dim)).astype(np.float32)
    index = Index(dim, metric="dot")
    index.add(vectors)
    scores, ids = index.search(queries, 12)
    assert scores.dtype == np.float32
    assert ids.dtype == np.int64
    wanted_scores, wanted = exact(queries, vectors, 12)
    largest = np.abs(wanted_scores).max()
    same_ranking(ids, wanted, wanted_scores, 1e-6 * largest)
    np.testing.assert_allclose(scores, wanted_scores, atol=1e-6 * largest)
    assert (np.diff(scores) <= 0).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_the_bits_of_a_query_do_not_depend_on_the_others(rng, every_isa, dtype):
    """Alone or among a hundred, on any number of threads and any instruction set."""
    vectors, queries = rng.standard_normal((20_000, 50)), rng.standard_normal((100, 50))
    index = Index(50, dtype)
    index.add(vectors)
    wanted_scores, wanted = index.search(queries, 7)
    for isa in every_isa:
        core.select_isa(isa)
        few = 5 if isa == "scalar" else 100
        for threads in (1, 2, 3):
            for step in (1, 3, 10, few):
                if step == 1 and threads > 1:
                    continue
                for first in range(0, min(few, 20), step):
                    part = slice(first, first + step)
                    scores, ids = index.search(queries[part], 7, num_threads=threads)
                    np.testing.assert_array_equal(ids, wanted[part])
                    np.testing.assert_array_equal(scores, wanted_scores[part])


def test_ties_go_to_the_lower_id(rng):
    vectors = np.repeat(rng.standard_normal((10, 24)), 3000, axis=0)
    index = Index(24)
    index.add(vectors)
    for queries in (vectors[3000:3001], vectors[[3000] * 12]):
        for threads in (1, 2):
            _, ids = index.search(queries, 50, num_threads=threads)
            np.testing.assert_array_equal(ids, [np.arange(3000, 3050)] * len(queries))


def test_bfloat16_is_the_exact_ranking_of_rounded_vectors(rng):
    vectors, queries = rng.standard_normal((500, 40)), rng.standard_normal((20, 40))
    index = Index(40, "bfloat16", "dot")
    index.add(vectors)
    stored = index.reconstruct(range(500))
    assert np.abs(stored - vectors).max() <= np.abs(vectors).max() / 256
    scores, ids = index.search(queries, 10)
    wanted_scores, wanted = exact(queries.astype(np.float32), stored, 10)
    same_ranking(ids, wanted, wanted_scores, 1e-5)
    np.testing.assert_allclose(scores, wanted_scores, rtol=1e-5)


@pytest.mark.parametrize("dim", [1, 3, 4, 63, 64, 65, 130, 384])
@pytest.mark.parametrize("num_queries", [1, 3, 4, 5, 40])
def test_int8_scores_are_near(rng, dim, num_queries):
    vectors = unit(rng.standard_normal((300, dim)) + 0.3)
    queries = unit(rng.standard_normal((num_queries, dim)))
    index = Index(dim, "int8")
    index.add(vectors)
    scores, ids = index.search(queries, 300)
    every = queries @ vectors.T
    np.testing.assert_allclose(scores, np.take_along_axis(every, ids, 1), atol=0.02)
    assert abs(index.nbytes - 300 * (-(-dim // 4) * 4 + 8)) == 0


def test_int8_rescored_is_float32s_order(rng):
    vectors, queries = rng.standard_normal((5000, 96)), rng.standard_normal((30, 96))
    exact_index, index = Index(96), Index(96, "int8", rescore=True)
    for one in (exact_index, index):
        one.add(vectors)
    scores, ids = index.search(queries, 10)
    wanted_scores, wanted = exact_index.search(queries, 10)
    np.testing.assert_array_equal(ids, wanted)
    np.testing.assert_array_equal(scores, wanted_scores)  # the same bits
    assert repr(index) == "Index(5000 vectors, dim=96, dtype='int8', metric='cosine', rescore=True)"


def test_cosine_does_not_see_lengths(rng):
    vectors, queries = rng.standard_normal((200, 20)), rng.standard_normal((3, 20))
    index = Index(20)
    index.add(vectors * rng.uniform(0.01, 100, (200, 1)))
    scores, ids = index.search(queries * 7, 5)
    wanted_scores, wanted = exact(unit(queries), unit(vectors), 5)
    np.testing.assert_array_equal(ids, wanted)
    np.testing.assert_allclose(scores, wanted_scores, atol=1e-6)


def test_shapes_and_types(rng):
    index = Index(8)
    assert index.add(np.empty((0, 8), np.float32)) == range(0)
    assert index.add(rng.standard_normal(8)) == range(1)
    assert index.add(rng.standard_normal((4, 8))) == range(1, 5)
    scores, ids = index.search(rng.standard_normal(8), 2)
    assert scores.shape == ids.shape == (2,)
    scores, ids = index.search(np.empty((0, 8)), 2)
    assert scores.shape == ids.shape == (0, 2)
    vectors = rng.standard_normal((5, 8)).astype(np.float32)
    one = Index(8, metric="dot")
    one.add(vectors)
    vectors[:] = 0  # the index keeps its own
    assert np.abs(one.reconstruct([0, 4])).min() > 0


def test_torch_tensors(rng):
    torch = pytest.importorskip("torch", reason="tensors need PyTorch")
    vectors = rng.standard_normal((10, 8)).astype(np.float32)
    index = Index(8)
    index.add(torch.from_numpy(vectors))
    assert index.search(torch.from_numpy(vectors[3]), 1)[1][0] == 3


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    sizes=st.lists(st.integers(0, 40), max_size=12),
    dim=st.integers(1, 40),
    dtype=st.sampled_from(["float32", "bfloat16", "int8"]),
    with_texts=st.booleans(),
    saves=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_many_appends_are_one(tmp_path_factory, sizes, dim, dtype, with_texts, saves, seed):
    """However the vectors come in pieces, in memory, saved, appended or mapped."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((sum(sizes), dim)) + 0.01
    texts = [f"text {i} ü" for i in range(len(vectors))] if with_texts else None
    whole, pieces = Index(dim, dtype), Index(dim, dtype)
    whole.add(vectors, texts)
    path = tmp_path_factory.mktemp("index") / "pieces.index"
    first = 0
    for size in sizes:
        part = slice(first, first + size)
        pieces.add(vectors[part], texts[part] if texts else None)
        first += size
        if saves:
            pieces.save(path)
            if rng.integers(2):
                pieces = Index.load(path, mmap=bool(rng.integers(2)), verify=bool(rng.integers(2)))
    assert len(pieces) == len(vectors)
    if len(vectors):
        queries = rng.standard_normal((3, dim)) + 0.01
        k = min(5, len(vectors))
        for ours, theirs in zip(pieces.search(queries, k), whole.search(queries, k), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        if texts:
            assert [pieces.text(i) for i in range(len(texts))] == texts


# ---- what is refused ------------------------------------------------------------------------


def test_wrong_arguments(rng):
    for arguments, message in (
        ({"dim": 0}, "dim is 0, wanted 1"),
        ({"dim": True}, "dim is True"),
        (
            {"dim": 4, "dtype": "float16"},
            "dtype is 'float16', wanted one of float32, bfloat16, int8",
        ),
        ({"dim": 4, "metric": "l2"}, "metric is 'l2', wanted one of cosine, dot"),
        ({"dim": 4, "rescore": True}, "rescore=True is for dtype='int8'"),
    ):
        with pytest.raises(ValueError, match=message):
            Index(**arguments)
    index = Index(4)
    for k in (0, 1):
        with pytest.raises(ValueError, match=f"k is {k}, wanted 1..0, the number of vectors"):
            index.search(np.ones(4), k)
    index.add(np.eye(4))
    for value, error, message in (
        (np.ones((2, 5)), ValueError, r"vectors has shape \(2, 5\), wanted \[n, 4\]"),
        (np.ones((1, 1, 4)), ValueError, "wanted"),
        ([[1, 2, 3, np.nan]], ValueError, r"vectors\[0\] holds a NaN"),
        (np.float32([[1, 0, 0, 0], [1, np.inf, 0, 0]]), ValueError, r"vectors\[1\] holds a NaN"),
        (np.full((1, 4), 1e300), ValueError, r"vectors\[0\] holds"),
        (np.zeros((2, 4)), ValueError, r"vectors\[0\] is a vector of zeros"),
        ([[1e-13, 0, 0, 0]], ValueError, r"vectors\[0\] is a vector of zeros, or nearly"),
        (np.array([["a", "b", "c", "d"]]), TypeError, "dtype"),
    ):
        with pytest.raises(error, match=message), np.errstate(over="ignore"):
            index.add(value)
    with pytest.raises(ValueError, match=r"k is 5, wanted 1\.\.4"):
        index.search(np.ones(4), 5)
    with pytest.raises(ValueError, match=r"queries\[0\] is a vector of zeros"):
        index.search(np.zeros(4), 1)
    with pytest.raises(ValueError, match="oversample is 0"):
        index.search(np.ones(4), 1, oversample=0)
    with pytest.raises(ValueError, match="came without texts"):
        index.add(np.ones((1, 4)), ["text"])
    with pytest.raises(ValueError, match="came without texts"):
        index.text(0)
    with pytest.raises(IndexError, match=r"id is 4, wanted 0\.\.3"):
        index.text(4)
    with pytest.raises(IndexError, match="ids reach"):
        index.reconstruct([4])
    assert len(index) == 4
    texts = Index(4)
    with pytest.raises(ValueError, match="wanted as many texts"):
        texts.add(np.ones((2, 4)), ["one"])
    with pytest.raises(TypeError, match=r"texts\[1\] is a int"):
        texts.add(np.ones((2, 4)), ["one", 2])
    zeros = Index(4, metric="dot")
    zeros.add(np.zeros((2, 4)))
    np.testing.assert_array_equal(zeros.search(np.ones(4), 2)[1], [0, 1])


def test_the_native_search_checks_its_arguments():
    vectors = np.ones((3, 4), np.float32)
    queries = np.ones((1, 4), np.float32)
    for segments, dtype, dim, stride, message in (
        ([(vectors, None)], "float32", 5, 5, "wanted C-contiguous"),
        ([(vectors.astype(np.float64), None)], "float32", 4, 4, "another dtype"),
        ([(vectors, None)], "int8", 4, 4, "another dtype"),
        ([(np.ones((3, 4), np.uint8), None)], "int8", 4, 4, r"scale: wanted \[3, 2\]"),
        ([(vectors.T.copy().T, None)], "float32", 4, 4, "wanted C-contiguous"),
        ([(vectors, None)], "float32", 4, 3, "stride is 3"),
    ):
        with pytest.raises(ValueError, match=message):
            core.search(segments, dtype, dim, stride, queries, 1, 1)
    with pytest.raises(ValueError, match="k is 4"):
        core.search([(vectors, None)], "float32", 4, 4, queries, 4, 1)
    with pytest.raises(ValueError, match="candidate 3, wanted"):
        core.rescore([(vectors, None)], 4, queries, np.array([[3]]), 1, 1)


def test_another_model_is_refused(tiny, tmp_path):
    index = Index(tiny.get_embedding_dimension())
    index.bind(tiny)
    index.add(tiny.encode(["a red car"]))
    index.save(tmp_path / "tiny.index")
    index = Index.load(tmp_path / "tiny.index")
    assert index.model_name == tiny.name
    index.check_model(tiny)

    class Other:
        def encode(self, text):
            return -np.asarray(tiny.encode(text))

    with pytest.raises(ValueError, match="this model gives others"):
        index.check_model(Other())
    with pytest.raises(ValueError, match="dimensions"):
        Index(3).check_model(tiny)


def test_ctrl_c_stops_a_search():
    script = (
        "import numpy as np, minifuse, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & ignores it\n"
        "i = minifuse.Index(256, metric='dot'); i.add(np.ones((200_000, 256), np.float32))\n"
        "print('ready', flush=True)\n"
        "try:\n    i.search(np.ones((60_000, 256), np.float32), 10)\n"
        "except KeyboardInterrupt:\n    print('stopped', flush=True)"
    )
    run = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert run.stdout.readline() == "ready\n"
        time.sleep(0.5)
        start = time.perf_counter()
        run.send_signal(signal.SIGINT)
        assert run.communicate(timeout=30)[0] == "stopped\n"
        assert time.perf_counter() - start < 3
    finally:
        run.kill()
        run.communicate()


# ---- the command line -----------------------------------------------------------------------


def run_cli(capsys, *arguments):
    from minifuse.cli import main

    status = main(list(map(str, arguments)))
    return status, *capsys.readouterr()


def test_build_search_info(tiny_folder, tmp_path, capsys):
    texts = [f"the car number {i} is red" for i in range(30)] + ["the sky is blue"]
    lines = tmp_path / "texts.txt"
    lines.write_text("\n".join(texts[:20]) + "\n")
    path = tmp_path / "cars.index"
    build = ("index", "build", lines, "-o", path, "-m", tiny_folder, "--dtype", "int8")
    assert run_cli(capsys, *build)[0] == 0
    lines.write_text("\n".join(texts) + "\n")
    status, out, err = run_cli(capsys, *build)  # goes on
    assert status == 0
    assert "20 texts are there already" in err
    assert "31 vectors" in out
    status, out, _ = run_cli(
        capsys, "index", "search", path, "the sky is blue", "-k", "3", "--json"
    )
    assert status == 0
    import json

    hits = json.loads(out)["hits"]
    assert hits[0]["id"] == 30
    assert hits[0]["text"] == "the sky is blue"
    assert hits[0]["score"] == pytest.approx(1, abs=1e-5)
    assert len(hits) == 3
    status, out, _ = run_cli(capsys, "index", "search", path, "a car", "the sky", "-k", "2")
    assert status == 0
    assert len(out.splitlines()) == 8
    status, out, _ = run_cli(capsys, "index", "info", path, "--verify")
    assert status == 0
    assert "float32 beside" in out
    assert "all match" in out
    lines.write_text("another text\n" * 40)
    status, _, err = run_cli(capsys, *build)
    assert status == 2
    assert "holds another text as number 0" in err


def test_the_contract():
    index = minifuse.Index(4, dtype="float32", metric="cosine")
    index.add(np.eye(4, dtype=np.float32))
    scores, ids = index.search(np.eye(4, dtype=np.float32)[:2], 1)
    np.testing.assert_array_equal(ids, [[0], [1]])
    np.testing.assert_array_equal(scores, [[1], [1]])
