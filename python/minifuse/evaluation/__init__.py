"""Measure a model's vectors: against human scores, at finding documents, and on labels."""

from __future__ import annotations

from minifuse.evaluation.labels import (
    ClassificationScores,
    ClusteringScores,
    LabelledPairs,
    LabelledTexts,
    PairClassificationScores,
    evaluate_classification,
    evaluate_clustering,
    evaluate_pair_classification,
    read_labelled_pairs,
    read_labelled_texts,
)
from minifuse.evaluation.pairs import PairScores, ScoredPairs, evaluate_pairs, read_scored_pairs
from minifuse.evaluation.retrieval import (
    RetrievalScores,
    RetrievalTask,
    evaluate_retrieval,
    rank_documents,
    ranking_rows,
    read_retrieval_task,
    rerank_documents,
    retrieval_rows,
)
from minifuse.evaluation.tasks import task_of

__all__ = [
    "ClassificationScores",
    "ClusteringScores",
    "LabelledPairs",
    "LabelledTexts",
    "PairClassificationScores",
    "PairScores",
    "RetrievalScores",
    "RetrievalTask",
    "ScoredPairs",
    "evaluate_classification",
    "evaluate_clustering",
    "evaluate_pair_classification",
    "evaluate_pairs",
    "evaluate_retrieval",
    "rank_documents",
    "ranking_rows",
    "read_labelled_pairs",
    "read_labelled_texts",
    "read_retrieval_task",
    "read_scored_pairs",
    "rerank_documents",
    "retrieval_rows",
    "task_of",
]
