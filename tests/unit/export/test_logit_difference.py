"""The difference between the logits of two models."""

import torch

from dtl.export.logit_difference import compare_logits

TRAINED = [torch.tensor([[4.0, -8.0]]), torch.tensor([[1.0, 2.0]])]
SAVED = [torch.tensor([[4.5, -8.0]]), torch.tensor([[2.0, 1.75]])]


def compare(actual, tolerance):
    return compare_logits(TRAINED, actual, compared_rows="2 rows", tolerance=tolerance)


def test_difference_is_measured_against_largest_logit():
    difference = compare(SAVED, tolerance=0.125)
    assert (difference.max_difference, difference.max_logit) == (1.0, 8.0)
    assert (difference.argmax_agreement, difference.is_within_tolerance) == (0.5, True)
    assert not compare(SAVED, tolerance=0.12).is_within_tolerance


def test_nan_and_other_shapes_are_never_within_tolerance():
    assert not compare([SAVED[0], SAVED[1] * float("nan")], tolerance=9).is_within_tolerance
    assert not compare([SAVED[0], SAVED[1][:, :1]], tolerance=9).is_within_tolerance
