"""The optimizer over the learning parameters, and its learning rate at each step."""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from dtl.config.schema import Optim

if TYPE_CHECKING:
    import torch
    from torch import nn


def make(
    model: nn.Module,
    options: Optim,
    *,
    learning_rate: float,
    device: str,
    rate_factor: Callable[[str], float] = lambda name: 1.0,
) -> torch.optim.Optimizer:
    """AdamW (arXiv:1711.05101), with 8-bit moments (arXiv:2110.02861) if asked for. No weight decay
    on norms and biases, which have one dimension. `rate_factor`: how many times the learning rate
    a parameter of this name has.

    Groups with nothing in them are left out: DeepSpeed fails on them.
    """
    alike: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = (_dimensions(parameter) <= 1, rate_factor(name))
            alike.setdefault(kind, []).append(parameter)
    groups = [
        {
            "params": members,
            "weight_decay": 0.0 if is_vector else options.weight_decay,
            "peak_learning_rate": learning_rate * factor,
        }
        for (is_vector, factor), members in sorted(alike.items(), key=itemgetter(0))
    ]
    settings: dict[str, Any] = {"lr": learning_rate, "betas": options.betas, "eps": options.epsilon}
    if options.name == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit

        eight_bit: torch.optim.Optimizer = AdamW8bit(groups, **settings)
        return eight_bit
    from torch.optim import AdamW

    return AdamW(groups, fused=device == "cuda", **settings)


def _dimensions(parameter: nn.Parameter) -> int:
    """Also of a parameter that ZeRO-3 has partitioned and emptied."""
    return len(getattr(parameter, "ds_shape", parameter.shape))


def schedule(step: int, *, steps: int, options: Optim) -> float:
    """Learning rate of optimizer step `step` (from 1), as a share of its peak.

    It rises over the warm-up, reaches 1 at the step after it, and ends just above 0.
    """
    warmup = round(options.warmup * steps) if options.warmup < 1 else int(options.warmup)
    done = step - 1
    if done < warmup:
        return (done + 1) / (warmup + 1)
    progress = min(1.0, (done - warmup) / max(1, steps - warmup))
    if options.schedule == "linear":
        return 1.0 - progress
    if options.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0
