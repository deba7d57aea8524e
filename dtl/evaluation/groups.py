"""The metric of each group of held-out examples, with a bootstrap interval."""

# N examples, K sums, R resamples

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dtl.core.statistics import resample_scores

if TYPE_CHECKING:
    from dtl.metrics.base import EvalRecord
    from dtl.tasks.base import DatasetStats, Task

RESAMPLES = 1000
PERCENTILES = (2.5, 97.5)  # of a 95 % interval


def scores_by_group(
    task: Task, records: list[EvalRecord], dataset_stats: DatasetStats, column: str
) -> dict[str, float]:
    """Return for each group its metric, number of examples and 95 % interval; then the worst group
    and the mean over groups.

    `records`: each has its value of `column` as `group`.
    """
    counts_NK = task.metric_counts(records, dataset_stats)
    members: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        members.setdefault(record["group"], []).append(index)
    prefix = f"group/{column}"
    scores: dict[str, float] = {}
    values = []
    for group in sorted(members):
        group_counts_NK = counts_NK[members[group]]
        values.append(float(task.metric_from_counts(group_counts_NK.sum(0))))
        low, high = bootstrap_interval(task, group_counts_NK)
        scores[f"{prefix}/{group}/{task.metric.name}"] = values[-1]
        scores[f"{prefix}/{group}/n"] = len(members[group])
        scores[f"{prefix}/{group}/low"], scores[f"{prefix}/{group}/high"] = low, high
    scores[f"{prefix}/worst"] = task.metric.worst(values)
    scores[f"{prefix}/macro"] = float(np.mean(values))
    return scores


@dataclass(frozen=True)
class GroupScore:
    """The metric of one group of `examples` held-out examples, and its 95 % interval."""

    group: str
    examples: int
    value: float
    low: float
    high: float


def read_group_scores(scores: dict[str, float], column: str) -> list[GroupScore]:
    """Return what scores_by_group has added to the scores; empty where it has not."""
    start = f"group/{column}/"
    names = [key[len(start) : -2] for key in scores if key.startswith(start) and key[-2:] == "/n"]
    groups = []
    for name in names:
        prefix = f"{start}{name}/"
        values = {key[len(prefix) :]: scores[key] for key in scores if key.startswith(prefix)}
        (metric,) = (key for key in values if key not in ("n", "low", "high") and "/" not in key)
        low, high = values["low"], values["high"]
        groups.append(GroupScore(name, int(values["n"]), values[metric], low, high))
    return groups


def bootstrap_interval(task: Task, counts_NK: np.ndarray) -> tuple[float, float]:
    """Return the percentile bootstrap interval (Efron 1979) over examples, equal at every call."""
    values_R = resample_scores(task.metric_from_counts, counts_NK, resamples=RESAMPLES)
    low, high = np.percentile(values_R, PERCENTILES)
    return float(low), float(high)
