"""The losses of mixture-of-experts routers, over the global batch of a step on any layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from dtl.losses.router import (
    balance_loss_share,
    count_assignments,
    sequence_balance_sum,
    z_loss_sum,
)
from dtl.models.router_outputs import RouterLossSettings, RouterRecorder, Routing

if TYPE_CHECKING:
    from torch import Tensor

    from dtl.engine.base import Engine

    Routings = list[tuple[int, Routing]]


@dataclass
class RouterLosses:
    """Adds the losses of routers to that of a task.

    How many tokens of the global batch each expert gets must be known before the first backward
    pass. With several micro-batches, a forward pass without gradient counts them first.
    """

    settings: RouterLossSettings
    recorder: RouterRecorder
    engine: Engine
    _counts: dict[int, Tensor] | None = field(default=None, init=False)

    def begin_step(self, weights: list[float], forward: Callable[[int], object]) -> None:
        """Count over the global batch, if a rank has several micro-batches. Every rank must call.

        `weights`: of the micro-batches. `forward(index)`: runs the model on one of them.
        """
        self._counts = None
        if len(weights) == 1:
            return
        counts: dict[int, Tensor] = {}
        for index, weight in enumerate(weights):
            with torch.no_grad(), self.recorder.recording() as routings:
                forward(index)
            for number, count in self._count(routings, weight).items():
                counts[number] = counts[number] + count if number in counts else count
        self._counts = self._sum_over_ranks(counts)

    def loss_share(self, routings: Routings, weight: float) -> Tensor:
        """Return the share of a micro-batch in the weighted losses, (), fp32. Every rank must call.

        The shares of all micro-batches on all ranks add up to the loss of the step.
        """
        counts = self._counts or self._sum_over_ranks(self._count(routings, weight))
        total = torch.zeros((), device=self.engine.device)
        for number, routing in routings:
            total = total + self._share(routing, counts[number])
        return total * weight

    def _share(self, routing: Routing, counts: Tensor) -> Tensor:
        balance, settings = self.settings.balance_coefficient, self.settings
        if not settings.is_per_sequence:
            return balance * balance_loss_share(routing, counts)
        sequences, tokens = counts.float()
        share = balance * sequence_balance_sum(routing) / sequences
        return share + settings.z_coefficient * z_loss_sum(routing) / tokens

    def _count(self, routings: Routings, weight: float) -> dict[int, Tensor]:
        counts: dict[int, Tensor] = {}
        for number, routing in routings:
            count = count_assignments(routing) * weight
            if self.settings.is_per_sequence:
                sequences = torch.full_like(count[-1], len(routing.mask_BT) * weight)
                count = torch.stack([sequences, count[-1]])
            counts[number] = counts[number] + count if number in counts else count
        return counts

    def _sum_over_ranks(self, counts: dict[int, Tensor]) -> dict[int, Tensor]:
        """Return the sums over all ranks, fp64."""
        values = torch.cat([counts[number] for number in sorted(counts)])
        total = torch.tensor(
            self.engine.all_reduce_sum(*values.unbind()),
            dtype=torch.float64,
            device=self.engine.device,
        )
        sizes = [len(counts[number]) for number in sorted(counts)]
        return dict(zip(sorted(counts), total.split(sizes), strict=True))
