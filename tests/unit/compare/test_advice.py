"""What a comparison says of scores that were made up, so that the truth is known."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from dtl.compare.advice import held_out_differences, recommend, source_differences, summarize_cells
from dtl.compare.measure import Measured
from dtl.compare.records import (
    BaseScores,
    CellResult,
    ConfidenceInterval,
    CurvePoint,
    TimeToScratchScore,
)
from dtl.core.statistics import Sample

BASE = BaseScores()  # it has no head for the task
TASK = SimpleNamespace(best="accuracy")
EXAMPLES = 200
SEEDS = 3


def accuracy(sums):
    return sums[..., 0] / sums[..., 1]


def cells(strategy, labels, rights, *, seconds=10.0):
    """One a seed, of which examples were right."""
    return [
        Measured(
            CellResult(
                strategy=strategy,
                labels=labels,
                rows=labels,
                seed=seed,
                learning_rate=0.1,
                score=float(right.mean()),
                interval=ConfidenceInterval(0.0, 1.0),
                scores={},
                steps=1,
                train_seconds=seconds,
                wall_seconds=seconds,
                peak_memory_bytes=1,
                export_bytes=1,
                curve=(),
                source_score=None,
                ood_score=None,
                worst_group_score=None,
                run="",
            ),
            Sample.of(accuracy, np.stack([right, np.ones(len(right))], axis=1)),
            None,
            None,
        )
        for seed, right in enumerate(rights)
    ]


def guesses(draw, ease, *, of_seed=0.02):
    """Which of the examples each seed gets right; they are as easy for the one as for the other."""
    easy = draw.beta(4 * ease, 4 * (1 - ease), size=EXAMPLES)
    return [
        (draw.random(EXAMPLES) < np.clip(easy + draw.normal(0, of_seed), 0, 1)).astype(float)
        for _ in range(SEEDS)
    ]


def advice(measured, *, sign=1, base=BASE, before=None):
    found = summarize_cells(measured, TASK, sign=sign)
    pairs = held_out_differences(measured, sign=sign)
    lost = source_differences(measured, before, sign=sign)
    unit = "{} labels".format
    return recommend(found, pairs, lost, base, sign=sign, unit=unit)


def beside(base, measured):
    """The same cells, where the base as it is was right of these examples; and what it is then."""
    sample = Sample.of(accuracy, np.stack([base, np.ones(len(base))], axis=1))
    return [replace(one, unadapted=sample) for one in measured], BaseScores(
        score=float(base.mean())
    )


def test_two_identical_strategies_are_not_told_apart():
    draw = np.random.default_rng(0)
    verdicts = []
    for _ in range(20):
        easy = draw.beta(3, 2, size=EXAMPLES)
        first, second = (
            [(draw.random(EXAMPLES) < np.clip(easy + shift, 0, 1)).astype(float) for shift in luck]
            for luck in draw.normal(0, 0.02, size=(2, SEEDS))
        )
        (told,) = advice([*cells("full", 5, first), *cells("lora", 5, second)])
        verdicts.append(told.verdict)
    assert verdicts.count("not distinguishable") >= 18


def test_what_is_better_is_taken_and_the_reason_is_given():
    draw = np.random.default_rng(1)
    measured = [
        *cells("scratch", 5, guesses(draw, 0.3)),
        *cells("full", 5, guesses(draw, 0.5)),
        *cells("frozen", 5, guesses(draw, 0.8)),
    ]
    (told,) = advice(measured)
    assert (told.choice, told.verdict) == ("frozen", "best")
    assert told.text.startswith("With 5 labels, take frozen. It comes to 0.")
    assert "the next best, full, to 0." in told.text
    assert "and scratch to 0." in told.text
    assert told.text.count(". ") == 1  # two sentences


def test_where_transfer_hurts_scratch_is_taken():
    draw = np.random.default_rng(2)
    measured = [
        *cells("scratch", 50, guesses(draw, 0.9)),
        *cells("full", 50, guesses(draw, 0.6)),
        *cells("frozen", 50, guesses(draw, 0.5)),
    ]
    (told,) = advice(measured)
    assert (told.choice, told.verdict) == ("scratch", "scratch")
    assert "train from scratch: transfer is negative here" in told.text


def test_less_of_an_error_is_better():
    draw = np.random.default_rng(3)
    measured = [
        *cells("scratch", 50, guesses(draw, 0.6)),
        *cells("full", 50, guesses(draw, 0.2)),
    ]
    (told,) = advice(measured, sign=-1)
    assert told.choice == "full"
    (pair,) = held_out_differences(measured, sign=-1)
    assert pair.is_significant and pair.difference < 0  # scratch minus full


def test_of_those_that_do_best_the_quickest_is_taken():
    draw = np.random.default_rng(4)
    rights = guesses(draw, 0.7)
    measured = [
        *cells("scratch", 5, guesses(draw, 0.3)),
        *cells("full", 5, rights),
        *cells("frozen", 5, rights, seconds=3.0),
    ]
    (told,) = advice(measured)
    assert (told.choice, told.verdict) == ("frozen", "not distinguishable")
    assert "Full and frozen are not distinguishable (full 0." in told.text
    assert "; scratch comes to 0." in told.text


def test_nothing_is_claimed_of_transfer_that_does_as_well_as_scratch():
    rights = guesses(np.random.default_rng(4), 0.6)
    lower = [right * (np.arange(EXAMPLES) > 0) for right in rights]
    for scratch, full, said in (
        (rights, lower, "train from scratch: no transfer is better"),
        (lower, rights, "nothing shows that transfer pays"),
    ):
        (told,) = advice([*cells("scratch", 5, scratch), *cells("full", 5, full)])
        assert told.verdict == "not distinguishable"
        assert told.choice == ("scratch" if scratch is rights else "full")
        assert said in told.text


def test_a_difference_is_of_the_seeds_that_both_have():
    draw = np.random.default_rng(5)
    measured = [*cells("scratch", 5, guesses(draw, 0.3))[:2], *cells("full", 5, guesses(draw, 0.7))]
    (pair,) = held_out_differences(measured, sign=1)
    means = [
        np.mean([one.cell.score for one in measured if one.cell.strategy == name][:2])
        for name in ("scratch", "full")
    ]
    assert pair.difference == pytest.approx(means[0] - means[1])


def test_labels_saved_are_read_from_scratchs_curve():
    """Scratch: 0.2, 0.4, 0.6 with 5, 20, 80 labels. 0.5 lies half-way from 20 to 80."""

    def exactly(share):
        return [np.arange(100) < 100 * share] * SEEDS

    measured = [
        cell
        for labels, scratch, full in ((5, 0.2, 0.5), (20, 0.4, 0.9), (80, 0.6, 0.1))
        for name, share in (("scratch", scratch), ("full", full))
        for cell in cells(name, labels, [right.astype(float) for right in exactly(share)])
    ]
    found = {
        one.labels: one.label_efficiency for one in summarize_cells(measured, TASK, sign=1)[1::2]
    }
    assert found[5].scratch_labels == pytest.approx((20 * 80) ** 0.5)
    assert found[5].bound is None
    assert (found[20].scratch_labels, found[20].bound) == (80, "more than")
    assert (found[80].scratch_labels, found[80].bound) == (5, "at most")


def test_how_soon_it_had_what_scratch_ends_with():
    """By hand: the means of two seeds are 0.3 after 2 s and 0.7 after 4 s; scratch ends at 0.4."""

    def learnt(strategy, *curves):
        rights = [np.arange(10) < 10 * curve[-1][2] for curve in curves]
        made = cells(strategy, 5, [right.astype(float) for right in rights])
        return [
            replace(one, cell=replace(one.cell, curve=tuple(CurvePoint(*at) for at in curve)))
            for one, curve in zip(made, curves, strict=True)
        ]

    measured = [
        *learnt("scratch", [(2.0, 10, 0.1), (4.0, 20, 0.4)], [(2.0, 10, 0.2), (4.0, 20, 0.4)]),
        *learnt("full", [(1.0, 10, 0.2), (3.0, 20, 0.6)], [(3.0, 10, 0.4), (5.0, 20, 0.8)]),
        *learnt("frozen", [(1.0, 10, 0.5), (2.0, 20, 0.6)]),
        *learnt("bitfit", [(1.0, 10, 0.1), (2.0, 20, 0.2)]),
    ]
    found = {
        one.strategy: one.time_to_scratch_score for one in summarize_cells(measured, TASK, sign=1)
    }
    assert found["scratch"] is None
    assert found["full"] == TimeToScratchScore(pytest.approx(12.5), pytest.approx(2.5), None)
    assert found["frozen"] == TimeToScratchScore(10, 1.0, "at most")
    assert found["bitfit"] == TimeToScratchScore(20, 2.0, "more than")


def test_learning_is_advised_where_it_is_better_than_the_base_as_it_is():
    draw = np.random.default_rng(6)
    cases = (
        (0.4, "lora", "best", "With 5 labels, take lora."),
        (0.95, "unadapted", "unadapted", "keep the base as it is: learning does harm here"),
    )
    learnt = [*cells("scratch", 5, guesses(draw, 0.2)), *cells("lora", 5, guesses(draw, 0.7))]
    for ease, choice, verdict, said in cases:
        measured, base = beside(guesses(draw, ease)[0], learnt)
        (told,) = advice(measured, base=base)
        assert (told.choice, told.verdict) == (choice, verdict)
        assert said in told.text and f"{base.score:.3f}" in told.text
        assert told.text.count(". ") == 1  # two sentences
        with_base = [
            one for one in held_out_differences(measured, sign=1) if one.first == "unadapted"
        ]
        assert [one.second for one in with_base] == ["scratch", "lora"]
        lora = np.mean([one.cell.score for one in learnt if one.cell.strategy == "lora"])
        assert with_base[1].difference == pytest.approx(base.score - lora)
        assert all(
            one.adjusted_p_value <= 2 * one.p_value for one in with_base
        )  # two pairs, not three


def test_nothing_is_claimed_of_learning_that_does_as_well_as_the_base():
    draw = np.random.default_rng(7)
    rights = guesses(draw, 0.6)
    learnt = [*cells("scratch", 5, guesses(draw, 0.2)), *cells("lora", 5, rights)]
    lower = rights[0] * (np.arange(EXAMPLES) > 1)
    measured, base = beside(lower, learnt)
    (told,) = advice(measured, base=base)
    assert (told.choice, told.verdict) == ("unadapted", "not distinguishable")
    assert "nothing shows that learning pays" in told.text


def test_an_error_of_the_base_that_is_less_is_better():
    draw = np.random.default_rng(8)
    learnt = [*cells("scratch", 5, guesses(draw, 0.9)), *cells("lora", 5, guesses(draw, 0.6))]
    measured, base = beside(guesses(draw, 0.1)[0], learnt)
    (told,) = advice(measured, sign=-1, base=base)
    assert told.verdict == "unadapted"
    measured, base = beside(guesses(draw, 0.9)[0], learnt)
    (told,) = advice(measured, sign=-1, base=base)
    assert told.choice == "lora" and told.text.endswith("; the base as it is has 0.925.")


def test_what_is_forgotten_is_paired_with_the_base_on_the_same_examples():
    """Of the 100 examples the base is right of 80, full of those but 20, lp-ft of those but one and
    but none. Scratch had no source to forget."""

    def sample(right):
        return Sample.of(accuracy, np.stack([right, np.ones(100)], axis=1))

    places = np.arange(100)
    base = sample(places < 80)
    of_source = {"scratch": [None] * 2, "full": [60, 60], "lp-ft": [80, 79]}
    measured = [
        replace(one, source=None if right is None else sample(places < right))
        for name, rights in of_source.items()
        for one, right in zip(cells(name, 5, [np.ones(9)] * 2), rights, strict=True)
    ]
    for sign in (1, -1):
        found = source_differences(measured, base, sign=sign)
        pairs = {(one.first, one.second): one for one in found}
        assert list(pairs) == [("full", "lp-ft"), ("unadapted", "full"), ("unadapted", "lp-ft")]
        full, lp_ft = pairs["unadapted", "full"], pairs["unadapted", "lp-ft"]
        assert sign * full.difference == pytest.approx(0.2) and full.is_significant
        assert sign * lp_ft.difference == pytest.approx(0.005) and not lp_ft.is_significant
        assert full.adjusted_p_value == 2 * full.p_value and lp_ft.adjusted_p_value == lp_ft.p_value
        low, high = sorted((sign * full.interval.low, sign * full.interval.high))
        assert 0.1 < low < 0.2 < high < 0.3  # an example's part: (0.2 * 0.8 / 100)**0.5 is 0.04
    pairs = source_differences(measured, None, sign=1)
    assert [(one.first, one.second) for one in pairs] == [("full", "lp-ft")]


@pytest.mark.parametrize(
    ("right", "said"),
    [
        ([60, 60], "; on the source full loses 0.200."),
        ([79, 80], "; nothing shows that full forgets any of the source."),
        ([80, 80], "; full forgets nothing of the source."),
        ([99, 99], "; on the source full gains 0.190."),
    ],
)
def test_what_the_choice_forgets_is_told_with_it(right, said):
    places, draw = np.arange(100), np.random.default_rng(9)

    def sample(right):
        return Sample.of(accuracy, np.stack([places < right, np.ones(100)], axis=1))

    full = cells("full", 5, guesses(draw, 0.8)[:2])
    full = [replace(one, source=sample(n)) for one, n in zip(full, right, strict=True)]
    measured = [*cells("scratch", 5, guesses(draw, 0.3)[:2]), *full]
    (told,) = advice(measured, before=sample(80))
    assert told.choice == "full" and told.text.endswith(said)
    assert told.text.count(". ") == 1  # two sentences
    (turned,) = advice(measured, sign=-1, before=sample(80))
    assert turned.choice == "scratch" and "source" not in turned.text
