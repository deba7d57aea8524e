"""The best score of each group of held-out examples, with a bootstrap interval."""

# N examples, K sums, R resamples

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dtl.core.statistics import resampled

if TYPE_CHECKING:
    from dtl.tasks.base import DatasetStats, EvalRecord, Task

RESAMPLES = 1000
LEVEL = (2.5, 97.5)  # percentiles: an interval of 95 %


def scores_by_group(
    task: Task, outcomes: list[EvalRecord], dataset_stats: DatasetStats, column: str
) -> dict[str, float]:
    """For each value of the column: the score, the number of examples, and its 95 % interval; then
    the worst group and the mean over groups. An outcome has its value as `group`."""
    counts_NK = task.metric_counts(outcomes, dataset_stats)
    members: dict[str, list[int]] = {}
    for place, outcome in enumerate(outcomes):
        members.setdefault(outcome["group"], []).append(place)
    name, start = task.best.removeprefix("-"), f"group/{column}"
    scores: dict[str, float] = {}
    values = []
    for group in sorted(members):
        of_group_NK = counts_NK[members[group]]
        values.append(float(task.metric_from_counts(of_group_NK.sum(0))))
        low, high = interval(task, of_group_NK)
        scores[f"{start}/{group}/{name}"] = values[-1]
        scores[f"{start}/{group}/n"] = len(members[group])
        scores[f"{start}/{group}/low"], scores[f"{start}/{group}/high"] = low, high
    scores[f"{start}/worst"] = max(values) if task.best.startswith("-") else min(values)
    scores[f"{start}/macro"] = float(np.mean(values))
    return scores


@dataclass(frozen=True)
class GroupScore:
    """The best score of one group of `examples` held-out examples, and its 95 % interval."""

    group: str
    examples: int
    value: float
    low: float
    high: float


def groups_in(scores: dict[str, float], column: str) -> list[GroupScore]:
    """What scores_by_group has put among the scores; none where it has not."""
    start = f"group/{column}/"
    names = [key[len(start) : -2] for key in scores if key.startswith(start) and key[-2:] == "/n"]
    found = []
    for name in names:
        prefix = f"{start}{name}/"
        values = {key[len(prefix) :]: scores[key] for key in scores if key.startswith(prefix)}
        (score,) = (key for key in values if key not in ("n", "low", "high") and "/" not in key)
        low, high = values["low"], values["high"]
        found.append(GroupScore(name, int(values["n"]), values[score], low, high))
    return found


def interval(task: Task, counts_NK: np.ndarray) -> tuple[float, float]:
    """The percentile bootstrap (Efron 1979) over examples, the same at every call."""
    values_R = resampled(task.metric_from_counts, counts_NK, resamples=RESAMPLES)
    low, high = np.percentile(values_R, LEVEL)
    return float(low), float(high)
