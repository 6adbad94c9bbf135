"""Measure how well queries find their documents: nDCG, recall and reciprocal rank on a BEIR folder.

With rel(i) the grade of the document at rank i, from 1 (Järvelin and Kekäläinen 2002, as trec_eval
counts it):

    DCG@k = sum over i <= k of rel(i) / log2(i + 1)      nDCG@k = DCG@k / the best possible DCG@k
    recall@k = relevant documents among the first k / relevant documents
    MRR@k = mean of 1 / rank of the first relevant document, 0 where it is not among the first k
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minifuse import util
from minifuse.files.texts import read_objects, read_rows

__all__ = [
    "RetrievalScores",
    "RetrievalTask",
    "evaluate_retrieval",
    "rank_documents",
    "ranking_rows",
    "read_retrieval_task",
    "rerank_documents",
    "retrieval_rows",
]

_CUT = 10
_MOST_GRADE = 1 << 30  # grades of judgements lie between minus this and this
_DEEP_CUT = 100


@dataclass(frozen=True)
class RetrievalTask:
    """Documents, queries, and which document answers which query.

    Attributes:
        corpus: document id -> text.
        queries: query id -> text.
        relevance: query id -> document id -> grade; a grade above 0 is relevant.
    """

    corpus: dict[str, str]
    queries: dict[str, str]
    relevance: dict[str, dict[str, int]]


@dataclass(frozen=True)
class RetrievalScores:
    """Means over the queries that have a relevant document, each in [0, 1]."""

    ndcg_at_10: float
    recall_at_10: float
    recall_at_100: float
    mrr_at_10: float
    num_queries: int
    num_documents: int


def read_retrieval_task(folder: str | Path) -> RetrievalTask:
    """A folder as BEIR lays it out.

    ``corpus.jsonl`` (``_id``, ``text``, and where it is there ``title``, which goes before the
    text), ``queries.jsonl`` (``_id``, ``text``), and ``qrels.tsv`` or ``qrels/test.tsv`` (with a
    header: query-id, corpus-id, score). A judged document that the corpus lacks is one not found.

    Raises:
        FileNotFoundError: the folder or one of the files is missing (it is named).
        ValueError: a line is not what it should be, an id comes twice, or a query is unknown (the
            file and the line are named).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    corpus = _read_texts(folder / "corpus.jsonl")
    queries = _read_texts(folder / "queries.jsonl")
    return RetrievalTask(corpus, queries, _read_relevance(folder, queries))


def _read_texts(path: Path) -> dict[str, str]:
    texts: dict[str, str] = {}
    for number, row in read_objects(path):
        parts = [row.get(key) for key in ("_id", "text")] + [row.get("title", "")]
        if not all(isinstance(part, str) for part in parts):
            raise ValueError(f"{path}, line {number}: wanted strings under '_id' and 'text'")
        identifier, text, title = map(str, parts)
        if identifier in texts:
            raise ValueError(f"{path}, line {number}: the id {identifier!r} was there before")
        texts[identifier] = f"{title} {text}" if title else text
    return texts


def _read_relevance(folder: Path, queries: dict[str, str]) -> dict[str, dict[str, int]]:
    candidates = (folder / "qrels.tsv", folder / "qrels" / "test.tsv")
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{folder}: neither qrels.tsv nor qrels/test.tsv is there")
    relevance: dict[str, dict[str, int]] = {}
    for line, (query, document, grade) in read_rows(path, ["query-id", "corpus-id", "score"]):
        if query not in queries:
            raise ValueError(f"{path}, line {line}: queries.jsonl has no query {query!r}")
        try:
            value = int(grade)
        except ValueError:
            value = _MOST_GRADE + 1
        if abs(value) > _MOST_GRADE:
            raise ValueError(
                f"{path}, line {line}: score is {grade!r:.60}, wanted a whole number, at most "
                f"{_MOST_GRADE}"
            )
        relevance.setdefault(query, {})[document] = value
    return relevance


