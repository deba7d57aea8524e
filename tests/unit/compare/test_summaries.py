"""Label efficiency and time to a score, against values computed by hand."""

from dataclasses import replace

import numpy as np
import pytest

from dtl.compare.records import CurvePoint, TimeToScratchScore
from dtl.compare.summaries import summarize_cells
from tests.unit.compare.measured import SEEDS, Task, make_cells


def test_label_efficiency_is_interpolated_on_the_curve_of_scratch():
    """Scratch: 0.2, 0.4, 0.6 with 5, 20, 80 labels. 0.5 is in the middle between 20 and 80."""

    def correct(share):
        return [(np.arange(100) < 100 * share).astype(float)] * SEEDS

    measured = [
        cell
        for labels, scratch, full in ((5, 0.2, 0.5), (20, 0.4, 0.9), (80, 0.6, 0.1))
        for name, share in (("scratch", scratch), ("full", full))
        for cell in make_cells(name, labels, correct(share))
    ]
    summaries = summarize_cells(measured, Task(), sign=1)
    efficiency = {one.labels: one.label_efficiency for one in summaries[1::2]}
    assert efficiency[5].scratch_labels == pytest.approx((20 * 80) ** 0.5)
    assert efficiency[5].bound is None
    assert (efficiency[20].scratch_labels, efficiency[20].bound) == (80, "more than")
    assert (efficiency[80].scratch_labels, efficiency[80].bound) == (5, "at most")


def test_time_to_scratch_score_is_interpolated_on_the_mean_learning_curve():
    """The means of two seeds are 0.3 after 2 s and 0.7 after 4 s; the final score of scratch is
    0.4."""

    def cells_with_curves(strategy, *curves):
        correct = [(np.arange(10) < 10 * curve[-1][2]).astype(float) for curve in curves]
        return [
            replace(one, cell=replace(one.cell, curve=tuple(CurvePoint(*point) for point in curve)))
            for one, curve in zip(make_cells(strategy, 5, correct), curves, strict=True)
        ]

    measured = [
        *cells_with_curves(
            "scratch", [(2.0, 10, 0.1), (4.0, 20, 0.4)], [(2.0, 10, 0.2), (4.0, 20, 0.4)]
        ),
        *cells_with_curves(
            "full", [(1.0, 10, 0.2), (3.0, 20, 0.6)], [(3.0, 10, 0.4), (5.0, 20, 0.8)]
        ),
        *cells_with_curves("frozen", [(1.0, 10, 0.5), (2.0, 20, 0.6)]),
        *cells_with_curves("bitfit", [(1.0, 10, 0.1), (2.0, 20, 0.2)]),
    ]
    summaries = summarize_cells(measured, Task(), sign=1)
    times = {one.strategy: one.time_to_scratch_score for one in summaries}
    assert times["scratch"] is None
    assert times["full"] == TimeToScratchScore(pytest.approx(12.5), pytest.approx(2.5), None)
    assert times["frozen"] == TimeToScratchScore(10, 1.0, "at most")
    assert times["bitfit"] == TimeToScratchScore(20, 2.0, "more than")
