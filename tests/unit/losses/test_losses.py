"""Losses against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from dtl.losses.cross_entropy import IGNORE_INDEX, token_cross_entropy
from dtl.losses.ctc import ctc_losses, min_frames
from dtl.losses.preference import dpo_losses


def test_token_cross_entropy_is_the_log_of_the_vocabulary_and_zero_where_ignored() -> None:
    losses = token_cross_entropy(
        torch.zeros(1, 2, 8, dtype=torch.bfloat16), torch.tensor([[3, IGNORE_INDEX]])
    )
    assert losses.dtype == torch.float32
    assert losses[0].tolist() == pytest.approx([math.log(8), 0.0])


def test_ctc_counts_every_alignment_of_one_label_over_two_frames() -> None:
    """`a`, `a-` and `-a` of 9 equally likely paths: -log(3 / 9)."""
    losses = ctc_losses(
        torch.zeros(1, 2, 3), torch.tensor([[1, IGNORE_INDEX]]), torch.tensor([2]), blank=0
    )
    assert losses.tolist() == pytest.approx([math.log(3)])


def test_equal_neighbors_need_a_blank_between_them() -> None:
    assert [min_frames(labels) for labels in ([1, 2, 3], [1, 1, 2], [2, 2, 2])] == [3, 4, 5]


def test_dpo_loss_of_equal_rewards_is_log_two_with_any_smoothing() -> None:
    rewards = torch.zeros(2, 2)
    for smoothing in (0.0, 0.3):
        losses = dpo_losses(rewards, label_smoothing=smoothing)
        assert losses.tolist() == pytest.approx([math.log(2)] * 2)
