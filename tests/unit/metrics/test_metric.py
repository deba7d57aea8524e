"""The direction of a metric decides which score is best and which is worst."""

from __future__ import annotations

from dtl.metrics.base import Metric

WER = Metric("wer", higher_is_better=False)
F1 = Metric("f1")


def test_lower_error_is_the_higher_number_to_maximize() -> None:
    assert WER.to_maximize({"wer": 0.1, "f1": 0.9}) > WER.to_maximize({"wer": 0.2, "f1": 0.1})
    assert F1.to_maximize({"wer": 0.1, "f1": 0.9}) > F1.to_maximize({"wer": 0.2, "f1": 0.1})


def test_worst_value_is_the_highest_error_and_the_lowest_f1() -> None:
    assert (WER.worst([0.1, 0.3, 0.2]), F1.worst([0.1, 0.3, 0.2])) == (0.3, 0.1)
    assert (WER.better, F1.better) == ("lower", "higher")
