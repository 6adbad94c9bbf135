"""minifuse explore: clusters that are there are found, and the page works offline."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time

import numpy as np
import pytest

from minifuse import SentenceTransformer
from minifuse.cli import main
from minifuse.explore import explore
from minifuse.explore.page import write_page
from minifuse.files.texts import read_texts

pytest.importorskip("sklearn", reason="clusters are scikit-learn's")

HOSTILE = '</script><script>alert(1)</script> <b>&amp; "quoted" \u2028 ünïcode 🦊'


@pytest.fixture
def blobs(rng):
    """Three directions, 60, 40 and 20 texts."""
    centers = np.eye(8)[:3]
    words = ("apple pie recipe", "football match tonight", "quarterly revenue report")
    texts, vectors = [], []
    for center, phrase, count in zip(centers, words, (60, 40, 20), strict=True):
        texts += [f"{phrase} number {i}" for i in range(count)]
        vectors.append(center + rng.normal(0, 0.1, (count, 8)))
    return texts, np.concatenate(vectors)


def test_names_are_words_that_say_something(rng):
    """Words such as "an" and "be" are as much a cluster's own here; where no others are, they stay."""
    phrases = ("an account to be closed", "which parking is there", "which of them")
    counts = (30, 20, 10)
    texts = [phrase for phrase, n in zip(phrases, counts, strict=True) for _ in range(n)]
    vectors = np.eye(8)[:3].repeat(counts, axis=0) + rng.normal(0, 0.05, (60, 8))
    names = explore(texts, vectors, 3).names
    assert set(names[0].split(", ")) == {"account", "closed"}
    assert names[1] == "parking"
    assert set(names[2].split(", ")) <= {"which", "of", "them"}


def test_clusters_that_are_there(blobs):
    texts, vectors = blobs
    result = explore(texts, vectors)
    assert np.bincount(result.labels).tolist() == [60, 40, 20]
    assert len(set(result.labels[:60])) == 1
    for name, word in zip(result.names, ("apple", "football", "revenue"), strict=True):
        assert word in name
        assert "number" not in name
    assert max(result.silhouettes, key=result.silhouettes.get) == 3
    assert [result.labels[i] for i in result.centers] == [0, 1, 2]
    assert result.points.shape == (120, 2)
    assert result.variance.sum() == pytest.approx(1)
    assert (np.diff(result.variance) <= 0).all()
    np.testing.assert_array_equal(explore(texts, vectors).points, result.points)


def test_principal_components_against_numpy(blobs):
    texts, vectors = blobs
    result = explore(texts, vectors, 3)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    _, values, axes = np.linalg.svd(unit - unit.mean(0), full_matrices=False)
    np.testing.assert_allclose(result.variance, values**2 / (values**2).sum(), atol=1e-6)
    ours, theirs = result.points, (unit - unit.mean(0)) @ axes[:2].T
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-5)


def test_what_cannot_be_explored(blobs):
    texts, vectors = blobs
    with pytest.raises(ValueError, match="1 different texts, wanted at least 3"):
        explore(["a"] * 5, np.ones((5, 4)))
    with pytest.raises(ValueError, match=r"num_clusters is 121, wanted 2\.\.120"):
        explore(texts, vectors, 121)
    with pytest.raises(ValueError, match="wanted as many rows"):
        explore(texts[1:], vectors)


def page_data(page):
    return json.loads(re.search(r"^const data = (.*);$", page, re.M)[1])


def test_the_page_holds_what_was_found(blobs, tmp_path):
    texts, vectors = blobs
    texts = [HOSTILE, *texts[1:]]
    write_page(explore(texts, vectors), tmp_path / "map.html", 'a & "b" <c>')
    page = (tmp_path / "map.html").read_text("utf-8")
    data = page_data(page)
    assert data["texts"] == texts
    assert data["sizes"] == [60, 40, 20]
    assert page.count("<script>") == page.count("</script>") == 1
    assert "a &amp; &quot;b&quot; &lt;c&gt;" in page
    assert "default-src 'none'" in page
    # But for the name space of SVG it knows no address.
    assert set(re.findall(r"https?://[^\"' ]+", page)) == {"http://www.w3.org/2000/svg"}


def _browser():
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if path := shutil.which(name):
            return path
    return None


@pytest.mark.skipif(_browser() is None, reason="no Chromium to open the page with")
def test_hovering_shows_the_sentence(blobs, tmp_path):
    """In a headless browser: no error, no request, and the tip under the mouse is the text."""
    texts, vectors = blobs
    texts = [HOSTILE, *texts[1:]]
    write_page(explore(texts, vectors), tmp_path / "map.html", "texts")
    probe = """<script>
    window.addEventListener("error", e => document.body.dataset.error = e.message);
    document.addEventListener("securitypolicyviolation", e => document.body.dataset.violation = e.blockedURI);
    window.addEventListener("load", () => {
      const [x, y] = place(0), box = canvas.getBoundingClientRect();
      canvas.dispatchEvent(new MouseEvent("mousemove", {clientX: box.left + x, clientY: box.top + y}));
      const drawn = context.getImageData(0, 0, canvas.width, canvas.height).data.some(v => v !== 0);
      document.body.dataset.result = JSON.stringify({
        tip: tip.firstChild.textContent, shown: tip.style.display, drawn,
        requests: performance.getEntriesByType("resource").length });
    });
    </script></body>"""
    page = (tmp_path / "map.html").read_text("utf-8").replace("</body>", probe)
    (tmp_path / "probe.html").write_text(page, "utf-8")
    command = [_browser(), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
               "--virtual-time-budget=3000", f"--user-data-dir={tmp_path / 'profile'}",
               (tmp_path / "probe.html").as_uri()]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    import html

    body = html.unescape(re.search(r"<body[^>]*>", run.stdout)[0])
    assert "data-error" not in body
    assert "data-violation" not in body
    result = json.loads(re.search(r'data-result="(.*?\})"', body, re.S)[1])
    hovered = result.pop("tip")
    near = np.abs(explore(texts, vectors).points - explore(texts, vectors).points[0]).sum(1)
    assert hovered == HOSTILE or near[texts.index(hovered)] < 0.05
    assert result == {"shown": "block", "drawn": True, "requests": 0}


def test_the_command(tiny_folder, tmp_path, capsys):
    lines = tmp_path / "lines.txt"
    lines.write_text("".join(f"the {color} car\n" for color in ("red", "blue", "sky") * 5))
    arguments = ["explore", str(lines), "-m", str(tiny_folder), "-k", "2"]
    assert main([*arguments, "--png", str(tmp_path / "map.png")]) == 0
    assert "lines.html" in capsys.readouterr().out
    assert page_data((tmp_path / "lines.html").read_text("utf-8"))["sizes"] == [10, 5]
    assert (tmp_path / "map.png").read_bytes()[:4] == b"\x89PNG"
    lines.write_text("one\n")
    assert main(arguments) == 2
    assert "wanted at least 3" in capsys.readouterr().err


@pytest.mark.slow
def test_ten_thousand_questions_in_half_a_minute(minilm_folder, data):
    minilm = SentenceTransformer(minilm_folder, dtype="auto")
    texts = list(read_texts(str(data / "pairs" / "banking77_train.tsv"), "text"))[:10_000]
    start = time.perf_counter()
    explore(texts, minilm.encode(texts))
    assert time.perf_counter() - start < 30
