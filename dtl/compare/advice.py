"""What the cells of a comparison say together: means, differences, labels saved, what to take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from statistics import mean

import numpy as np

from dtl.compare.grid import SCRATCH
from dtl.compare.measure import LEVEL, Measured, interval_of
from dtl.compare.records import (
    UNADAPTED,
    Base,
    Cell,
    Difference,
    Interval,
    LabelsSaved,
    Point,
    Recommendation,
    ToScratch,
    Verdict,
    from_base,
    mean_curve,
)
from dtl.core.statistics import Sample, Spread, crossing, holm, joined, spread
from dtl.tasks.base import Task


def points(measured: Sequence[Measured], task: Task, *, sign: int) -> list[Point]:
    """One for each strategy and number of labels of which any seed was run. `sign`: -1 where less
    of the score is better."""
    found = [_point(cells, task) for cells in _together(measured).values()]
    curve = sorted((one for one in found if one.strategy == SCRATCH), key=lambda one: one.labels)
    if not curve:
        return found
    heights, at = [sign * one.score for one in curve], [float(one.labels) for one in curve]
    found = [_with_labels_saved(one, sign * one.score, heights, at) for one in found]
    ends = {one.labels: one.score for one in curve}
    cells = {key: [one.cell for one in group] for key, group in _together(measured).items()}
    return [
        replace(one, to_scratch=_reached(cells[one.strategy, one.labels], ends[one.labels], sign))
        if one.strategy != SCRATCH and one.labels in ends
        else one
        for one in found
    ]


def differences(measured: Sequence[Measured], *, sign: int) -> list[Difference]:
    """On the held-out examples: of all pairs of strategies with the same number of labels, over the
    seeds that both have, and of the unadapted base and each strategy; each of the two corrected
    over the pairs of a number of labels."""
    base = next((one.unadapted for one in measured if one.unadapted is not None), None)
    return _all_pairs(measured, lambda one: one.held_out, base, sign)


def source_differences(
    measured: Sequence[Measured], base: Sample | None, *, sign: int
) -> list[Difference]:
    """The same on the examples of --source, of all that are scored there. `base`: the unadapted
    one on these."""
    return _all_pairs(measured, lambda one: one.source, base, sign)


_Seeds = dict[int, Sample]  # of one strategy with one number of labels


def _all_pairs(
    measured: Sequence[Measured],
    sample_of: Callable[[Measured], Sample | None],
    base: Sample | None,
    sign: int,
) -> list[Difference]:
    scored: dict[int, dict[str, _Seeds]] = {}
    for (name, labels), group in _together(measured).items():
        samples = ((one.cell.seed, sample_of(one)) for one in group)
        if known := {seed: sample for seed, sample in samples if sample is not None}:
            scored.setdefault(labels, {})[name] = known
    found = []
    for labels, here in sorted(scored.items()):
        pairs = {
            (first, second): apart
            for first, second in combinations(here, 2)
            if (apart := _paired(here[first], here[second], sign)) is not None
        }
        found += _differences(labels, pairs)
        if base is not None:
            against = {
                (UNADAPTED, name): apart
                for name, seeds in here.items()
                if (apart := _paired(dict.fromkeys(seeds, base), seeds, sign)) is not None
            }
            found += _differences(labels, against)
    return found


def _differences(labels: int, family: dict[tuple[str, str], Spread]) -> list[Difference]:
    """Corrected over this family of pairs."""
    corrected = holm([one.p for one in family.values()])
    return [
        Difference(
            labels=labels,
            first=first,
            second=second,
            difference=one.estimate,
            interval=Interval(*one.interval(LEVEL)),
            p=one.p,
            corrected=p,
            distinguishable=p < 1 - LEVEL,
        )
        for ((first, second), one), p in zip(family.items(), corrected, strict=True)
    ]


def recommendations(
    found: Sequence[Point],
    pairs: Sequence[Difference],
    source_pairs: Sequence[Difference],
    base: Base,
    *,
    sign: int,
    unit: Callable[[int], str],
) -> list[Recommendation]:
    """One for each number of labels with which two strategies or more were run. `unit`: a number of
    labels in words."""
    advice = []
    for labels in sorted({one.labels for one in found}):
        here = {one.strategy: one for one in found if one.labels == labels}
        if len(here) > 1:
            of_these = [pair for pair in pairs if pair.labels == labels]
            learnt = _recommend(labels, here, of_these, sign, unit)
            beside = _beside_base(learnt, here, of_these, base, sign, unit)
            advice.append(_with_what_is_forgotten(beside, source_pairs))
    return advice


def _recommend(
    labels: int,
    here: dict[str, Point],
    pairs: Sequence[Difference],
    sign: int,
    unit: Callable[[int], str],
) -> Recommendation:
    leader = max(here, key=lambda name: sign * here[name].score)
    apart = {
        pair.second if pair.first == leader else pair.first
        for pair in pairs
        if pair.distinguishable and leader in (pair.first, pair.second)
    }
    tied = [name for name in here if name not in apart]
    quickest = min(tied, key=lambda name: here[name].seconds)
    where = f"With {unit(labels)}"
    rest = sorted((name for name in here if name not in tied), key=lambda n: -sign * here[n].score)
    verdict: Verdict
    if tied == [SCRATCH]:
        verdict, choice = "scratch", SCRATCH
        first = f"{where}, train from scratch: transfer is negative here."
        second = _margin(SCRATCH, rest[0], here, pairs)
    elif len(tied) == 1:
        verdict, choice = "best", leader
        first = f"{where}, take {leader}."
        second = _margin(leader, rest[0], here, pairs)
        if SCRATCH in rest[1:]:
            second = second[:-1] + f", and scratch to {here[SCRATCH].score:.3f}."
    else:
        verdict, choice = "not distinguishable", leader if SCRATCH in tied else quickest
        if leader == SCRATCH:
            first = f"{where}, train from scratch: no transfer is better."
        elif SCRATCH in tied:
            first = f"{where}, nothing shows that transfer pays: more seeds or examples might."
        else:
            first = f"{where}, take {quickest}, the quickest to train of those that do best."
        scores = ", ".join(f"{name} {here[name].score:.3f}" for name in tied)
        second = f"{_listed(tied)} are not distinguishable ({scores})"
        if SCRATCH in rest:
            second += f"; scratch comes to {here[SCRATCH].score:.3f}"
        second = f"{second[0].upper()}{second[1:]}."
    return Recommendation(labels, choice, verdict, f"{first} {second}")


def _beside_base(
    advice: Recommendation,
    here: dict[str, Point],
    pairs: Sequence[Difference],
    base: Base,
    sign: int,
    unit: Callable[[int], str],
) -> Recommendation:
    """The same, where it is told apart from the base as it is, and better; else to keep that."""
    leader = max(here, key=lambda name: sign * here[name].score)
    pair = from_base(pairs, leader, advice.labels)
    if base.score is None or pair is None:
        return advice
    where, scores = f"With {unit(advice.labels)}", f"{base.score:.3f}"
    best = f"the best that learns, {leader}, to {here[leader].score:.3f}"
    if pair.distinguishable and pair.difference < 0:
        return replace(advice, text=f"{advice.text[:-1]}; the base as it is has {scores}.")
    if pair.distinguishable:
        low, high = pair.interval.low, pair.interval.high
        text = (
            f"{where}, keep the base as it is: learning does harm here. It comes to {scores}, "
            f"{best}: better by {pair.difference:.3f} ({low:.3f} to {high:.3f}) on the same "
            "examples."
        )
        return replace(advice, choice=UNADAPTED, verdict="unadapted", text=text)
    text = (
        f"{where}, nothing shows that learning pays: more seeds or examples might. The base as it "
        f"is comes to {scores}, {best}, and the two are not distinguishable."
    )
    return replace(advice, choice=UNADAPTED, verdict="not distinguishable", text=text)


def _with_what_is_forgotten(
    advice: Recommendation, source_pairs: Sequence[Difference]
) -> Recommendation:
    """The same, and what the choice does to the score on the source, where that is known."""
    pair = from_base(source_pairs, advice.choice, advice.labels)
    if pair is None:
        return advice
    if pair.difference == 0:
        told = f"{advice.choice} forgets nothing of the source"
    elif not pair.distinguishable:
        told = f"nothing shows that {advice.choice} forgets any of the source"
    elif pair.difference < 0:
        told = f"on the source {advice.choice} gains {-pair.difference:.3f}"
    else:
        told = f"on the source {advice.choice} loses {pair.difference:.3f}"
    return replace(advice, text=f"{advice.text[:-1]}; {told}.")


def _margin(better: str, other: str, here: dict[str, Point], pairs: Sequence[Difference]) -> str:
    pair = next(one for one in pairs if {one.first, one.second} == {better, other})
    turn = 1 if pair.first == better else -1
    low, high = sorted((turn * pair.interval.low, turn * pair.interval.high))
    return (
        f"It comes to {here[better].score:.3f}, the next best, {other}, to "
        f"{here[other].score:.3f}: better by {turn * pair.difference:.3f} ({low:.3f} to "
        f"{high:.3f}) on the same seeds and examples."
    )


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _together(measured: Sequence[Measured]) -> dict[tuple[str, int], list[Measured]]:
    """The seeds of each strategy and number of labels, in order."""
    found: dict[tuple[str, int], list[Measured]] = {}
    for one in sorted(measured, key=lambda one: one.cell.seed):
        found.setdefault((one.cell.strategy, one.cell.labels), []).append(one)
    return found


def _point(group: Sequence[Measured], task: Task) -> Point:
    cells = [one.cell for one in group]
    whole = joined([one.held_out for one in group])
    return Point(
        strategy=cells[0].strategy,
        labels=cells[0].labels,
        seeds=tuple(cell.seed for cell in cells),
        score=float(whole.values_S.mean()),
        interval=interval_of(whole, task),
        labels_saved=None,
        to_scratch=None,
        seconds=mean(cell.seconds for cell in cells),
        peak_memory_bytes=max(cell.peak_memory_bytes for cell in cells),
        stored_bytes=max(cell.stored_bytes for cell in cells),
        source_score=_mean([cell.source_score for cell in cells]),
        source_interval=_interval([one.source for one in group], task),
        ood_score=_mean([cell.ood_score for cell in cells]),
        ood_interval=_interval([one.ood for one in group], task),
        worst_group=_mean([cell.worst_group for cell in cells]),
    )


def _with_labels_saved(
    point: Point, height: float, heights: Sequence[float], at: Sequence[float]
) -> Point:
    if point.strategy == SCRATCH:
        return point
    found = crossing(height, heights, at=at, log=True)
    return replace(point, labels_saved=LabelsSaved(found.at, found.bound))


def _reached(cells: Sequence[Cell], score: float, sign: int) -> ToScratch | None:
    curve = mean_curve(cells)
    if not curve:
        return None
    steps, seconds = [one.step for one in curve], [one.seconds for one in curve]
    found = crossing(sign * score, [sign * one.score for one in curve], at=steps, log=False)
    return ToScratch(found.at, float(np.interp(found.at, steps, seconds)), found.bound)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if len(known) == len(values) else None


def _interval(samples: Sequence[Sample | None], task: Task) -> Interval | None:
    known = [one for one in samples if one is not None]
    if len(known) < len(samples):
        return None
    return interval_of(joined(known), task)


def _paired(first: _Seeds, second: _Seeds, sign: int) -> Spread | None:
    """Of the difference over the seeds of both, on the same examples."""
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    difference = joined([first[seed] for seed in seeds]).minus(
        joined([second[seed] for seed in seeds])
    )
    return spread(
        Sample(sign * difference.values_S, sign * difference.values_RS, difference.examples)
    )
