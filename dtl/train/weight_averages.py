"""Averages of the learning weights: over the steps of a run, and over its checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dtl.train.checkpoint import Learnt, Stored

if TYPE_CHECKING:
    from torch.optim import Optimizer


class MovingAverage:
    """The exponential moving average of the fp32 weights that this rank updates, from their start
    on: a hook after each optimizer step. It stands beside the moments in the optimizer's state, and
    so is sharded, saved and moved as they are.

    `masters`: the weights at their start, each with its group.
    """

    def __init__(self, masters: list[tuple[dict[str, Any], Tensor]], *, decay: float) -> None:
        self.decay = decay
        self.start = {master: master.detach().clone() for _, master in masters}

    @torch.no_grad()
    def __call__(self, optimizer: Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for master in group["params"]:
                if master.grad is None:
                    continue
                start, state = self.start.pop(master, None), optimizer.state[master]
                state.setdefault("average", start).lerp_(master, 1 - self.decay)


class Averaged(Learnt):
    """A checkpoint, with the moving average in place of the weights."""

    def __init__(self, stored: Stored) -> None:
        self.stored = stored

    def __contains__(self, name: str) -> bool:
        return name in self.stored

    def read(self, name: str) -> Tensor:
        kind, _, of = name.partition("/")
        average = f"average/{of}"  # there is none of a weight that has never had a gradient
        return self.stored.read(average if kind == "weight" and average in self.stored else name)


class Mean(Learnt):
    """Several checkpoints, the newest last: the mean of their weights (arXiv:1803.05407), and the
    buffers of the newest."""

    def __init__(self, checkpoints: list[Stored]) -> None:
        self.checkpoints = checkpoints

    def __contains__(self, name: str) -> bool:
        return name in self.checkpoints[-1]

    def read(self, name: str) -> Tensor:
        if not name.startswith("weight/"):
            return self.checkpoints[-1].read(name)
        return torch.stack([each.read(name).double() for each in self.checkpoints]).mean(0).float()
