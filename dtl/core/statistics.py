"""Confidence intervals and tests of scores, over held-out examples and over seeds."""

# E examples, K sums, R resamples, S seeds

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal

import numpy as np

ScoreFunction = Callable[[np.ndarray], np.ndarray]  # sums (..., K) to scores (...)

SEED = 20_000_033
WEIGHTS_AT_ONCE = 4_000_000


def resample_scores(
    score_of: ScoreFunction, counts_EK: np.ndarray, *, resamples: int
) -> np.ndarray:
    """Return the score of each bootstrap resample of the examples (Efron 1979), shape (R, ...).

    The resamples depend only on the number of examples, so that two models that are scored on the
    same examples are resampled in pairs.
    """
    rng = np.random.default_rng(SEED)
    examples = len(counts_EK)
    share = np.full(examples, 1 / examples)
    at_once = max(1, WEIGHTS_AT_ONCE // examples)
    values = []
    for start in range(0, resamples, at_once):
        weights_RE = rng.multinomial(examples, share, size=min(at_once, resamples - start))
        values.append(score_of(weights_RE @ counts_EK))
    return np.concatenate(values)


@dataclass(frozen=True)
class ScoreSample:
    """Scores of one model per seed on the same examples: of all examples, and of each resample.

    `values_S`: shape (S,). `values_RS`: shape (R, S).
    """

    values_S: np.ndarray
    values_RS: np.ndarray
    examples: int

    @classmethod
    def from_counts(
        cls, score_of: ScoreFunction, counts_EK: np.ndarray, *, resamples: int = 2000
    ) -> ScoreSample:
        """Return the sample of one seed; `counts_EK`: of each example, shape (E, K)."""
        return cls(
            np.array([score_of(counts_EK.sum(0))], dtype=float),
            resample_scores(score_of, counts_EK, resamples=resamples)[:, None],
            len(counts_EK),
        )

    def subtract(self, other: ScoreSample) -> ScoreSample:
        """Return the paired difference: both have the same seeds, examples and resamples."""
        assert self.examples == other.examples
        return ScoreSample(
            self.values_S - other.values_S, self.values_RS - other.values_RS, self.examples
        )


def concatenate_seeds(samples: Sequence[ScoreSample]) -> ScoreSample:
    """Return the samples of several seeds as one."""
    assert len({one.examples for one in samples}) == 1
    return ScoreSample(
        np.concatenate([one.values_S for one in samples]),
        np.concatenate([one.values_RS for one in samples], axis=1),
        samples[0].examples,
    )


@dataclass(frozen=True)
class BootstrapMean:
    """A mean over seeds, and its bootstrap distribution over other seeds and examples.

    `draws_R`: shape (R,).
    """

    estimate: float
    draws_R: np.ndarray

    def interval(self, level: float) -> tuple[float, float]:
        """Return the confidence interval of a level, such as 0.95: percentiles of the draws."""
        tail = 50 * (1 - level)
        low, high = np.percentile(self.draws_R, (tail, 100 - tail))
        return float(low), float(high)

    @property
    def p_value(self) -> float:
        """The two-sided p-value of a mean of 0, at least 2 / (R + 1)."""
        beyond = min((self.draws_R <= 0).sum(), (self.draws_R >= 0).sum())
        return float(min(1.0, 2 * (beyond + 1) / (len(self.draws_R) + 1)))


def bootstrap_mean(sample: ScoreSample) -> BootstrapMean:
    """Return a clustered bootstrap: seeds and examples are both drawn with replacement.

    With few seeds, a plain bootstrap underestimates the variance. So the variance is scaled to the
    unbiased one of the crossed design (a component of the seeds and one of the examples, without
    counting their interaction twice), and the tails are those of Student's t with Satterthwaite's
    degrees of freedom.
    """
    values_S, seeds, examples = sample.values_S, len(sample.values_S), sample.examples
    rng = np.random.default_rng(SEED)
    resamples = len(sample.values_RS)
    estimate = float(values_S.mean())
    unbiased = examples / max(1, examples - 1)
    by_examples_R = (sample.values_RS.mean(1) - estimate) * np.sqrt(unbiased)
    of_examples = float(by_examples_R.var())
    of_seeds, of_both, by_seeds_R = 0.0, 0.0, np.zeros(resamples)
    if seeds > 1:
        of_seeds = float(values_S.var(ddof=1)) / seeds
        own_RS = sample.values_RS - sample.values_RS.mean(1, keepdims=True)
        of_both = float(own_RS.var(0).mean()) / (seeds - 1) * unbiased
        picked_RS = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
        by_seeds_R = (picked_RS @ values_S - estimate) * np.sqrt(seeds / (seeds - 1))
    only_seeds = max(of_seeds - of_both, 0.0)  # what seeds add to the variance of the examples
    if of_seeds > 0:
        by_seeds_R *= np.sqrt(only_seeds / of_seeds)
    freedom = _degrees_of_freedom(
        only_seeds + of_examples,
        [(of_seeds, seeds - 1), (max(of_examples - of_both, 0.0), examples - 1)],
    )
    tails_R = np.sqrt(freedom / rng.chisquare(freedom, size=resamples)) if freedom < inf else 1.0
    return BootstrapMean(estimate, estimate + (by_examples_R + by_seeds_R) * tails_R)


def _degrees_of_freedom(variance: float, parts: Sequence[tuple[float, int]]) -> float:
    """Return the degrees of freedom of a sum of estimated variances (Satterthwaite 1946)."""
    total = sum(part**2 / degrees for part, degrees in parts if degrees > 0)
    return variance**2 / total if total > 0 else inf


def holm_correction(p_values: Sequence[float]) -> list[float]:
    """Return the adjusted p-values of a family of tests (Holm 1979).

    They bound the probability of any false rejection in the family.
    """
    count = len(p_values)
    order = sorted(range(count), key=lambda index: p_values[index])
    adjusted, highest = [0.0] * count, 0.0
    for done, index in enumerate(order):
        highest = max(highest, min(1.0, (count - done) * p_values[index]))
        adjusted[index] = highest
    return adjusted


@dataclass(frozen=True)
class Crossing:
    """Where a measured curve reaches a height; `bound`: set if that is outside of the curve."""

    position: float
    bound: Literal["more than", "at most"] | None


def find_crossing(
    height: float, heights: Sequence[float], *, positions: Sequence[float], log: bool
) -> Crossing:
    """Return the first position where the curve reaches a height.

    `positions`: rising. Between the points, the curve is linear in the position, or with `log` in
    its logarithm.
    """
    if heights[0] >= height:
        return Crossing(positions[0], "at most")
    for index in range(1, len(heights)):
        low, high = heights[index - 1], heights[index]
        if high >= height:
            share = (height - low) / (high - low)
            before, after = positions[index - 1], positions[index]
            if log:
                return Crossing(float(before * (after / before) ** share), None)
            return Crossing(float(before + share * (after - before)), None)
    return Crossing(positions[-1], "more than")
