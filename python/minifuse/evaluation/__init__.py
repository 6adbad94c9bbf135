"""How good a model's vectors are: against human scores of pairs, and at finding documents."""

from __future__ import annotations

from minifuse.evaluation.pairs import PairScores, ScoredPairs, evaluate_pairs, read_scored_pairs
from minifuse.evaluation.retrieval import (
    RetrievalScores,
    RetrievalTask,
    evaluate_retrieval,
    read_retrieval_task,
)

__all__ = [
    "PairScores",
    "RetrievalScores",
    "RetrievalTask",
    "ScoredPairs",
    "evaluate_pairs",
    "evaluate_retrieval",
    "read_retrieval_task",
    "read_scored_pairs",
]
