"""The optimizer over the learning parameters, and its learning rate at each step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer

from dtl.config.optimizers import OPTIMIZERS
from dtl.config.schema.optim import Optim
from dtl.plan.parameter_groups import UpdateRule, assign_update_rules, uniform_rate_factor

if TYPE_CHECKING:
    from torch import nn

ParameterGroup = dict[str, Any]
INVERSE_SQRT_STEPS = 10_000  # after which the rate has fallen by root 2, without a warm-up


def build_optimizer(
    model: nn.Module,
    options: Optim,
    *,
    learning_rate: float,
    new: frozenset[str],
    device: str,
    rate_factor: Callable[[str], float] = uniform_rate_factor,
) -> Optimizer:
    """The optimizer that the config names. `new`: names of the parameters that the base did not
    bring, before a strategy was applied. `rate_factor`: how many times the learning rate a
    parameter of this name has.

    Parameters that are updated alike are one group; none is empty, as DeepSpeed fails on those.
    """
    members: dict[UpdateRule, list[nn.Parameter]] = {}
    how = assign_update_rules(
        model, options, learning_rate=learning_rate, new=new, rate_factor=rate_factor
    )
    for name, update in how.items():
        members.setdefault(update, []).append(model.get_parameter(name))
    return _build_from_groups(
        options, [_group(update, members[update]) for update in members], device
    )


def _group(update: UpdateRule, parameters: list[nn.Parameter]) -> ParameterGroup:
    return {
        "params": parameters,
        "lr": update.learning_rate,
        "peak_learning_rate": update.learning_rate,
        "weight_decay": update.weight_decay,
        "pull": update.l2_sp,
        "as_matrix": update.uses_muon,
    }


def _build_from_groups(options: Optim, groups: list[ParameterGroup], device: str) -> Optimizer:
    """AdamW (arXiv:1711.05101), with 8-bit moments (arXiv:2110.02861), Lion (arXiv:2302.06675),
    Adafactor (arXiv:1804.04235) or Muon (arXiv:2502.16982)."""
    name = options.name
    betas = options.betas or OPTIMIZERS[name].betas
    adam: dict[str, Any] = {"betas": betas, "eps": options.epsilon}
    if name == "adafactor":
        from transformers import Adafactor

        # By the schedule alone: torch's own and the paper's rate depend on the step as well.
        return Adafactor(groups, scale_parameter=False, relative_step=False)
    if name == "muon":
        matrices = [group for group in groups if group["as_matrix"]]
        others = [group for group in groups if not group["as_matrix"]]
        # Scaled so that AdamW's learning rate fits the matrices too.
        parts: list[Optimizer] = [Muon(matrices, adjust_lr_fn="match_rms_adamw")]
        return ChainedOptimizer(
            parts + [AdamW(others, fused=device == "cuda", **adam)] * bool(others)
        )
    if name == "adamw":
        return AdamW(groups, fused=device == "cuda", **adam)
    from bitsandbytes import optim as eight_bit

    if name.startswith("lion"):
        lion: Optimizer = eight_bit.Lion(groups, betas=betas, optim_bits=8 if "8" in name else 32)
        return lion
    kind = eight_bit.PagedAdamW8bit if name.startswith("paged") else eight_bit.AdamW8bit
    made: Optimizer = kind(groups, **adam)
    return made


class ChainedOptimizer(Optimizer):
    """Several optimizers that step as one, over the same groups and states."""

    def __init__(self, parts: list[Optimizer]) -> None:
        self.optimizers = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        for part in parts:
            part.state = self.state

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for part in self.optimizers:
            part.step()


class L2SPPenalty:
    """L2-SP (arXiv:1802.01483): a penalty of alpha / 2 times the squared distance from the start.

    Its gradient, alpha times the distance, is added to what the optimizer sees, once a step, to the
    fp32 weights that this rank updates. The gradient of the loss alone is what was clipped.
    """

    def __init__(self, masters: list[tuple[ParameterGroup, Tensor]]) -> None:
        self.start_values = {
            master: master.detach().clone() for group, master in masters if group["pull"]
        }

    @torch.no_grad()
    def __call__(self, optimizer: Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for master in group["params"]:
                if master in self.start_values and master.grad is not None:
                    master.grad.add_(master - self.start_values[master], alpha=group["pull"])


def learning_rate_factor(step: int, *, steps: int, options: Optim) -> float:
    """Learning rate of optimizer step `step` (from 1), as a share of its peak.

    It rises over the warm-up, reaches 1 at the step after it, and ends just above the minimum.
    """
    warmup = options.to_steps(options.warmup, total_steps=steps)
    done = step - 1
    if done < warmup:
        return (done + 1) / (warmup + 1)
    if options.schedule == "inverse_sqrt":
        scale = warmup or INVERSE_SQRT_STEPS
        return max(options.min_lr_ratio, math.sqrt(scale / (scale + done - warmup)))
    falls = (
        options.to_steps(options.decay, total_steps=steps) if options.schedule == "wsd" else steps
    )
    stable = max(warmup, steps - falls)
    progress = min(1.0, max(0, done - stable) / max(1, steps - stable))
    shape = options.decay_type if options.schedule == "wsd" else options.schedule
    return options.min_lr_ratio + (1 - options.min_lr_ratio) * DECAY_SHAPES[shape](progress)


DECAY_SHAPES = {  # from 1 at the start of the fall to 0 at its end
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "1-sqrt": lambda progress: 1.0 - math.sqrt(progress),
}
