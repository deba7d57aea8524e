"""The optimizer over the trainable parameters, and its learning rate at each step."""

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
INVERSE_SQRT_STEPS = 10_000  # until the rate has fallen by sqrt(2), where there is no warm-up


def build_optimizer(
    model: nn.Module,
    options: Optim,
    *,
    learning_rate: float,
    new_parameters: frozenset[str],
    rate_factor: Callable[[str], float] = uniform_rate_factor,
    head_learning_rate: float | None = None,
) -> Optimizer:
    """Return the optimizer that the config names.

    `learning_rate`: the peak. `new_parameters`: names, before a strategy was applied, of the
    parameters that the base does not have. `rate_factor`: returns the factor of the learning rate
    for a parameter's name. `head_learning_rate`: the peak of the head, where it is planned.

    Parameters with the same update rule are one group. No group is empty: DeepSpeed fails on those.
    """
    members: dict[UpdateRule, list[nn.Parameter]] = {}
    rules = assign_update_rules(
        model,
        options,
        learning_rate=learning_rate,
        new=new_parameters,
        rate_factor=rate_factor,
        head_learning_rate=head_learning_rate,
    )
    for name, rule in rules.items():
        members.setdefault(rule, []).append(model.get_parameter(name))
    groups = [_make_group(rule, parameters) for rule, parameters in members.items()]
    return _build_from_groups(options, groups)


def _make_group(rule: UpdateRule, parameters: list[nn.Parameter]) -> ParameterGroup:
    return {
        "params": parameters,
        "lr": rule.learning_rate,
        "peak_learning_rate": rule.learning_rate,
        "weight_decay": rule.weight_decay,
        "l2_sp": rule.l2_sp,
        "uses_muon": rule.uses_muon,
    }


def _build_from_groups(options: Optim, groups: list[ParameterGroup]) -> Optimizer:
    """Return AdamW (arXiv:1711.05101), also with 8-bit moments (arXiv:2110.02861), Lion
    (arXiv:2302.06675), Adafactor (arXiv:1804.04235) or Muon (arXiv:2502.16982).

    torch's AdamW is the fused one, on a CPU as well: one kernel for all parameters of a group.
    """
    name = options.name
    betas = options.betas or OPTIMIZERS[name].betas
    adam: dict[str, Any] = {"betas": betas, "eps": options.epsilon}
    if name == "adafactor":
        from transformers import Adafactor

        # The schedule alone sets the rate; torch's Adafactor also makes it depend on the step.
        return Adafactor(groups, scale_parameter=False, relative_step=False)
    if name == "muon":
        matrices = [group for group in groups if group["uses_muon"]]
        others = [group for group in groups if not group["uses_muon"]]
        # Scaled so that AdamW's learning rate fits the matrices too.
        optimizers: list[Optimizer] = [Muon(matrices, adjust_lr_fn="match_rms_adamw")]
        if others:
            optimizers.append(AdamW(others, fused=True, **adam))
        return ChainedOptimizer(optimizers)
    if name == "adamw":
        return AdamW(groups, fused=True, **adam)
    from bitsandbytes import optim as eight_bit

    if name.startswith("lion"):
        lion: Optimizer = eight_bit.Lion(groups, betas=betas, optim_bits=8 if "8" in name else 32)
        return lion
    adamw_class = eight_bit.PagedAdamW8bit if name.startswith("paged") else eight_bit.AdamW8bit
    adamw: Optimizer = adamw_class(groups, **adam)
    return adamw


class ChainedOptimizer(Optimizer):
    """Several optimizers that step as one, with common groups and state."""

    def __init__(self, optimizers: list[Optimizer]) -> None:
        self.optimizers = optimizers
        super().__init__([group for each in optimizers for group in each.param_groups], {})
        for each in optimizers:
            each.state = self.state

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step every optimizer."""
        for each in self.optimizers:
            each.step()


class L2SPPenalty:
    """L2-SP (arXiv:1802.01483): a penalty of alpha / 2 times the squared distance from the start.

    A hook before each optimizer step, which adds its gradient, alpha times the distance, to those
    of the fp32 master weights of this rank. Clipping has seen the gradient of the loss alone.
    """

    def __init__(self, master_weights: list[tuple[ParameterGroup, Tensor]]) -> None:
        self.start_values = {
            weight: weight.detach().clone() for group, weight in master_weights if group["l2_sp"]
        }

    @torch.no_grad()
    def __call__(self, optimizer: Optimizer, *_: Any) -> None:
        """Add the gradient of the penalty."""
        for group in optimizer.param_groups:
            for weight in group["params"]:
                if weight in self.start_values and weight.grad is not None:
                    weight.grad.add_(weight - self.start_values[weight], alpha=group["l2_sp"])


def learning_rate_factor(step: int, *, steps: int, options: Optim) -> float:
    """Return the learning rate of optimizer step `step` (from 1) as a share of its peak.

    It rises during the warm-up, is 1 at the step after it, and ends just above the minimum.
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


DECAY_SHAPES = {  # from 1 at the start of the decay to 0 at its end
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "1-sqrt": lambda progress: 1.0 - math.sqrt(progress),
}
