"""Paired differences are over common seeds and examples."""

from dataclasses import replace

import numpy as np
import pytest

from dtl.compare.differences import held_out_differences, source_differences
from tests.unit.compare.measured import draw_predictions, make_cells, make_sample


def test_difference_is_over_the_common_seeds():
    generator = np.random.default_rng(5)
    measured = [
        *make_cells("scratch", 5, draw_predictions(generator, 0.3))[:2],
        *make_cells("full", 5, draw_predictions(generator, 0.7)),
    ]
    (pair,) = held_out_differences(measured, sign=1)
    means = [
        np.mean([one.cell.score for one in measured if one.cell.strategy == name][:2])
        for name in ("scratch", "full")
    ]
    assert pair.difference == pytest.approx(means[0] - means[1])


def test_forgetting_is_paired_with_the_base_on_the_same_examples():
    """Of 100 examples the base predicts 80 correctly, full 60 of them, lp-ft all of them or all but
    one. Scratch has no source score."""
    indices = np.arange(100)
    base = make_sample(indices < 80)
    correct_counts = {"scratch": [None] * 2, "full": [60, 60], "lp-ft": [80, 79]}
    measured = [
        replace(one, source=None if count is None else make_sample(indices < count))
        for name, counts in correct_counts.items()
        for one, count in zip(make_cells(name, 5, [np.ones(9)] * 2), counts, strict=True)
    ]
    for sign in (1, -1):
        differences = source_differences(measured, base, sign=sign)
        pairs = {(one.first, one.second): one for one in differences}
        assert list(pairs) == [("full", "lp-ft"), ("unadapted", "full"), ("unadapted", "lp-ft")]
        full, lp_ft = pairs["unadapted", "full"], pairs["unadapted", "lp-ft"]
        assert sign * full.difference == pytest.approx(0.2) and full.is_significant
        assert sign * lp_ft.difference == pytest.approx(0.005) and not lp_ft.is_significant
        assert full.adjusted_p_value == 2 * full.p_value
        assert lp_ft.adjusted_p_value == lp_ft.p_value
        low, high = sorted((sign * full.interval.low, sign * full.interval.high))
        assert 0.1 < low < 0.2 < high < 0.3  # standard error (0.2 * 0.8 / 100)**0.5 = 0.04
    pairs = source_differences(measured, None, sign=1)
    assert [(one.first, one.second) for one in pairs] == [("full", "lp-ft")]
