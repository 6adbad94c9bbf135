"""Explore a collection of texts: find clusters of similar meaning, name them, and draw a map.

Embeddings of length 1 are clustered by k-means, which on the unit sphere follows the cosine; the
number of clusters is the one with the best silhouette. Names are the words that set a cluster apart
from the rest. The map is the first two principal components.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from minifuse.search import similarity

__all__ = ["Exploration", "explore", "write_png"]

FloatArray = npt.NDArray[np.float32]

# Numbers of clusters that are tried where none is asked for.
_CANDIDATES = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 25, 32, 40, 50, 64, 80, 100)
# Texts that a silhouette is taken over: it grows with the square.
_SILHOUETTE_TEXTS = 1500
# Texts that a number of clusters is tried on.
_FEW_TEXTS = 3000
_WORD = re.compile(r"[^\W\d_][\w'’-]+")
# They are no name of a cluster: articles, pronouns, prepositions, conjunctions, auxiliary verbs.
_FUNCTION_WORDS = frozenset(
    _WORD.findall(
        """
        a about above after again against all also am an and any are aren't as at be
        because been before being below between both but by can can't cannot could
        couldn't did didn't do does doesn't doing don't done down during each either
        else ever every few for from further get gets getting got had hadn't has hasn't
        have haven't having he her here here's hers herself him himself his how however
        i i'd i'll i'm i've if in into is isn't it it's its itself just let let's may me
        might more most much must my myself no nor not of off on once only or other our
        ours ourselves out over own rather same shall she should shouldn't since so some
        still such than that that's the their theirs them themselves then there there's
        these they they're this those through to too under until up upon us very was
        wasn't we we're were weren't what what's when where which while who whom whose
        why will with within without won't would wouldn't yet you you're your yours
        yourself yourselves
        """
    )
)


@dataclass(frozen=True)
class Exploration:
    """Texts, in clusters, on a map.

    Attributes:
        texts: n of them.
        labels: [n], the cluster of each, 0 the largest.
        names: a name a cluster.
        points: [n, 2], the first two principal components of the embeddings.
        variance: [components], the share of the variance that each component explains (the scree).
        silhouettes: number of clusters -> silhouette, of those tried.
        centers: [clusters], the text nearest to each cluster's middle.
    """

    texts: list[str]
    labels: npt.NDArray[np.int64]
    names: list[str]
    points: FloatArray
    variance: FloatArray
    silhouettes: dict[int, float]
    centers: list[int]


def _sklearn() -> Any:
    try:
        import sklearn.cluster
        import sklearn.metrics
    except ImportError as error:
        raise ImportError(
            "exploring needs scikit-learn, which is not installed: pip install 'minifuse[eval]'"
        ) from error
    return sklearn


def explore(
    texts: Sequence[str], embeddings: Any, num_clusters: int | None = None, seed: int = 0
) -> Exploration:
    """Cluster, name and project texts by their embeddings.

    Args:
        texts: at least three.
        embeddings: [len(texts), d].
        num_clusters: 2 up to the number of texts that differ; the one with the best silhouette if
            None.
        seed: of k-means and of the texts that silhouettes are taken over.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: too few texts, fewer different ones than clusters, or embeddings of another
            number.
    """
    sklearn = _sklearn()
    vectors = np.asarray(similarity.normalize_embeddings(embeddings), np.float32)
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise ValueError(f"{len(texts)} texts and embeddings {vectors.shape}: wanted as many rows")
    num_distinct = len(np.unique(vectors.round(5), axis=0)) if len(vectors) else 0
    if num_distinct < 3:
        raise ValueError(f"{num_distinct} different texts, wanted at least 3 to find clusters in")
    if num_clusters is not None and not 2 <= num_clusters <= num_distinct:
        raise ValueError(
            f"num_clusters is {num_clusters}, wanted 2..{num_distinct}, the texts that differ"
        )
    silhouettes: dict[int, float] = {}
    if num_clusters is None:
        silhouettes = _silhouettes(sklearn, vectors, num_distinct, seed)
        num_clusters = max(silhouettes, key=lambda k: silhouettes[k])
    # One start is enough where every cluster has many texts; few texts can afford more.
    starts = 3 if len(vectors) <= _FEW_TEXTS else 1
    means = sklearn.cluster.KMeans(
        num_clusters, n_init=starts, max_iter=100, random_state=seed
    ).fit(vectors)
    # The largest cluster first; equal ones in the order of their first text.
    found = np.asarray(means.labels_)
    sizes = np.bincount(found, minlength=num_clusters)
    order = np.lexsort((np.arange(num_clusters), -sizes))
    labels = np.argsort(order)[found]
    nearest = [
        int(members[np.argmax(vectors[members] @ means.cluster_centers_[order[cluster]])])
        for cluster in range(num_clusters)
        if len(members := np.flatnonzero(labels == cluster))
    ]
    points, variance = _principal_components(vectors)
    names = _names(texts, labels, len(nearest))
    return Exploration(list(texts), labels, names, points, variance, silhouettes, nearest)


def _silhouettes(sklearn: Any, vectors: FloatArray, most: int, seed: int) -> dict[int, float]:
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(vectors))
    rows, some = np.sort(order[:_SILHOUETTE_TEXTS]), vectors[np.sort(order[:_FEW_TEXTS])]
    result = {}
    for k in _CANDIDATES:
        if k >= min(most, len(rows)):
            break
        means = sklearn.cluster.MiniBatchKMeans(k, n_init=2, random_state=seed, batch_size=2048)
        labels = means.fit(some).predict(vectors[rows])
        if 1 < len(np.unique(labels)) < len(rows):
            result[k] = float(sklearn.metrics.silhouette_score(vectors[rows], labels))
    return result or {2: 0.0}


def _principal_components(vectors: FloatArray) -> tuple[FloatArray, FloatArray]:
    centred = (vectors - vectors.mean(axis=0)).astype(np.float64)
    values, axes = np.linalg.eigh(centred.T @ centred / len(centred))
    values, axes = np.maximum(values[::-1], 0), axes[:, ::-1]
    plane = axes[:, :2]
    if plane.shape[1] < 2:
        plane = np.pad(plane, ((0, 0), (0, 1)))
    # An axis has no direction of its own: its largest part points up.
    plane = plane * np.sign(plane[np.abs(plane).argmax(axis=0), [0, 1]] + 1e-300)
    share = values / max(values.sum(), 1e-300)
    return (centred @ plane).astype(np.float32), share.astype(np.float32)


def _names(texts: Sequence[str], labels: npt.NDArray[np.int64], num_clusters: int) -> list[str]:
    """The three words a cluster that are most its own.

    By the log-odds ratio with what is common as the prior (Monroe, Colaresi and Quinn 2008), and
    without English words that only hold a sentence together, unless a cluster has no others.
    """
    words_of = [set(_WORD.findall(text.lower())) for text in texts]
    everywhere = Counter(word for words in words_of for word in words)
    names = []
    for cluster in range(num_clusters):
        members = np.flatnonzero(labels == cluster)
        inside = Counter(word for i in members for word in words_of[i])
        scores = {
            word: _log_odds(
                count, len(members), everywhere[word] - count, len(texts) - len(members)
            )
            for word, count in inside.items()
            if 2 * count > min(3, len(members))
        }
        telling = scores.keys() - _FUNCTION_WORDS or scores.keys()
        best = sorted(telling, key=lambda word: (-scores[word], word))[:3]
        names.append(", ".join(best) or f"cluster {cluster + 1}")
    return names


def _log_odds(inside: int, num_inside: int, outside: int, num_outside: int) -> float:
    """Return by how many deviations a word is more common in num_inside texts than elsewhere."""
    prior = 2.0 * (inside + outside) / (num_inside + num_outside)
    a, b = inside + prior, outside + prior
    odds = np.log(a / (num_inside + 2 - a + 1e-9)) - np.log(b / (num_outside + 2 - b + 1e-9))
    return float(odds / np.sqrt(1 / a + 1 / b))


def write_png(exploration: Exploration, path: str | Path) -> None:
    """The map and the scree as a .png, .svg or .pdf.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: another ending.
    """
    from matplotlib import colormaps

    from minifuse.files.plots import new_figure, save_figure

    figure = new_figure(11, 6)
    grid = figure.add_gridspec(2, 2, width_ratios=[3, 1])
    chart, scree, chosen = (figure.add_subplot(at) for at in (grid[:, 0], grid[0, 1], grid[1, 1]))
    colors = colormaps["tab20"](exploration.labels % 20)
    chart.scatter(*exploration.points.T, c=colors, s=4, linewidths=0)
    for cluster, name in enumerate(exploration.names[:20]):
        x, y = np.median(exploration.points[exploration.labels == cluster], axis=0)
        chart.text(x, y, name, fontsize=7, ha="center")
    chart.set_xlabel(f"first component ({exploration.variance[0]:.1%} of the variance)")
    second = exploration.variance[1] if len(exploration.variance) > 1 else 0.0
    chart.set_ylabel(f"second component ({second:.1%})")
    scree.plot(np.arange(1, 31)[: len(exploration.variance)], exploration.variance[:30], ".-")
    scree.set_title("scree: variance by component", fontsize=9)
    if exploration.silhouettes:
        chosen.plot(list(exploration.silhouettes), list(exploration.silhouettes.values()), ".-")
        chosen.axvline(len(exploration.names), color="0.6", lw=1)
    chosen.set_title("silhouette by clusters", fontsize=9)
    save_figure(figure, path)
