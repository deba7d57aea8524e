"""The same training in plain PyTorch: no Accelerate, no DeepSpeed, no dtl."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.plain_optimizers import Adafactor, Adam, Lion


def adamw(model: nn.Module, rate: float) -> list[Optimizer]:
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [torch.optim.AdamW(learning, lr=rate, weight_decay=0.0)]


def lion(model: nn.Module, rate: float) -> list[Optimizer]:
    return [Lion(model.parameters(), lr=rate)]


def adafactor(model: nn.Module, rate: float) -> list[Optimizer]:
    return [Adafactor(model.parameters(), lr=rate)]


def muon(model: nn.Module, rate: float) -> list[Optimizer]:
    """The linear layers of the blocks by Muon, the rest by AdamW."""
    inner = [each.weight for each in model.model.layers.modules() if isinstance(each, nn.Linear)]
    others = [each for each in model.parameters() if all(each is not weight for weight in inner)]
    matrices = torch.optim.Muon(inner, lr=rate, weight_decay=0, adjust_lr_fn="match_rms_adamw")
    return [matrices, torch.optim.AdamW(others, lr=rate, weight_decay=0.0)]


def placed(model: nn.Module, rate: float) -> list[Optimizer]:
    """Half the rate from block to block, another one for the head; the base is pulled, and so does
    not decay."""
    heights = {"model.embed_tokens": 3, "model.layers.0": 2, "model.layers.1": 1, "model.norm": 0}
    groups = [
        {"params": [*model.get_submodule(name).parameters()], "lr": rate * 0.5**below}
        for name, below in heights.items()
    ]
    return [Adam([*groups, {"params": [model.lm_head.weight], "lr": 0.02}])]


@dataclass(frozen=True)
class Optimized:
    """`make`: the optimizers at their highest rate. `pull`: the strength of L2-SP."""

    make: Callable[[nn.Module, float], list[Optimizer]] = adamw
    pull: float = 0.0


OPTIMIZED = {
    "lion": Optimized(lion),
    "adafactor": Optimized(adafactor),
    "muon": Optimized(muon),
    "placed": Optimized(placed, pull=0.3),
}


def losses(
    folder: Path,
    texts: list[str],
    *,
    strategy: str,
    steps: int,
    batch: int,
    rate: float,
    clip: float,
    longest: int = 128,
    by: Optimized = Optimized(),
) -> tuple[list[float], list[float]]:
    """Loss and gradient norm of each step; cosine schedule, no warm-up, seed 0."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)
    if strategy == "lora":
        from peft import LoraConfig, get_peft_model

        settings = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, settings)
    if strategy == "frozen":
        model.requires_grad_(False)
        model.lm_head.requires_grad_(True)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    start = [parameter.detach().clone() for parameter in learning]
    optimizers = by.make(model, rate)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    peaks = [group["lr"] for group in groups]
    rows = [(tokenizer(text)["input_ids"] + [tokenizer.eos_token_id])[:longest] for text in texts]
    order, found, norms = [], [], []
    for epoch in range(1 + steps * batch // len(rows)):
        shuffled = np.random.Generator(np.random.Philox(key=[0, epoch])).permutation(len(rows))
        order += [shuffled[at : at + batch] for at in range(0, len(rows), batch)]
    for step in range(steps):
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * 0.5 * (1 + math.cos(math.pi * step / steps))
        total, targets = torch.zeros(()), 0
        for row in order[step]:
            ids = torch.tensor([rows[row]])
            logits = model(input_ids=ids).logits[0, :-1]
            total = total + cross_entropy(logits, ids[0, 1:], reduction="sum")
            targets += ids.shape[1] - 1
        (total / targets).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(learning, clip)))
        for optimizer in optimizers:
            penalty = sum(((w - w0) ** 2).sum() for w, w0 in zip(learning, start, strict=True))
            if by.pull and optimizer is optimizers[0]:
                (by.pull / 2 * penalty).backward()
            optimizer.step()
        model.zero_grad()
        found.append(float(total.detach()) / targets)
    return found, norms
