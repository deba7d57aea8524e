"""The best score of each group of held-out examples, with a bootstrap interval."""

# N examples, K sums, R resamples

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dtl.statistics import resampled

if TYPE_CHECKING:
    from dtl.tasks import Facts, Outcome, Task

RESAMPLES = 1000
LEVEL = (2.5, 97.5)  # percentiles: an interval of 95 %


def scores_by_group(
    task: Task, outcomes: list[Outcome], facts: Facts, column: str
) -> dict[str, float]:
    """For each value of the column: the score, the number of examples, and its 95 % interval; then
    the worst group and the mean over groups. An outcome has its value as `group`."""
    counts_NK = task.counts(outcomes, facts)
    members: dict[str, list[int]] = {}
    for place, outcome in enumerate(outcomes):
        members.setdefault(outcome["group"], []).append(place)
    name, start = task.best.removeprefix("-"), f"group/{column}"
    scores: dict[str, float] = {}
    values = []
    for group in sorted(members):
        of_group_NK = counts_NK[members[group]]
        values.append(float(task.value_of(of_group_NK.sum(0))))
        low, high = interval(task, of_group_NK)
        scores[f"{start}/{group}/{name}"] = values[-1]
        scores[f"{start}/{group}/n"] = len(members[group])
        scores[f"{start}/{group}/low"], scores[f"{start}/{group}/high"] = low, high
    scores[f"{start}/worst"] = max(values) if task.best.startswith("-") else min(values)
    scores[f"{start}/macro"] = float(np.mean(values))
    return scores


def interval(task: Task, counts_NK: np.ndarray) -> tuple[float, float]:
    """The percentile bootstrap (Efron 1979) over examples, the same at every call."""
    values_R = resampled(task.value_of, counts_NK, resamples=RESAMPLES)
    low, high = np.percentile(values_R, LEVEL)
    return float(low), float(high)
