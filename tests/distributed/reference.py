"""The same training in plain PyTorch: no Accelerate, no DeepSpeed, no dtl."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

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


def optimizers_of(model: nn.Module, rate: float) -> list[Optimizer]:
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
    """`make`: the optimizers at their highest rate. `l2_sp`: the strength of the L2-SP penalty."""

    make: Callable[[nn.Module, float], list[Optimizer]] = adamw
    l2_sp: float = 0.0


ADAMW = Optimized()
OPTIMIZED = {
    "lion": Optimized(lion),
    "adafactor": Optimized(adafactor),
    "muon": Optimized(muon),
    "placed": Optimized(optimizers_of, l2_sp=0.3),
}


def losses(
    folder: Path,
    texts: list[str],
    *,
    phases: list[tuple[str, int]],
    batch: int,
    rate: float,
    clip: float,
    longest: int = 128,
    quantized: bool = False,
    by: Optimized = ADAMW,
    tokens: int | None = None,
    first_adapter: Path | None = None,
) -> tuple[list[float], list[float]]:
    """Loss and gradient norm of each step; `phases`: strategies and their steps, each with its own
    optimizer and cosine schedule; no warm-up, seed 0. `quantized`: the base is in nf4, by
    transformers and bitsandbytes. `tokens`: most that a batch holds, instead of `batch` texts.
    `former`: an adapter whose training continues in the first phase."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    how = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=how if quantized else None
    ).train()
    rows = [(tokenizer(text)["input_ids"] + [tokenizer.eos_token_id])[:longest] for text in texts]
    order, found, norms = [], [], []
    for epoch in range(1 + sum(steps for _, steps in phases) * batch // len(rows)):
        shuffled = np.random.Generator(np.random.Philox(key=[0, epoch])).permutation(len(rows))
        if tokens is None:
            order += [shuffled[at : at + batch] for at in range(0, len(rows), batch)]
        else:
            order += _filled([int(row) for row in shuffled], rows, tokens)
    for strategy, steps in phases:
        model = _adapted(model, strategy, first_adapter if not found else None)
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        start = [parameter.detach().clone() for parameter in learning]
        optimizers = by.make(model, rate)
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        peaks = [group["lr"] for group in groups]
        for step in range(steps):
            for group, peak in zip(groups, peaks, strict=True):
                group["lr"] = peak * 0.5 * (1 + math.cos(math.pi * step / steps))
            total, targets = torch.zeros(()), 0
            for row in order[len(found)]:
                ids = torch.tensor([rows[row]])
                logits = model(input_ids=ids).logits[0, :-1]
                total = total + cross_entropy(logits, ids[0, 1:], reduction="sum")
                targets += ids.shape[1] - 1
            (total / targets).backward()
            norms.append(float(torch.nn.utils.clip_grad_norm_(learning, clip)))
            for optimizer in optimizers:
                if by.l2_sp and optimizer is optimizers[0]:
                    penalty = sum(
                        ((w - w0) ** 2).sum() for w, w0 in zip(learning, start, strict=True)
                    )
                    (by.l2_sp / 2 * penalty).backward()
                optimizer.step()
            model.zero_grad()
            found.append(float(total.detach()) / targets)
        if strategy == "lora" and len(phases) > 1:
            model = model.merge_and_unload()
    return found, norms


def _adapted(model: Any, strategy: str, first_adapter: Path | None) -> Any:
    torch.manual_seed(0)
    if first_adapter is not None:
        from peft import PeftModel

        return PeftModel.from_pretrained(model, first_adapter, is_trainable=True)
    if strategy in ("lora", "dora", "ia3"):
        from peft import IA3Config, LoraConfig, get_peft_model

        if strategy == "ia3":
            settings = IA3Config(task_type="CAUSAL_LM")
        else:
            settings = LoraConfig(
                r=4,
                lora_alpha=8,
                use_dora=strategy == "dora",
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            )
        return get_peft_model(model, settings)
    model.requires_grad_(strategy == "full")
    model.lm_head.requires_grad_(True)
    if strategy == "partial":  # the last block, and what stands above it
        model.model.layers[-1].requires_grad_(True)
        model.model.norm.requires_grad_(True)
    return model


def _filled(shuffled: list[int], rows: list[list[int]], tokens: int) -> list[list[int]]:
    """One after the other into batches, each closed where the next text does not fit."""
    batches: list[list[int]] = [[]]
    for row in shuffled:
        if sum(len(rows[other]) for other in [*batches[-1], row]) > tokens:
            batches.append([])
        batches[-1].append(row)
    return batches
