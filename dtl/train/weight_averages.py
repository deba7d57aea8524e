"""Averages of the trainable weights: over the steps of a run, and over its checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dtl.engine.optimizer_state import WEIGHT_AVERAGE
from dtl.train.checkpoint_tensors import CheckpointTensors, WeightSource

if TYPE_CHECKING:
    from torch.optim import Optimizer


class MovingAverageHook:
    """The exponential moving average of the fp32 master weights of this rank, from their start
    values on: a hook after each optimizer step. It is part of the optimizer's state, and so is
    sharded, saved and restored with it.

    `master_weights`: the weights at their start values, each with its group.
    """

    def __init__(
        self, master_weights: list[tuple[dict[str, Any], Tensor]], *, decay: float
    ) -> None:
        self.decay = decay
        self.start_values = {weight: weight.detach().clone() for _, weight in master_weights}

    @torch.no_grad()
    def __call__(self, optimizer: Optimizer, *_: Any) -> None:
        """Update the average of every weight that has a gradient."""
        for group in optimizer.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                start, state = self.start_values.pop(weight, None), optimizer.state[weight]
                state.setdefault(WEIGHT_AVERAGE, start).lerp_(weight, 1 - self.decay)


class MovingAverageWeights(WeightSource):
    """A checkpoint, with the moving average in place of the weights."""

    def __init__(self, checkpoint: CheckpointTensors) -> None:
        self.checkpoint = checkpoint

    def __contains__(self, name: str) -> bool:
        return name in self.checkpoint

    def read(self, name: str) -> Tensor:
        """Return a tensor; the weight itself where it never had a gradient and has no average."""
        kind, _, parameter = name.partition("/")
        average = f"{WEIGHT_AVERAGE}/{parameter}"
        has_average = kind == "weight" and average in self.checkpoint
        return self.checkpoint.read(average if has_average else name)


class MeanWeights(WeightSource):
    """Several checkpoints, the newest last: the mean of their weights (arXiv:1803.05407), and the
    buffers of the newest."""

    def __init__(self, checkpoints: list[CheckpointTensors]) -> None:
        self.checkpoints = checkpoints

    def __contains__(self, name: str) -> bool:
        return name in self.checkpoints[-1]

    def read(self, name: str) -> Tensor:
        """Return a tensor; weights are averaged in fp64 and returned in fp32."""
        if not name.startswith("weight/"):
            return self.checkpoints[-1].read(name)
        return torch.stack([each.read(name).double() for each in self.checkpoints]).mean(0).float()