def evaluate_retrieval(model: Any, task: RetrievalTask, **encode_arguments: Any) -> RetrievalScores:
    """Rank the whole corpus by cosine for every query that has a relevant document.

    Args:
        model: anything with sentence-transformers' encode_query and encode_document.
        task: the corpus's vectors, [len(corpus), dim] float32, are held in memory.
        encode_arguments: passed to both.

    Raises:
        ValueError: no document, or no query with a relevant document.
    """
    rows = retrieval_rows(model, task, **encode_arguments)
    means = {name: float(np.mean(values)) for name, values in rows.items()}
    return RetrievalScores(
        **means, num_queries=len(rows["ndcg_at_10"]), num_documents=len(task.corpus)
    )


def retrieval_rows(
    model: Any, task: RetrievalTask, **encode_arguments: Any
) -> dict[str, list[float]]:
    """Return every measure of RetrievalScores for each query; ``evaluate_retrieval`` averages them.

    Arguments and errors are the same.
    """
    return ranking_rows(task, rank_documents(model, task, **encode_arguments))


def _relevant(task: RetrievalTask) -> dict[str, dict[str, int]]:
    """The relevant documents of each query that has one, in the order of the queries."""
    found = {}
    for query in task.queries:
        grades = task.relevance.get(query, {})
        if relevant := {document: grade for document, grade in grades.items() if grade > 0}:
            found[query] = relevant
    return found


def rank_documents(
    model: Any, task: RetrievalTask, **encode_arguments: Any
) -> dict[str, list[str]]:
    """Return the ids of the first 100 documents by cosine for each query with a relevant one.

    Arguments and errors are those of ``evaluate_retrieval``.
    """
    judged = list(_relevant(task))
    if not task.corpus or not judged:
        raise ValueError(
            f"{len(task.corpus)} documents and {len(judged)} queries with a relevant one: "
            "wanted at least one of each"
        )
    documents = list(task.corpus)
    found = util.semantic_search(
        model.encode_query([task.queries[query] for query in judged], **encode_arguments),
        model.encode_document(list(task.corpus.values()), **encode_arguments),
        top_k=_DEEP_CUT,
    )
    return {
        query: [documents[int(hit["corpus_id"])] for hit in hits]
        for query, hits in zip(judged, found, strict=True)
    }


def rerank_documents(
    reranker: Any, task: RetrievalTask, ranking: dict[str, list[str]]
) -> dict[str, list[str]]:
    """Return the same documents of each query, sorted by the scores of a CrossEncoder.

    Args:
        reranker: anything with sentence-transformers' ``predict``; equal scores keep their order.
        task: where the texts are.
        ranking: of ``rank_documents``.
    """
    pairs = [(task.queries[q], task.corpus[d]) for q, found in ranking.items() for d in found]
    scores, begin = np.asarray(reranker.predict(pairs)), 0
    ranked = {}
    for query, found in ranking.items():
        own = scores[begin : begin + len(found)]
        ranked[query] = [found[place] for place in np.argsort(-own, kind="stable")]
        begin += len(found)
    return ranked


def ranking_rows(task: RetrievalTask, ranking: dict[str, list[str]]) -> dict[str, list[float]]:
    """Return every measure of RetrievalScores for each query of a ranking."""
    relevant = _relevant(task)
    rows: dict[str, list[float]] = {
        "ndcg_at_10": [], "recall_at_10": [], "recall_at_100": [], "mrr_at_10": []
    }  # fmt: skip
    for query, found in ranking.items():
        answers = relevant[query]
        grades = [answers.get(document, 0) for document in found]
        first = next((rank for rank, grade in enumerate(grades[:_CUT], 1) if grade), None)
        best = _dcg(sorted(answers.values(), reverse=True)[:_CUT])
        rows["ndcg_at_10"].append(_dcg(grades[:_CUT]) / best)
        rows["recall_at_10"].append(float(np.count_nonzero(grades[:_CUT]) / len(answers)))
        rows["recall_at_100"].append(float(np.count_nonzero(grades) / len(answers)))
        rows["mrr_at_10"].append(1 / first if first else 0.0)
    return rows


def _dcg(grades: Sequence[int]) -> float:
    return float((np.asarray(grades) / np.log2(np.arange(2, len(grades) + 2))).sum())
