"""Fine-tuning to a domain by contrastive learning, on an ordinary CPU.

PyTorch carries the matrices and their gradients; attention, dropout and the contrastive loss are
native (minifuse[torch]).
"""

from __future__ import annotations

from minifuse.training.cross_encoder import finetune_cross_encoder
from minifuse.training.loop import TrainingConfig, TrainingResult
from minifuse.training.pairs import TrainingPairs, hard_negatives, read_training_pairs
from minifuse.training.trainer import finetune

__all__ = [
    "TrainingConfig",
    "TrainingPairs",
    "TrainingResult",
    "finetune",
    "finetune_cross_encoder",
    "hard_negatives",
    "read_training_pairs",
]
