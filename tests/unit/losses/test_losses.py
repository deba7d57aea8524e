"""Losses against numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dtl.losses.cross_entropy import CHUNK_POSITIONS, IGNORE_INDEX, token_cross_entropy
from dtl.losses.ctc import ctc_losses, min_frames
from dtl.losses.preference import ipo_losses, odds_ratio_losses, sigmoid_losses


def test_token_cross_entropy_is_the_log_of_the_vocabulary_and_zero_where_ignored() -> None:
    losses = token_cross_entropy(
        torch.zeros(1, 2, 8, dtype=torch.bfloat16), torch.tensor([[3, IGNORE_INDEX]])
    )
    assert losses.dtype == torch.float32
    assert losses[0].tolist() == pytest.approx([math.log(8), 0.0])


class _LargestFp32(TorchDispatchMode):
    """Records the numbers in the largest fp32 tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = result if isinstance(result, tuple | list) else (result,)
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32:
                self.numbers = max(self.numbers, tensor.numel())
        return result


@pytest.mark.parametrize("shape", [(3, 2 * CHUNK_POSITIONS + 5), (2, 7), (1, 1), (2, 0)])
def test_loss_without_gradient_is_computed_in_chunks_and_equal(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(*shape, 13, generator=generator, dtype=torch.bfloat16)
    labels = torch.randint(13, shape, generator=generator)
    labels[:, ::3] = IGNORE_INDEX
    expected = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2).float(), labels, ignore_index=IGNORE_INDEX, reduction="none"
    )
    with torch.no_grad(), _LargestFp32() as largest:
        losses = token_cross_entropy(logits, labels)
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=1e-6)
    assert largest.numbers <= max(CHUNK_POSITIONS * 13, losses.numel())
    with_gradient = token_cross_entropy(logits.requires_grad_(), labels)
    assert torch.equal(with_gradient.detach(), losses), "the same bits as in training"


def test_ctc_counts_every_alignment_of_one_label_over_two_frames() -> None:
    """`a`, `a-` and `-a` of 9 equally likely paths: -log(3 / 9)."""
    losses = ctc_losses(
        torch.zeros(1, 2, 3), torch.tensor([[1, IGNORE_INDEX]]), torch.tensor([2]), blank=0
    )
    assert losses.tolist() == pytest.approx([math.log(3)])


def test_equal_neighbors_need_a_blank_between_them() -> None:
    assert [min_frames(labels) for labels in ([1, 2, 3], [1, 1, 2], [2, 2, 2])] == [3, 4, 5]


def test_sigmoid_loss_of_equal_rewards_is_log_two_with_any_smoothing() -> None:
    for smoothing in (0.0, 0.3):
        losses = sigmoid_losses(torch.zeros(2), label_smoothing=smoothing)
        assert losses.tolist() == pytest.approx([math.log(2)] * 2)


def test_ipo_loss_is_the_squared_distance_from_its_target() -> None:
    losses = ipo_losses(torch.tensor([[3.0, 1.0], [0.0, 1.0]]), tau=0.25)
    assert losses.tolist() == [0.0, 9.0]


def test_odds_ratio_loss_of_known_probabilities() -> None:
    """Odds 3 to 1 against 1 to 4: the ratio is 12, and -log sigmoid(log 12) = log(13 / 12)."""
    losses = odds_ratio_losses(torch.tensor([[0.75, 0.2]]).log())
    assert losses.tolist() == pytest.approx([math.log(13 / 12)], rel=1e-6)


def test_odds_ratio_loss_and_gradient_are_finite_at_the_limits() -> None:
    """A probability of 1 in fp32, and one that underflows."""
    logs = torch.tensor([[0.0, -200.0], [-200.0, 0.0], [-1e-9, -1e-9]], requires_grad=True)
    losses = odds_ratio_losses(logs)
    losses.sum().backward()
    assert torch.isfinite(losses).all() and torch.isfinite(logs.grad).all()
