"""Intervals and tests of scores, over held-out examples and over seeds."""

# E examples, K sums, R resamples, S seeds

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal

import numpy as np

Value = Callable[[np.ndarray], np.ndarray]  # sums (..., K) to scores (...)

SEED = 20_000_033
WEIGHTS_AT_ONCE = 4_000_000


def resampled(value_of: Value, counts_EK: np.ndarray, *, resamples: int) -> np.ndarray:
    """The score of each resample of the examples (Efron 1979), drawn with replacement: (R, ...).

    The same resamples at every call with so many examples, so that two models scored on the same
    ones are resampled in pairs.
    """
    draw = np.random.default_rng(SEED)
    examples = len(counts_EK)
    share = np.full(examples, 1 / examples)
    at_once = max(1, WEIGHTS_AT_ONCE // examples)
    values = []
    for start in range(0, resamples, at_once):
        weights_RE = draw.multinomial(examples, share, size=min(at_once, resamples - start))
        values.append(value_of(weights_RE @ counts_EK))
    return np.concatenate(values)


@dataclass(frozen=True)
class Sample:
    """Scores of one model a seed on the same examples: of all of them, and of each resample."""

    values_S: np.ndarray
    values_RS: np.ndarray
    examples: int

    @classmethod
    def of(cls, value_of: Value, counts_EK: np.ndarray, *, resamples: int = 2000) -> Sample:
        """Of one seed. `counts_EK`: what each example adds to the sums of the score."""
        return cls(
            np.array([value_of(counts_EK.sum(0))], dtype=float),
            resampled(value_of, counts_EK, resamples=resamples)[:, None],
            len(counts_EK),
        )

    def minus(self, other: Sample) -> Sample:
        """Paired: the same seeds, examples and resamples."""
        assert self.examples == other.examples
        return Sample(
            self.values_S - other.values_S, self.values_RS - other.values_RS, self.examples
        )


def joined(samples: Sequence[Sample]) -> Sample:
    """Those of several seeds as one."""
    assert len({one.examples for one in samples}) == 1
    return Sample(
        np.concatenate([one.values_S for one in samples]),
        np.concatenate([one.values_RS for one in samples], axis=1),
        samples[0].examples,
    )


@dataclass(frozen=True)
class Spread:
    """A mean over seeds, and where it might lie: draws of it, with other seeds and examples."""

    estimate: float
    draws_R: np.ndarray

    def interval(self, level: float) -> tuple[float, float]:
        """The percentiles that hold so large a share of the draws."""
        tail = 50 * (1 - level)
        low, high = np.percentile(self.draws_R, (tail, 100 - tail))
        return float(low), float(high)

    @property
    def p(self) -> float:
        """Two-sided, that the mean is 0: never below what so many draws can tell."""
        beyond = min((self.draws_R <= 0).sum(), (self.draws_R >= 0).sum())
        return float(min(1.0, 2 * (beyond + 1) / (len(self.draws_R) + 1)))


def spread(given: Sample) -> Spread:
    """A clustered bootstrap: seeds and examples are drawn anew, each with replacement.

    Few seeds make a plain bootstrap too sure of itself, so its variance is brought to the unbiased
    one of the crossed design (a seed's part and an example's part, what they share counted once),
    and its tails are made those of Student's t with Satterthwaite's degrees of freedom.
    """
    values_S, seeds, examples = given.values_S, len(given.values_S), given.examples
    draw = np.random.default_rng(SEED)
    resamples = len(given.values_RS)
    estimate = float(values_S.mean())
    unbiased = examples / max(1, examples - 1)
    by_examples_R = (given.values_RS.mean(1) - estimate) * np.sqrt(unbiased)
    of_examples = float(by_examples_R.var())
    of_seeds, of_both, by_seeds_R = 0.0, 0.0, np.zeros(resamples)
    if seeds > 1:
        of_seeds = float(values_S.var(ddof=1)) / seeds
        own_RS = given.values_RS - given.values_RS.mean(1, keepdims=True)
        of_both = float(own_RS.var(0).mean()) / (seeds - 1) * unbiased
        picked_RS = draw.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
        by_seeds_R = (picked_RS @ values_S - estimate) * np.sqrt(seeds / (seeds - 1))
    beyond = max(of_seeds - of_both, 0.0)  # what seeds add to the luck of the examples
    if of_seeds > 0:
        by_seeds_R *= np.sqrt(beyond / of_seeds)
    freedom = _freedom(
        beyond + of_examples,
        [(of_seeds, seeds - 1), (max(of_examples - of_both, 0.0), examples - 1)],
    )
    heavy_R = np.sqrt(freedom / draw.chisquare(freedom, size=resamples)) if freedom < inf else 1.0
    return Spread(estimate, estimate + (by_examples_R + by_seeds_R) * heavy_R)


def _freedom(variance: float, parts: Sequence[tuple[float, int]]) -> float:
    """Degrees of freedom of a sum of estimated variances (Satterthwaite 1946)."""
    doubt = sum(part**2 / degrees for part, degrees in parts if degrees > 0)
    return variance**2 / doubt if doubt > 0 else inf


def holm(p: Sequence[float]) -> list[float]:
    """The p-values of a family of tests, corrected so that any false one of them is as unlikely as
    a single one (Holm 1979)."""
    order = sorted(range(len(p)), key=lambda place: p[place])
    corrected, highest = [0.0] * len(p), 0.0
    for done, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - done) * p[place]))
        corrected[place] = highest
    return corrected


@dataclass(frozen=True)
class Crossing:
    """Where a measured curve reaches a height. `bound`: beyond which of its ends, or None."""

    at: float
    bound: Literal["more than", "at most"] | None


def crossing(
    height: float, heights: Sequence[float], *, at: Sequence[float], log: bool
) -> Crossing:
    """The first place, among rising ones, where the curve is as high: straight lines between its
    points, over the place or its logarithm."""
    if heights[0] >= height:
        return Crossing(at[0], "at most")
    for place in range(1, len(heights)):
        low, high = heights[place - 1], heights[place]
        if high >= height:
            share = (height - low) / (high - low)
            before, after = at[place - 1], at[place]
            found = before * (after / before) ** share if log else before + share * (after - before)
            return Crossing(float(found), None)
    return Crossing(at[-1], "more than")
