"""Recommendations for simulated predictions, for which the right choice is known."""

from dataclasses import replace

import numpy as np
import pytest

from dtl.compare.differences import held_out_differences, source_differences
from dtl.compare.recommend import Evidence, recommend
from dtl.compare.records import BaseScores
from dtl.compare.summaries import summarize_cells
from tests.unit.compare.measured import (
    EXAMPLES,
    SEEDS,
    Task,
    draw_predictions,
    make_cells,
    make_sample,
)

NO_BASE = BaseScores()  # without a head for the task


def recommend_for(measured, *, sign=1, base=NO_BASE, base_source=None):
    return recommend(
        Evidence(
            summarize_cells(measured, Task(), sign=sign),
            held_out_differences(measured, sign=sign),
            source_differences(measured, base_source, sign=sign),
            base,
            sign,
            classes=5,
        )
    )


def add_base(correct, measured):
    """Return the cells with the sample of an unadapted base, and its scores."""
    sample = make_sample(correct)
    return [replace(one, base=sample) for one in measured], BaseScores(score=float(correct.mean()))


def test_identical_strategies_are_not_significantly_different():
    generator = np.random.default_rng(0)
    verdicts = []
    for _ in range(20):
        easiness = generator.beta(3, 2, size=EXAMPLES)
        first, second = (
            [
                (generator.random(EXAMPLES) < np.clip(easiness + shift, 0, 1)).astype(float)
                for shift in shifts
            ]
            for shifts in generator.normal(0, 0.02, size=(2, SEEDS))
        )
        (advice,) = recommend_for([*make_cells("full", 5, first), *make_cells("lora", 5, second)])
        verdicts.append(advice.verdict)
    assert verdicts.count("not significantly different") >= 18


def test_best_strategy_is_recommended_with_its_reason():
    generator = np.random.default_rng(1)
    measured = [
        *make_cells("scratch", 5, draw_predictions(generator, 0.3)),
        *make_cells("full", 5, draw_predictions(generator, 0.5)),
        *make_cells("frozen", 5, draw_predictions(generator, 0.8)),
    ]
    (advice,) = recommend_for(measured)
    assert (advice.choice, advice.verdict) == ("frozen", "best")
    assert advice.text.startswith("With 5 labels per class, use frozen. It has 0.")
    assert "the second best, full, 0." in advice.text
    assert "; scratch has 0." in advice.text
    assert advice.text.count(". ") == 1  # two sentences


def test_scratch_is_recommended_if_transfer_is_negative():
    generator = np.random.default_rng(2)
    measured = [
        *make_cells("scratch", 50, draw_predictions(generator, 0.9)),
        *make_cells("full", 50, draw_predictions(generator, 0.6)),
        *make_cells("frozen", 50, draw_predictions(generator, 0.5)),
    ]
    (advice,) = recommend_for(measured)
    assert (advice.choice, advice.verdict) == ("scratch", "scratch")
    assert "train from scratch: transfer is negative" in advice.text


def test_lower_is_better_for_an_error_rate():
    generator = np.random.default_rng(3)
    measured = [
        *make_cells("scratch", 50, draw_predictions(generator, 0.6)),
        *make_cells("full", 50, draw_predictions(generator, 0.2)),
    ]
    (advice,) = recommend_for(measured, sign=-1)
    assert advice.choice == "full"
    (pair,) = held_out_differences(measured, sign=-1)
    assert pair.is_significant and pair.difference < 0  # scratch minus full


def test_fastest_of_the_best_strategies_is_recommended():
    generator = np.random.default_rng(4)
    correct = draw_predictions(generator, 0.7)
    measured = [
        *make_cells("scratch", 5, draw_predictions(generator, 0.3)),
        *make_cells("full", 5, correct),
        *make_cells("frozen", 5, correct, seconds=3.0),
    ]
    (advice,) = recommend_for(measured)
    assert (advice.choice, advice.verdict) == ("frozen", "not significantly different")
    assert "Full and frozen are not significantly different (full 0." in advice.text
    assert "; scratch has 0." in advice.text


