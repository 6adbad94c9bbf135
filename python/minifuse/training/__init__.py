"""Fine-tuning to a domain by contrastive learning, on an ordinary CPU.

PyTorch carries the matrices and their gradients; attention, dropout and the contrastive loss are
native (minifuse[torch]).
"""

from __future__ import annotations

from minifuse.training.pairs import TrainingPairs, read_training_pairs
from minifuse.training.trainer import TrainingConfig, TrainingResult, finetune

__all__ = [
    "TrainingConfig",
    "TrainingPairs",
    "TrainingResult",
    "finetune",
    "read_training_pairs",
]
