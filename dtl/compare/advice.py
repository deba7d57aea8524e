"""Summarizes the cells of a comparison and recommends a strategy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from statistics import mean

import numpy as np

from dtl.compare.grid import SCRATCH
from dtl.compare.measure import CONFIDENCE_LEVEL, MeasuredCell, confidence_interval
from dtl.compare.records import (
    UNADAPTED,
    BaseScores,
    CellResult,
    ConfidenceInterval,
    LabelEfficiency,
    PairedDifference,
    Recommendation,
    StrategySummary,
    TimeToScratchScore,
    Verdict,
    average_curves,
    find_base_difference,
)
from dtl.core.statistics import Sample, Spread, crossing, holm, joined, spread
from dtl.tasks.base import Task


def summarize_cells(
    measured: Sequence[MeasuredCell], task: Task, *, sign: int
) -> list[StrategySummary]:
    """Return the means over seeds, one record per strategy and number of labels. `sign`: -1 if
    lower scores are better."""
    found = [_summarize(cells, task) for cells in _group_by_strategy(measured).values()]
    curve = sorted((one for one in found if one.strategy == SCRATCH), key=lambda one: one.labels)
    if not curve:
        return found
    heights, at = [sign * one.score for one in curve], [float(one.labels) for one in curve]
    found = [_add_label_efficiency(one, sign * one.score, heights, at) for one in found]
    ends = {one.labels: one.score for one in curve}
    cells = {
        key: [one.cell for one in group] for key, group in _group_by_strategy(measured).items()
    }
    return [
        replace(
            one,
            time_to_scratch_score=_time_to_score(
                cells[one.strategy, one.labels], ends[one.labels], sign
            ),
        )
        if one.strategy != SCRATCH and one.labels in ends
        else one
        for one in found
    ]


def held_out_differences(measured: Sequence[MeasuredCell], *, sign: int) -> list[PairedDifference]:
    """Return the paired differences on the held-out examples: of all pairs of strategies with the
    same number of labels, over their common seeds, and of the unadapted base and each strategy.
    For each number of labels the two groups of p-values are adjusted separately."""
    base = next((one.base for one in measured if one.base is not None), None)
    return _compare_all_pairs(measured, lambda one: one.held_out, base, sign)


def source_differences(
    measured: Sequence[MeasuredCell], base: Sample | None, *, sign: int
) -> list[PairedDifference]:
    """Return the paired differences on the examples of --source-data. `base`: the sample of the
    unadapted base there."""
    return _compare_all_pairs(measured, lambda one: one.source, base, sign)


_Seeds = dict[int, Sample]  # samples of one strategy with one number of labels, by seed


def _compare_all_pairs(
    measured: Sequence[MeasuredCell],
    read_sample: Callable[[MeasuredCell], Sample | None],
    base: Sample | None,
    sign: int,
) -> list[PairedDifference]:
    scored: dict[int, dict[str, _Seeds]] = {}
    for (name, labels), group in _group_by_strategy(measured).items():
        samples = ((one.cell.seed, read_sample(one)) for one in group)
        if known := {seed: sample for seed, sample in samples if sample is not None}:
            scored.setdefault(labels, {})[name] = known
    found = []
    for labels, here in sorted(scored.items()):
        pairs = {
            (first, second): apart
            for first, second in combinations(here, 2)
            if (apart := _paired_spread(here[first], here[second], sign)) is not None
        }
        found += _adjust_family(labels, pairs)
        if base is not None:
            against = {
                (UNADAPTED, name): apart
                for name, seeds in here.items()
                if (apart := _paired_spread(dict.fromkeys(seeds, base), seeds, sign)) is not None
            }
            found += _adjust_family(labels, against)
    return found


def _adjust_family(labels: int, family: dict[tuple[str, str], Spread]) -> list[PairedDifference]:
    """Return the differences with p-values adjusted over this family."""
    corrected = holm([one.p for one in family.values()])
    return [
        PairedDifference(
            labels=labels,
            first=first,
            second=second,
            difference=one.estimate,
            interval=ConfidenceInterval(*one.interval(CONFIDENCE_LEVEL)),
            p_value=one.p,
            adjusted_p_value=p,
            is_significant=p < 1 - CONFIDENCE_LEVEL,
        )
        for ((first, second), one), p in zip(family.items(), corrected, strict=True)
    ]


def recommend(
    found: Sequence[StrategySummary],
    pairs: Sequence[PairedDifference],
    source_pairs: Sequence[PairedDifference],
    base: BaseScores,
    *,
    sign: int,
    unit: Callable[[int], str],
) -> list[Recommendation]:
    """Return a recommendation for each number of labels with two or more strategies. `unit`:
    formats a number of labels."""
    advice = []
    for labels in sorted({one.labels for one in found}):
        here = {one.strategy: one for one in found if one.labels == labels}
        if len(here) > 1:
            of_these = [pair for pair in pairs if pair.labels == labels]
            learnt = _recommend_strategy(labels, here, of_these, sign, unit)
            beside = _compare_with_base(learnt, here, of_these, base, sign, unit)
            advice.append(_add_forgetting(beside, source_pairs))
    return advice


def _recommend_strategy(
    labels: int,
    here: dict[str, StrategySummary],
    pairs: Sequence[PairedDifference],
    sign: int,
    unit: Callable[[int], str],
) -> Recommendation:
    leader = max(here, key=lambda name: sign * here[name].score)
    apart = {
        pair.second if pair.first == leader else pair.first
        for pair in pairs
        if pair.is_significant and leader in (pair.first, pair.second)
    }
    tied = [name for name in here if name not in apart]
    quickest = min(tied, key=lambda name: here[name].train_seconds)
    where = f"With {unit(labels)}"
    rest = sorted((name for name in here if name not in tied), key=lambda n: -sign * here[n].score)
    verdict: Verdict
    if tied == [SCRATCH]:
        verdict, choice = "scratch", SCRATCH
        first = f"{where}, train from scratch: transfer is negative."
        second = _describe_difference(SCRATCH, rest[0], here, pairs)
    elif len(tied) == 1:
        verdict, choice = "best", leader
        first = f"{where}, use {leader}."
        second = _describe_difference(leader, rest[0], here, pairs)
        if SCRATCH in rest[1:]:
            second = second[:-1] + f"; scratch has {here[SCRATCH].score:.3f}."
    else:
        verdict, choice = "not significantly different", leader if SCRATCH in tied else quickest
        if leader == SCRATCH:
            first = f"{where}, train from scratch: no transfer strategy is better."
        elif SCRATCH in tied:
            first = f"{where}, there is no evidence that transfer helps: add seeds or examples."
        else:
            first = f"{where}, use {quickest}, the fastest to train of the best."
        scores = ", ".join(f"{name} {here[name].score:.3f}" for name in tied)
        second = f"{_join_names(tied)} are not significantly different ({scores})"
        if SCRATCH in rest:
            second += f"; scratch has {here[SCRATCH].score:.3f}"
        second = f"{second[0].upper()}{second[1:]}."
    return Recommendation(labels, choice, verdict, f"{first} {second}")


def _compare_with_base(
    advice: Recommendation,
    here: dict[str, StrategySummary],
    pairs: Sequence[PairedDifference],
    base: BaseScores,
    sign: int,
    unit: Callable[[int], str],
) -> Recommendation:
    """Return the advice if its best strategy is significantly better than the unadapted base; else
    advice to use the unadapted base."""
    leader = max(here, key=lambda name: sign * here[name].score)
    pair = find_base_difference(pairs, leader, advice.labels)
    if base.score is None or pair is None:
        return advice
    where, scores = f"With {unit(advice.labels)}", f"{base.score:.3f}"
    best = f"the best strategy, {leader}, has {here[leader].score:.3f}"
    if pair.is_significant and pair.difference < 0:
        return replace(advice, text=f"{advice.text[:-1]}; the unadapted base has {scores}.")
    if pair.is_significant:
        low, high = pair.interval.low, pair.interval.high
        text = (
            f"{where}, use the unadapted base: training makes it worse. It has {scores}, "
            f"{best}: paired difference {pair.difference:.3f} ({low:.3f} to {high:.3f})."
        )
        return replace(advice, choice=UNADAPTED, verdict="unadapted", text=text)
    text = (
        f"{where}, there is no evidence that training helps: add seeds or examples. The unadapted "
        f"base has {scores}, {best}, and the two are not significantly different."
    )
    return replace(advice, choice=UNADAPTED, verdict="not significantly different", text=text)


def _add_forgetting(
    advice: Recommendation, source_pairs: Sequence[PairedDifference]
) -> Recommendation:
    """Return the advice with the forgetting of its choice, if that is known."""
    pair = find_base_difference(source_pairs, advice.choice, advice.labels)
    if pair is None:
        return advice
    if pair.difference == 0:
        told = f"{advice.choice} has no forgetting on the source"
    elif not pair.is_significant:
        told = f"the forgetting of {advice.choice} on the source is not significant"
    elif pair.difference < 0:
        told = f"the source score of {advice.choice} is higher by {-pair.difference:.3f}"
    else:
        told = f"the forgetting of {advice.choice} on the source is {pair.difference:.3f}"
    return replace(advice, text=f"{advice.text[:-1]}; {told}.")


def _describe_difference(
    better: str, other: str, here: dict[str, StrategySummary], pairs: Sequence[PairedDifference]
) -> str:
    pair = next(one for one in pairs if {one.first, one.second} == {better, other})
    sign = 1 if pair.first == better else -1
    low, high = sorted((sign * pair.interval.low, sign * pair.interval.high))
    return (
        f"It has {here[better].score:.3f}, the second best, {other}, {here[other].score:.3f}: paired "
        f"difference {sign * pair.difference:.3f} ({low:.3f} to {high:.3f})."
    )


def _join_names(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _group_by_strategy(
    measured: Sequence[MeasuredCell],
) -> dict[tuple[str, int], list[MeasuredCell]]:
    """Return the cells of each strategy and number of labels, ordered by seed."""
    found: dict[tuple[str, int], list[MeasuredCell]] = {}
    for one in sorted(measured, key=lambda one: one.cell.seed):
        found.setdefault((one.cell.strategy, one.cell.labels), []).append(one)
    return found


def _summarize(group: Sequence[MeasuredCell], task: Task) -> StrategySummary:
    cells = [one.cell for one in group]
    whole = joined([one.held_out for one in group])
    return StrategySummary(
        strategy=cells[0].strategy,
        labels=cells[0].labels,
        seeds=tuple(cell.seed for cell in cells),
        score=float(whole.values_S.mean()),
        interval=confidence_interval(whole, task),
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


def _add_label_efficiency(
    point: StrategySummary, height: float, heights: Sequence[float], at: Sequence[float]
) -> StrategySummary:
    if point.strategy == SCRATCH:
        return point
    found = crossing(height, heights, at=at, log=True)
    return replace(point, label_efficiency=LabelEfficiency(found.at, found.bound))


def _time_to_score(
    cells: Sequence[CellResult], score: float, sign: int
) -> TimeToScratchScore | None:
    curve = average_curves(cells)
    if not curve:
        return None
    steps, seconds = [one.step for one in curve], [one.seconds for one in curve]
    found = crossing(sign * score, [sign * one.score for one in curve], at=steps, log=False)
    return TimeToScratchScore(found.at, float(np.interp(found.at, steps, seconds)), found.bound)


def _mean_if_complete(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if len(known) == len(values) else None


def _joint_interval(samples: Sequence[Sample | None], task: Task) -> ConfidenceInterval | None:
    known = [one for one in samples if one is not None]
    if len(known) < len(samples):
        return None
    return confidence_interval(joined(known), task)


def _paired_spread(first: _Seeds, second: _Seeds, sign: int) -> Spread | None:
    """Return the spread of the difference over the common seeds, on the same examples."""
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    difference = joined([first[seed] for seed in seeds]).minus(
        joined([second[seed] for seed in seeds])
    )
    return spread(
        Sample(sign * difference.values_S, sign * difference.values_RS, difference.examples)
    )