def test_no_evidence_for_transfer_if_scratch_is_as_good():
    correct = draw_predictions(np.random.default_rng(4), 0.6)
    lower = [one * (np.arange(EXAMPLES) > 0) for one in correct]
    for scratch, full, expected in (
        (correct, lower, "train from scratch: no transfer strategy is better"),
        (lower, correct, "there is no evidence that transfer helps"),
    ):
        (advice,) = recommend_for(
            [*make_cells("scratch", 5, scratch), *make_cells("full", 5, full)]
        )
        assert advice.verdict == "not significantly different"
        assert advice.choice == ("scratch" if scratch is correct else "full")
        assert expected in advice.text


def test_training_is_recommended_if_it_is_better_than_the_base():
    generator = np.random.default_rng(6)
    cases = (
        (0.4, "lora", "best", "With 5 labels per class, use lora."),
        (0.95, "unadapted", "unadapted", "use the unadapted base: training makes it worse"),
    )
    trained = [
        *make_cells("scratch", 5, draw_predictions(generator, 0.2)),
        *make_cells("lora", 5, draw_predictions(generator, 0.7)),
    ]
    for base_accuracy, choice, verdict, expected in cases:
        measured, base = add_base(draw_predictions(generator, base_accuracy)[0], trained)
        (advice,) = recommend_for(measured, base=base)
        assert (advice.choice, advice.verdict) == (choice, verdict)
        assert expected in advice.text and f"{base.score:.3f}" in advice.text
        assert advice.text.count(". ") == 1  # two sentences
        differences = held_out_differences(measured, sign=1)
        with_base = [one for one in differences if one.first == "unadapted"]
        assert [one.second for one in with_base] == ["scratch", "lora"]
        lora = np.mean([one.cell.score for one in trained if one.cell.strategy == "lora"])
        assert with_base[1].difference == pytest.approx(base.score - lora)
        # A family of two pairs, not of three.
        assert all(one.adjusted_p_value <= 2 * one.p_value for one in with_base)


def test_no_evidence_for_training_if_the_base_is_as_good():
    generator = np.random.default_rng(7)
    correct = draw_predictions(generator, 0.6)
    trained = [
        *make_cells("scratch", 5, draw_predictions(generator, 0.2)),
        *make_cells("lora", 5, correct),
    ]
    lower = correct[0] * (np.arange(EXAMPLES) > 1)
    measured, base = add_base(lower, trained)
    (advice,) = recommend_for(measured, base=base)
    assert (advice.choice, advice.verdict) == ("unadapted", "not significantly different")
    assert "there is no evidence that training helps" in advice.text


def test_lower_error_rate_of_the_base_is_better():
    generator = np.random.default_rng(8)
    trained = [
        *make_cells("scratch", 5, draw_predictions(generator, 0.9)),
        *make_cells("lora", 5, draw_predictions(generator, 0.6)),
    ]
    measured, base = add_base(draw_predictions(generator, 0.1)[0], trained)
    (advice,) = recommend_for(measured, sign=-1, base=base)
    assert advice.verdict == "unadapted"
    measured, base = add_base(draw_predictions(generator, 0.9)[0], trained)
    (advice,) = recommend_for(measured, sign=-1, base=base)
    assert advice.choice == "lora" and advice.text.endswith("; the unadapted base has 0.925.")


@pytest.mark.parametrize(
    ("correct_counts", "expected"),
    [
        ([60, 60], "; the forgetting of full on the source is 0.200."),
        ([79, 80], "; the forgetting of full on the source is not significant."),
        ([80, 80], "; full has no forgetting on the source."),
        ([99, 99], "; the source score of full is higher by 0.190."),
    ],
)
def test_recommendation_includes_the_forgetting_of_its_choice(correct_counts, expected):
    indices, generator = np.arange(100), np.random.default_rng(9)
    full = make_cells("full", 5, draw_predictions(generator, 0.8)[:2])
    full = [
        replace(one, source=make_sample(indices < count))
        for one, count in zip(full, correct_counts, strict=True)
    ]
    measured = [*make_cells("scratch", 5, draw_predictions(generator, 0.3)[:2]), *full]
    base_source = make_sample(indices < 80)
    (advice,) = recommend_for(measured, base_source=base_source)
    assert advice.choice == "full" and advice.text.endswith(expected)
    assert advice.text.count(". ") == 1  # two sentences
    (for_errors,) = recommend_for(measured, sign=-1, base_source=base_source)
    assert for_errors.choice == "scratch" and "source" not in for_errors.text
