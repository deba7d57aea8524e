"""The optimizer over the learning parameters, and its learning rate at each step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from dtl.config.schema import Optim

if TYPE_CHECKING:
    import torch
    from torch import nn


def make(
    model: nn.Module, options: Optim, *, learning_rate: float, device: str
) -> torch.optim.Optimizer:
    """AdamW (arXiv:1711.05101), with 8-bit moments (arXiv:2110.02861) if asked for. No weight decay
    on norms and biases, which have one dimension.

    Groups with nothing in them are left out: DeepSpeed fails on them.
    """
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [p for p in learning if _dimensions(p) > 1]
    vectors = [p for p in learning if _dimensions(p) <= 1]
    groups = [
        {"params": members, "weight_decay": decay, "peak_learning_rate": learning_rate}
        for members, decay in ((matrices, options.weight_decay), (vectors, 0.0))
        if members
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
