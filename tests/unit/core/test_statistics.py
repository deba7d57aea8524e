"""Intervals that cover what they promise, and tests that are right about chance."""

import numpy as np
import pytest
from scipy import stats

from dtl.core.statistics import (
    ScoreSample,
    bootstrap_mean,
    concatenate_seeds,
    find_crossing,
    holm_correction,
    resample_scores,
)

EXPERIMENTS = 500
LEVEL = 0.9


def mean(sums):
    """Of sums (..., 2) of a value and a one for each example."""
    return sums[..., 0] / sums[..., 1]


def sample(value_of, counts_of_seeds):
    return concatenate_seeds(
        [ScoreSample.from_counts(value_of, counts) for counts in counts_of_seeds]
    )


def counts(values):
    return np.stack([values, np.ones(len(values))], axis=1)


def experiments(*, seeds, examples, of_seed, of_example, of_both, draw):
    """Simulated scores (experiments, seeds, examples) of mean 0: each has its seed's part, its
    example's part and its own; of each experiment a ScoreSample of their means."""
    scores = (
        of_seed * draw.normal(size=(EXPERIMENTS, seeds, 1))
        + of_example * draw.normal(size=(EXPERIMENTS, 1, examples))
        + of_both * draw.normal(size=(EXPERIMENTS, seeds, examples))
    )
    flat = scores.reshape(EXPERIMENTS * seeds, examples).T
    values = resample_scores(lambda sums: sums / examples, flat, resamples=1000)
    shaped = values.reshape(len(values), EXPERIMENTS, seeds)
    for number in range(EXPERIMENTS):
        yield ScoreSample(scores[number].mean(1), shaped[:, number], examples)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(
    ("of_seed", "of_example", "of_both"),
    [(0.0, 1.0, 1.0), (0.1, 0.5, 0.5), (1.0, 0.5, 0.5), (0.05, 0.0, 1.0)],
    ids=["examples", "mixed", "seeds", "each-its-own"],
)
def test_90_percent_intervals_cover_the_true_mean_in_90_percent_of_cases(
    seeds, of_seed, of_example, of_both
):
    draw = np.random.default_rng(1)
    covered = 0
    for one in experiments(
        seeds=seeds,
        examples=200,
        of_seed=of_seed,
        of_example=of_example,
        of_both=of_both,
        draw=draw,
    ):
        low, high = bootstrap_mean(one).interval(LEVEL)
        covered += low <= 0 <= high
    assert 0.86 <= covered / EXPERIMENTS <= 0.94


def test_a_plain_bootstrap_over_three_seeds_covers_too_rarely():
    """What the correction is for: the percentiles of means of three drawn seeds."""
    draw = np.random.default_rng(1)
    values = draw.normal(size=(EXPERIMENTS, 3))
    picked = draw.multinomial(3, [1 / 3] * 3, size=1000) / 3
    low, high = np.percentile(picked @ values.T, (5, 95), axis=0)
    assert ((low <= 0) & (high >= 0)).mean() < 0.8


def test_one_seed_gives_the_interval_of_scipys_bootstrap():
    values = np.random.default_rng(5).exponential(size=400)
    ours = bootstrap_mean(sample(mean, [counts(values)])).interval(LEVEL)
    theirs = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=LEVEL,
        n_resamples=5000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours == pytest.approx((theirs.low, theirs.high), abs=width / 12)


def test_a_paired_difference_is_that_of_scipy_and_narrower_than_unpaired():
    draw = np.random.default_rng(6)
    hard = draw.normal(size=300)
    first, second = (hard + draw.normal(scale=0.2, size=300) for _ in range(2))
    pair = sample(mean, [counts(first + 0.1)]).subtract(sample(mean, [counts(second)]))
    low, high = bootstrap_mean(pair).interval(LEVEL)
    theirs = stats.bootstrap(
        (first + 0.1, second),
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        paired=True,
        confidence_level=LEVEL,
        n_resamples=5000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=width / 12)
    assert width < 0.3 * 2 * 1.645 * np.sqrt((first.var() + second.var()) / 300)


def test_seeds_without_examples_give_students_t():
    """Ten seeds, each with the same score on every example; scipy's interval and test."""
    values = np.random.default_rng(7).normal(0.05, 0.1, size=10)
    found = bootstrap_mean(sample(mean, [counts(np.full(50, value)) for value in values]))
    theirs = stats.t.interval(LEVEL, 9, loc=values.mean(), scale=stats.sem(values))
    width = theirs[1] - theirs[0]
    assert found.estimate == pytest.approx(values.mean())
    assert found.interval(LEVEL) == pytest.approx(theirs, abs=width / 8)
    assert found.p_value == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.04)


def test_the_variance_is_the_hand_computed_one():
    """Seeds of 1, 2 and 3, each a point lower on one of two examples and higher on the other. By
    hand: a seed's part is (1 + 0 + 1) / 2 / 3 = 1/3, an example's part is 2 / 2 = 1, and there is
    nothing of both; so Satterthwaite's degrees are (4/3)^2 / ((1/3)^2 / 2 + 1^2 / 1) = 32/19."""
    values = np.array([1.0, 2.0, 3.0])
    resamples = np.tile(values + np.array([[-1], [0], [0], [1]]), (500, 1))  # all four of two
    found = bootstrap_mean(ScoreSample(values, resamples, examples=2))
    assert found.estimate == 2
    draw = np.random.default_rng(20_000_033)
    seeds = (draw.multinomial(3, [1 / 3] * 3, size=2000) / 3 @ values - 2) * np.sqrt(3 / 2)
    examples = (resamples.mean(1) - 2) * np.sqrt(2)
    assert (seeds.var(), examples.var()) == (pytest.approx(1 / 3, rel=0.1), pytest.approx(1))
    assert found.draws_R - 2 == pytest.approx(
        (seeds + examples) * np.sqrt(32 / 19 / draw.chisquare(32 / 19, size=2000))
    )


def test_identical_samples_have_p_value_1():
    one = sample(mean, [counts(np.arange(10.0)), counts(np.arange(10.0) + 1)])
    found = bootstrap_mean(one.subtract(one))
    assert (found.interval(LEVEL), found.p_value) == ((0, 0), 1)


def test_holm_correction_is_the_hand_computed_one():
    """Holm's step-down over 0.01, 0.02, 0.03, 0.04: 4 x 0.01, 3 x 0.02, then never falling."""
    assert holm_correction([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm_correction([0.5, 0.9]) == [1, 1]
    assert holm_correction([]) == []


@pytest.mark.parametrize(
    ("height", "at", "bound"),
    [
        (0.3, 20**0.5 * 5**0.5, None),  # half-way between 5 and 20 on a logarithmic axis
        (0.4, 20, None),
        (0.1, 5, "at most"),
        (0.7, 80, "more than"),
    ],
)
def test_a_crossing_is_interpolated_in_the_logarithm(height, at, bound):
    found = find_crossing(height, [0.2, 0.4, 0.6], positions=[5, 20, 80], log=True)
    assert (found.position, found.bound) == (pytest.approx(at), bound)


def test_a_crossing_is_interpolated_linearly():
    """It may begin at 0."""
    assert find_crossing(0.3, [0.2, 0.4], positions=[0, 10], log=False).position == pytest.approx(5)
