"""Accuracy, margin and rewards of pairs of responses."""

# N pairs

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dtl.metrics.base import EvalRecord

if TYPE_CHECKING:
    import numpy as np


def pair_scores(records: list[EvalRecord]) -> dict[str, float]:
    """Return means of records with `loss`, `chosen_reward` and `rejected_reward`.

    `accuracy`: the share of pairs whose chosen response has the higher reward. `margin`: the
    reward of the chosen response minus that of the rejected one.
    """
    pairs = [(record["chosen_reward"], record["rejected_reward"]) for record in records]
    return {
        "loss": math.fsum(record["loss"] for record in records) / len(records),
        "accuracy": sum(chosen > rejected for chosen, rejected in pairs) / len(pairs),
        "margin": math.fsum(chosen - rejected for chosen, rejected in pairs) / len(pairs),
        "chosen_reward": math.fsum(chosen for chosen, _ in pairs) / len(pairs),
        "rejected_reward": math.fsum(rejected for _, rejected in pairs) / len(pairs),
    }


def accuracy_counts(records: list[EvalRecord]) -> np.ndarray:
    """Return of each pair (N, 2), fp64: whether it is right, and 1."""
    import numpy as np

    correct = [record["chosen_reward"] > record["rejected_reward"] for record in records]
    return np.array([(is_correct, 1) for is_correct in correct], dtype=np.float64)
