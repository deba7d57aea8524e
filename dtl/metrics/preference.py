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


def judgment_scores(records: list[EvalRecord]) -> dict[str, float]:
    """Return means of records with `loss`, `reward`, `kl` and `desirable`.

    `accuracy`: the share of responses whose reward is above 0 if and only if they are desirable.
    `margin`, where there are both: the mean reward of desirable ones minus that of undesirable
    ones. `kl`: the estimate of the KL divergence in nats, not negative.
    """
    correct = [(record["reward"] > 0) == bool(record["desirable"]) for record in records]
    scores = {
        "loss": math.fsum(record["loss"] for record in records) / len(records),
        "accuracy": sum(correct) / len(records),
        "kl": max(0.0, math.fsum(record["kl"] for record in records) / len(records)),
    }
    for name, is_desirable in (("desirable_reward", True), ("undesirable_reward", False)):
        rewards = [
            record["reward"] for record in records if bool(record["desirable"]) == is_desirable
        ]
        if rewards:
            scores[name] = math.fsum(rewards) / len(rewards)
    if {"desirable_reward", "undesirable_reward"} <= scores.keys():
        scores["margin"] = scores["desirable_reward"] - scores["undesirable_reward"]
    return scores


def judgment_counts(records: list[EvalRecord]) -> np.ndarray:
    """Return of each response (N, 2), fp64: whether its reward has the sign of its label, and 1."""
    import numpy as np

    correct = [(record["reward"] > 0) == bool(record["desirable"]) for record in records]
    return np.array([(is_correct, 1) for is_correct in correct], dtype=np.float64)
