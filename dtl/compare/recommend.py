"""Recommends a strategy for each number of labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dtl.compare.formatting import format_label_count
from dtl.compare.grid import SCRATCH
from dtl.compare.records import (
    UNADAPTED,
    BaseScores,
    PairedDifference,
    Recommendation,
    StrategySummary,
    find_base_difference,
)


@dataclass(frozen=True)
class Evidence:
    """What a recommendation is based on. `sign`: -1 if lower scores are better. `classes`: None if
    labels are counted in rows."""

    summaries: Sequence[StrategySummary]
    differences: Sequence[PairedDifference]
    source_differences: Sequence[PairedDifference]
    base: BaseScores
    sign: int
    classes: int | None


@dataclass(frozen=True)
class _Ranking:
    """The strategies with one number of labels, by name. `ranked`: best mean first. `tied`: not
    significantly different from the best, in grid order."""

    labels: int
    by_name: dict[str, StrategySummary]
    differences: tuple[PairedDifference, ...]
    ranked: tuple[str, ...]
    tied: tuple[str, ...]
    prefix: str

    @property
    def best(self) -> str:
        return self.ranked[0]

    @property
    def others(self) -> list[str]:
        """The strategies that are significantly worse than the best, best first."""
        return [name for name in self.ranked if name not in self.tied]

    def format_score(self, name: str) -> str:
        return f"{self.by_name[name].score:.3f}"


def recommend(evidence: Evidence) -> list[Recommendation]:
    """Return a recommendation for each number of labels with two or more strategies."""
    recommendations = []
    for labels in sorted({one.labels for one in evidence.summaries}):
        ranking = _rank(evidence, labels)
        if len(ranking.by_name) > 1:
            among_strategies = _recommend_strategy(ranking)
            with_base = _compare_with_base(among_strategies, ranking, evidence.base)
            recommendations.append(_add_forgetting(with_base, evidence.source_differences))
    return recommendations


def _rank(evidence: Evidence, labels: int) -> _Ranking:
    by_name = {one.strategy: one for one in evidence.summaries if one.labels == labels}
    differences = tuple(one for one in evidence.differences if one.labels == labels)
    ranked = sorted(by_name, key=lambda name: -evidence.sign * by_name[name].score)
    different = {
        one.second if one.first == ranked[0] else one.first
        for one in differences
        if one.is_significant and ranked[0] in (one.first, one.second)
    }
    return _Ranking(
        labels=labels,
        by_name=by_name,
        differences=differences,
        ranked=tuple(ranked),
        tied=tuple(name for name in by_name if name not in different),
        prefix=f"With {format_label_count(labels, classes=evidence.classes)}",
    )


def _recommend_strategy(ranking: _Ranking) -> Recommendation:
    """Return the recommendation among the strategies, without the unadapted base."""
    if len(ranking.tied) > 1:
        return _recommend_tied(ranking)
    reason = _describe_difference(ranking, ranking.others[0])
    if ranking.best == SCRATCH:
        text = f"{ranking.prefix}, train from scratch: transfer is negative. {reason}."
        return Recommendation(ranking.labels, SCRATCH, "scratch", text)
    if SCRATCH in ranking.others[1:]:
        reason += f"; scratch has {ranking.format_score(SCRATCH)}"
    text = f"{ranking.prefix}, use {ranking.best}. {reason}."
    return Recommendation(ranking.labels, ranking.best, "best", text)


def _recommend_tied(ranking: _Ranking) -> Recommendation:
    """Return the recommendation if several strategies are not significantly different."""
    prefix, tied = ranking.prefix, ranking.tied
    if ranking.best == SCRATCH:
        choice = SCRATCH
        advice = f"{prefix}, train from scratch: no transfer strategy is better."
    elif SCRATCH in tied:
        choice = ranking.best
        advice = f"{prefix}, there is no evidence that transfer helps: add seeds or examples."
    else:
        choice = min(tied, key=lambda name: ranking.by_name[name].train_seconds)
        advice = f"{prefix}, use {choice}, the fastest to train of the best."
    names = f"{', '.join(tied[:-1])} and {tied[-1]}"
    scores = ", ".join(f"{name} {ranking.format_score(name)}" for name in tied)
    reason = f"{names} are not significantly different ({scores})"
    if SCRATCH in ranking.others:
        reason += f"; scratch has {ranking.format_score(SCRATCH)}"
    text = f"{advice} {reason[0].upper()}{reason[1:]}."
    return Recommendation(ranking.labels, choice, "not significantly different", text)


def _describe_difference(ranking: _Ranking, other: str) -> str:
    """Return a sentence on the best strategy and another, without its full stop."""
    best = ranking.best
    pair = next(one for one in ranking.differences if {one.first, one.second} == {best, other})
    direction = 1 if pair.first == best else -1
    low, high = sorted((direction * pair.interval.low, direction * pair.interval.high))
    return (
        f"It has {ranking.format_score(best)}, the second best, {other}, "
        f"{ranking.format_score(other)}: paired difference {direction * pair.difference:.3f} "
        f"({low:.3f} to {high:.3f})"
    )


def _compare_with_base(
    recommendation: Recommendation, ranking: _Ranking, base: BaseScores
) -> Recommendation:
    """Return the recommendation if the best strategy is significantly better than the unadapted
    base, else one for the unadapted base."""
    difference = find_base_difference(ranking.differences, ranking.best, ranking.labels)
    if base.score is None or difference is None:
        return recommendation
    base_score = f"{base.score:.3f}"
    if difference.is_significant and difference.difference < 0:
        text = f"{recommendation.text[:-1]}; the unadapted base has {base_score}."
        return replace(recommendation, text=text)
    best = f"the best strategy, {ranking.best}, has {ranking.format_score(ranking.best)}"
    if difference.is_significant:
        interval = f"{difference.interval.low:.3f} to {difference.interval.high:.3f}"
        text = (
            f"{ranking.prefix}, use the unadapted base: training makes it worse. It has "
            f"{base_score}, {best}: paired difference {difference.difference:.3f} ({interval})."
        )
        return replace(recommendation, choice=UNADAPTED, verdict="unadapted", text=text)
    text = (
        f"{ranking.prefix}, there is no evidence that training helps: add seeds or examples. The "
        f"unadapted base has {base_score}, {best}, and the two are not significantly different."
    )
    return replace(
        recommendation, choice=UNADAPTED, verdict="not significantly different", text=text
    )


def _add_forgetting(
    recommendation: Recommendation, source_differences: Sequence[PairedDifference]
) -> Recommendation:
    """Return the recommendation with the forgetting of its choice, if that is known."""
    choice = recommendation.choice
    pair = find_base_difference(source_differences, choice, recommendation.labels)
    if pair is None:
        return recommendation
    if pair.difference == 0:
        forgetting = f"{choice} has no forgetting on the source"
    elif not pair.is_significant:
        forgetting = f"the forgetting of {choice} on the source is not significant"
    elif pair.difference < 0:
        forgetting = f"the source score of {choice} is higher by {-pair.difference:.3f}"
    else:
        forgetting = f"the forgetting of {choice} on the source is {pair.difference:.3f}"
    return replace(recommendation, text=f"{recommendation.text[:-1]}; {forgetting}.")
