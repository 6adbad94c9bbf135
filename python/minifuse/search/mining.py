"""Search, pairs and communities among embeddings, by sentence-transformers' names and results.

Cosine and dot product run on the kernels of ``minifuse.Index``: no matrix of scores is made.
Another score function is called on chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from minifuse import native
from minifuse.native import core
from minifuse.search.similarity import as_matrix, cos_sim, dot_score, unit_rows

__all__ = [
    "community_detection",
    "paraphrase_mining",
    "paraphrase_mining_embeddings",
    "semantic_search",
]

Array = npt.NDArray[Any]
IdArray = npt.NDArray[np.int64]
ScoreFunction = Callable[[Any, Any], Any]


def _check_positive(**values: int) -> None:
    for name, value in values.items():
        if value <= 0:
            raise ValueError(f"{name} is {value}, wanted > 0")


def _finite(name: str, rows: Array) -> Array:
    is_whole = np.isfinite(rows).all(axis=1)
    if not is_whole.all():
        row = int(np.flatnonzero(~is_whole)[0])
        raise ValueError(f"{name}[{row}] holds a NaN or an infinity: it has no neighbours")
    return rows


def _best(scores: Array, ids: IdArray, k: int) -> tuple[Array, IdArray]:
    """The k highest of scores [n], best first, and their ids; ids ascend within equal scores."""
    falling = -scores
    if len(scores) > k:
        kept = ~(falling > np.partition(falling, k - 1)[k - 1])  # a few more where scores are equal
        falling, scores, ids = falling[kept], scores[kept], ids[kept]
    order = np.argsort(falling, kind="stable")[:k]
    return scores[order], ids[order]


def _top_k(
    queries: Array,
    corpus: Array,
    k: int,
    score_function: ScoreFunction,
    query_chunk_size: int,
    corpus_chunk_size: int,
) -> tuple[Array, Array]:
    """Scores and ids [num_queries, min(k, num_corpus)], best first, ties by the lower id."""
    k = min(k, len(corpus))
    if score_function in (cos_sim, dot_score):
        if score_function is cos_sim:
            queries, corpus = unit_rows(queries), unit_rows(corpus)
        rows = np.ascontiguousarray(queries, np.float32)
        vectors = np.ascontiguousarray(corpus, np.float32)
        dim = vectors.shape[1]
        threads = core.default_num_threads()
        return core.search([(vectors, None)], "float32", dim, dim, rows, k, threads)
    scores_of, ids_of = [], []
    for first in range(0, len(queries), query_chunk_size):
        chunk = queries[first : first + query_chunk_size]
        best_scores = np.empty((len(chunk), 0))
        best_ids = np.empty((len(chunk), 0), np.int64)
        for start in range(0, len(corpus), corpus_chunk_size):
            part = corpus[start : start + corpus_chunk_size]
            scores = score_function(chunk, part)
            scores = np.asarray(scores.cpu().numpy() if native.is_tensor(scores) else scores)
            if scores.shape != (len(chunk), len(part)):
                raise ValueError(
                    f"score_function gave an array of shape {list(scores.shape)}, wanted "
                    f"{[len(chunk), len(part)]}"
                )
            ids = np.arange(start, start + len(part))
            found = [
                _best(np.concatenate([known, new]), np.concatenate([known_ids, ids]), k)
                for known, new, known_ids in zip(best_scores, scores, best_ids, strict=True)
            ]
            best_scores = np.stack([row[0] for row in found])
            best_ids = np.stack([row[1] for row in found])
        scores_of.append(best_scores)
        ids_of.append(best_ids)
    if not scores_of:
        return np.empty((0, k)), np.empty((0, k), np.int64)
    return np.concatenate(scores_of), np.concatenate(ids_of)


def semantic_search(
    query_embeddings: Any,
    corpus_embeddings: Any,
    query_chunk_size: int = 100,
    corpus_chunk_size: int = 500_000,
    top_k: int = 10,
    score_function: ScoreFunction = cos_sim,
) -> list[list[dict[str, int | float]]]:
    """The top_k corpus rows of each query, best first, ties by the lower id.

    Args:
        query_embeddings: [num_queries, d] or [d].
        corpus_embeddings: [num_corpus, d].
        query_chunk_size, corpus_chunk_size: rows that a score function of your own gets at a time.
        top_k: how many.
        score_function: scores of [q, d] with [c, d], higher is better.

    Returns:
        Per query a list of {"corpus_id": int, "score": float}.

    Raises:
        ValueError: a size that is not positive, other dimensions of queries than of the corpus, or
            a row that holds a NaN or an infinity (it is named).
    """
    _check_positive(
        query_chunk_size=query_chunk_size, corpus_chunk_size=corpus_chunk_size, top_k=top_k
    )
    queries = _finite("query_embeddings", as_matrix("query_embeddings", query_embeddings)[0])
    corpus = _finite("corpus_embeddings", as_matrix("corpus_embeddings", corpus_embeddings)[0])
    if not len(corpus):
        return [[] for _ in queries]
    if queries.shape[1] != corpus.shape[1]:
        raise ValueError(
            f"queries have {queries.shape[1]} dimensions and the corpus has {corpus.shape[1]}"
        )
    scores, ids = _top_k(
        queries, corpus, top_k, score_function, query_chunk_size, corpus_chunk_size
    )
    return [
        # An id of -1 stands for a score that no number is, where products overflow.
        [{"corpus_id": int(i), "score": float(s)} for s, i in zip(*row, strict=True) if i >= 0]
        for row in zip(scores, ids, strict=True)
    ]


def paraphrase_mining(
    model: Any,
    sentences: Sequence[str],
    show_progress_bar: bool = False,
    batch_size: int = 32,
    query_chunk_size: int = 5000,
    corpus_chunk_size: int = 100_000,
    max_pairs: int = 500_000,
    top_k: int = 100,
    score_function: ScoreFunction = cos_sim,
    truncate_dim: int | None = None,
    prompt_name: str | None = None,
    prompt: str | None = None,
) -> list[list[float | int]]:
    """The most similar pairs among sentences: ``paraphrase_mining_embeddings`` of their embeddings.

    Args:
        model: its ``encode`` takes the arguments that are passed on.
        sentences: texts.
        show_progress_bar, batch_size, truncate_dim, prompt_name, prompt: of ``encode``.
        query_chunk_size, corpus_chunk_size, max_pairs, top_k, score_function: as there.

    Returns:
        [score, i, j] with i < j, best first.
    """
    embeddings = model.encode(
        list(sentences),
        show_progress_bar=show_progress_bar,
        batch_size=batch_size,
        truncate_dim=truncate_dim,
        prompt_name=prompt_name,
        prompt=prompt,
    )
    return paraphrase_mining_embeddings(
        embeddings, query_chunk_size, corpus_chunk_size, max_pairs, top_k, score_function
    )


def paraphrase_mining_embeddings(
    embeddings: Any,
    query_chunk_size: int = 5000,
    corpus_chunk_size: int = 100_000,
    max_pairs: int = 500_000,
    top_k: int = 100,
    score_function: ScoreFunction = cos_sim,
) -> list[list[float | int]]:
    """The most similar pairs of rows, each once.

    Args:
        embeddings: [n, d].
        query_chunk_size, corpus_chunk_size: rows that a score function of your own gets at a time.
        max_pairs: the most pairs that come back.
        top_k: of each row, this many neighbours are considered.
        score_function: symmetric scores, higher is better.

    Returns:
        [score, i, j] with i < j, best first; equal scores in the order of (i, j).

    Raises:
        ValueError: a size that is not positive.
    """
    _check_positive(
        query_chunk_size=query_chunk_size,
        corpus_chunk_size=corpus_chunk_size,
        max_pairs=max_pairs,
        top_k=top_k,
    )
    rows = _finite("embeddings", as_matrix("embeddings", embeddings)[0])
    if len(rows) < 2:
        return []
    best = np.empty((0, 3))  # score, i, j
    for first in range(0, len(rows), query_chunk_size):
        chunk = rows[first : first + query_chunk_size]
        scores, ids = _top_k(
            chunk, rows, top_k + 1, score_function, query_chunk_size, corpus_chunk_size
        )
        row = np.broadcast_to(np.arange(first, first + len(chunk))[:, None], ids.shape)
        # Without the row itself; where duplicates have pushed it out, without the last of them.
        others = (ids != row) & (ids >= 0)
        others[others.all(axis=1), -1] = False
        low, high = np.minimum(ids, row)[others], np.maximum(ids, row)[others]
        pairs = np.column_stack([scores[others], low, high])
        best = _distinct(np.concatenate([best, pairs]), max_pairs)
    return [[float(score), int(i), int(j)] for score, i, j in best]


def _distinct(pairs: Array, most: int) -> Array:
    """Each (i, j) once, the best `most` of them, best first."""
    pairs = pairs[np.lexsort((-pairs[:, 0], pairs[:, 2], pairs[:, 1]))]
    is_first = np.ones(len(pairs), bool)
    is_first[1:] = (pairs[1:, 1:] != pairs[:-1, 1:]).any(axis=1)
    pairs = pairs[is_first]
    return np.asarray(pairs[np.argsort(-pairs[:, 0], kind="stable")[:most]])


def community_detection(
    embeddings: Any,
    threshold: float = 0.75,
    min_community_size: int = 10,
    batch_size: int = 1024,
    show_progress_bar: bool = False,
) -> list[list[int]]:
    """Groups of rows around a central one, each member's cosine with it at least threshold.

    Args:
        embeddings: [n, d].
        threshold: of the cosine.
        min_community_size: smaller groups are left out.
        batch_size: rows whose neighbours are looked for at a time.
        show_progress_bar: over the batches.

    Returns:
        Communities, largest first, no row in two of them; the central row comes first in each, the
        others by falling cosine.

    Raises:
        ValueError: a size that is not positive.
    """
    from tqdm import tqdm

    _check_positive(min_community_size=min_community_size, batch_size=batch_size)
    if len(embeddings) == 0:
        return []
    rows = _finite("embeddings", as_matrix("embeddings", embeddings)[0])
    rows = unit_rows(rows).astype(np.float32)
    if len(rows) < min_community_size:
        return []
    candidates: list[tuple[int, Array]] = []
    starts = range(0, len(rows), batch_size)
    for first in tqdm(starts, desc="Finding clusters", disable=not show_progress_bar):
        places = np.arange(first, min(len(rows), first + batch_size))
        k = min(len(rows), max(2 * min_community_size, 50))
        while len(places):
            scores, ids = _top_k(rows[places], rows, k, dot_score, batch_size, len(rows))
            counts = (scores >= np.float32(threshold)).sum(axis=1)
            # All k are near enough, so there may be more: these again, with a larger k.
            is_cut = (counts == k) & (k < len(rows))
            candidates += [
                (int(place), row[:count].astype(np.int32))  # a copy: the block is large
                for place, row, count in zip(
                    places[~is_cut], ids[~is_cut], counts[~is_cut], strict=True
                )
                if count >= min_community_size
            ]
            places, k = places[is_cut], min(len(rows), 4 * k)
    candidates.sort(key=lambda candidate: (-len(candidate[1]), candidate[0]))

    communities = []
    is_used = np.zeros(len(rows), bool)
    for center, members in candidates:
        if is_used[center]:
            continue
        free = members[~is_used[members]]
        if len(free) >= min_community_size:
            community = [center, *free[free != center].tolist()]
            communities.append(community)
            is_used[community] = True
    return sorted(communities, key=len, reverse=True)
