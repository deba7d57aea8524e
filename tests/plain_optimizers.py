"""Optimizers as their papers write them, one tensor at a time: what dtl's are held up to."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class Plain(torch.optim.Optimizer):
    """Decoupled weight decay, then a step along `direction`."""

    def __init__(self, groups: Any, *, lr: float = 0.0, weight_decay: float = 0.0) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    state = self.state[weight]
                    state["t"] = state.get("t", 0) + 1
                    move = self.direction(weight.grad, state, state["t"])
                    weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * move)

    def direction(self, grad: Tensor, state: dict[str, Any], t: int) -> Tensor:
        raise NotImplementedError


class Adam(Plain):
    """arXiv:1711.05101, algorithm 2."""

    def direction(self, grad: Tensor, state: dict[str, Any], t: int) -> Tensor:
        m = state["m"] = 0.9 * state.get("m", 0) + 0.1 * grad
        v = state["v"] = 0.999 * state.get("v", 0) + 0.001 * grad**2
        return (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)


class Lion(Plain):
    """arXiv:2302.06675, algorithm 2."""

    def direction(self, grad: Tensor, state: dict[str, Any], t: int) -> Tensor:
        before = state.get("m", torch.zeros_like(grad))
        state["m"] = 0.99 * before + 0.01 * grad
        return torch.sign(0.9 * before + 0.1 * grad)


class Adafactor(Plain):
    """arXiv:1804.04235, algorithm 4, without first moment, with a rate that is given."""

    def direction(self, grad: Tensor, state: dict[str, Any], t: int) -> Tensor:
        beta, square = 1 - t**-0.8, grad**2 + 1e-30

        def mean(name: str, new: Tensor) -> Tensor:
            state[name] = beta * state.get(name, 0) + (1 - beta) * new
            return state[name]

        if grad.dim() < 2:
            second = mean("v", square)
        else:
            rows, columns = mean("r", square.sum(-1)), mean("c", square.sum(-2))
            second = rows[..., :, None] * columns[..., None, :] / rows.sum(-1)[..., None, None]
        update = grad / second.sqrt()
        return update / max(1.0, float(update.norm()) / math.sqrt(update.numel()))
