"""Computes paired differences between strategies, with Holm-adjusted p-values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

from dtl.compare.measure import CONFIDENCE_LEVEL, MeasuredCell
from dtl.compare.records import UNADAPTED, ConfidenceInterval, PairedDifference
from dtl.compare.summaries import group_by_strategy
from dtl.core.statistics import (
    BootstrapMean,
    ScoreSample,
    bootstrap_mean,
    concatenate_seeds,
    holm_correction,
)

SamplesBySeed = dict[int, ScoreSample]  # of one strategy with one number of labels
Pair = tuple[str, str]


def held_out_differences(measured: Sequence[MeasuredCell], *, sign: int) -> list[PairedDifference]:
    """Return the paired differences on the held-out examples: of all pairs of strategies with the
    same number of labels, over their common seeds, and of the unadapted base and each strategy.
    For each number of labels the two families of p-values are adjusted separately."""
    base = next((one.base for one in measured if one.base is not None), None)
    return _compare_all_pairs(measured, lambda one: one.held_out, base, sign)


def source_differences(
    measured: Sequence[MeasuredCell], base: ScoreSample | None, *, sign: int
) -> list[PairedDifference]:
    """Return the paired differences on the source data. `base`: the sample of the unadapted base
    there."""
    return _compare_all_pairs(measured, lambda one: one.source, base, sign)


def _compare_all_pairs(
    measured: Sequence[MeasuredCell],
    read_sample: Callable[[MeasuredCell], ScoreSample | None],
    base: ScoreSample | None,
    sign: int,
) -> list[PairedDifference]:
    samples_by_labels: dict[int, dict[str, SamplesBySeed]] = {}
    for (name, labels), group in group_by_strategy(measured).items():
        samples = ((one.cell.seed, read_sample(one)) for one in group)
        if known := {seed: sample for seed, sample in samples if sample is not None}:
            samples_by_labels.setdefault(labels, {})[name] = known
    differences = []
    for labels, by_strategy in sorted(samples_by_labels.items()):
        bootstrapped = {
            (first, second): _bootstrap_difference(by_strategy[first], by_strategy[second], sign)
            for first, second in combinations(by_strategy, 2)
        }
        differences += _adjust_family(labels, bootstrapped)
        if base is not None:
            base_bootstrapped = {
                (UNADAPTED, name): _bootstrap_difference(
                    dict.fromkeys(samples, base), samples, sign
                )
                for name, samples in by_strategy.items()
            }
            differences += _adjust_family(labels, base_bootstrapped)
    return differences


def _bootstrap_difference(
    first: SamplesBySeed, second: SamplesBySeed, sign: int
) -> BootstrapMean | None:
    """Return the bootstrapped difference over the common seeds, on the same examples; None without
    common seeds."""
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    difference = concatenate_seeds([first[seed] for seed in seeds]).subtract(
        concatenate_seeds([second[seed] for seed in seeds])
    )
    return bootstrap_mean(
        ScoreSample(sign * difference.values_S, sign * difference.values_RS, difference.examples)
    )


def _adjust_family(
    labels: int, bootstrapped: dict[Pair, BootstrapMean | None]
) -> list[PairedDifference]:
    """Return the differences of a family of pairs, with p-values adjusted over the family."""
    family = {pair: one for pair, one in bootstrapped.items() if one is not None}
    adjusted = holm_correction([one.p_value for one in family.values()])
    return [
        PairedDifference(
            labels=labels,
            first=first,
            second=second,
            difference=one.estimate,
            interval=ConfidenceInterval(*one.interval(CONFIDENCE_LEVEL)),
            p_value=one.p_value,
            adjusted_p_value=p_value,
            is_significant=p_value < 1 - CONFIDENCE_LEVEL,
        )
        for ((first, second), one), p_value in zip(family.items(), adjusted, strict=True)
    ]
