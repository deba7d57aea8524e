"""Summarizes the cells of a comparison: means over seeds, label efficiency, time to a score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import mean

import numpy as np

from dtl.compare.grid import SCRATCH
from dtl.compare.measure import MeasuredCell, confidence_interval
from dtl.compare.records import (
    ConfidenceInterval,
    LabelEfficiency,
    StrategySummary,
    TimeToScratchScore,
    average_curves,
)
from dtl.core.statistics import ScoreSample, concatenate_seeds, find_crossing
from dtl.tasks.base import Task

Groups = dict[tuple[str, int], list[MeasuredCell]]  # by strategy and number of labels


def summarize_cells(
    measured: Sequence[MeasuredCell], task: Task, *, sign: int
) -> list[StrategySummary]:
    """Return the means over seeds, one record per strategy and number of labels. `sign`: -1 if
    lower scores are better."""
    groups = group_by_strategy(measured)
    summaries = [_summarize(group, task) for group in groups.values()]
    scratch = sorted(
        (one for one in summaries if one.strategy == SCRATCH), key=lambda one: one.labels
    )
    if not scratch:
        return summaries
    final_scores = {one.labels: one.score for one in scratch}
    return [
        one
        if one.strategy == SCRATCH
        else replace(
            one,
            label_efficiency=_label_efficiency(one, scratch, sign),
            time_to_scratch_score=_time_to_score(
                groups[one.strategy, one.labels], final_scores.get(one.labels), sign
            ),
        )
        for one in summaries
    ]


def group_by_strategy(measured: Sequence[MeasuredCell]) -> Groups:
    """Return the cells of each strategy and number of labels, ordered by seed."""
    groups: Groups = {}
    for one in sorted(measured, key=lambda one: one.cell.seed):
        groups.setdefault((one.cell.strategy, one.cell.labels), []).append(one)
    return groups


def _summarize(group: Sequence[MeasuredCell], task: Task) -> StrategySummary:
    cells = [one.cell for one in group]
    held_out = concatenate_seeds([one.held_out for one in group])
    return StrategySummary(
        strategy=cells[0].strategy,
        labels=cells[0].labels,
        seeds=tuple(cell.seed for cell in cells),
        score=float(held_out.values_S.mean()),
        interval=confidence_interval(held_out, task),
        label_efficiency=None,
        time_to_scratch_score=None,
        train_seconds=mean(cell.train_seconds for cell in cells),
        peak_memory_bytes=max(cell.peak_memory_bytes for cell in cells),
        export_bytes=max(cell.export_bytes for cell in cells),
        source_score=_mean_if_complete([cell.source_score for cell in cells]),
        source_interval=_joint_interval([one.source for one in group], task),
        ood_score=_mean_if_complete([cell.ood_score for cell in cells]),
        ood_interval=_joint_interval([one.ood for one in group], task),
        worst_group_score=_mean_if_complete([cell.worst_group_score for cell in cells]),
    )


def _label_efficiency(
    summary: StrategySummary, scratch: Sequence[StrategySummary], sign: int
) -> LabelEfficiency:
    """Return where the curve of scratch over the logarithm of the labels has the same score."""
    crossed = find_crossing(
        sign * summary.score,
        [sign * one.score for one in scratch],
        positions=[float(one.labels) for one in scratch],
        log=True,
    )
    return LabelEfficiency(crossed.position, crossed.bound)


def _time_to_score(
    group: Sequence[MeasuredCell], score: float | None, sign: int
) -> TimeToScratchScore | None:
    """Return when the mean learning curve has a score; None without a curve or a score."""
    curve = average_curves([one.cell for one in group])
    if not curve or score is None:
        return None
    steps, seconds = [one.step for one in curve], [one.seconds for one in curve]
    crossed = find_crossing(
        sign * score, [sign * one.score for one in curve], positions=steps, log=False
    )
    crossed_seconds = float(np.interp(crossed.position, steps, seconds))
    return TimeToScratchScore(crossed.position, crossed_seconds, crossed.bound)


def _mean_if_complete(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if len(known) == len(values) else None


def _joint_interval(samples: Sequence[ScoreSample | None], task: Task) -> ConfidenceInterval | None:
    known = [one for one in samples if one is not None]
    if len(known) < len(samples):
        return None
    return confidence_interval(concatenate_seeds(known), task)
