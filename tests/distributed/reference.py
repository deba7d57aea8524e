"""The same training in plain PyTorch: no Accelerate, no DeepSpeed, no dtl."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer


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
    tokens: int | None = None,
) -> tuple[list[float], list[float]]:
    """Loss and gradient norm of each step; cosine schedule, no warm-up, seed 0. `tokens`: most that
    a batch holds, instead of `batch` texts."""
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
    optimizer = torch.optim.AdamW(learning, lr=rate, weight_decay=0.0)
    rows = [(tokenizer(text)["input_ids"] + [tokenizer.eos_token_id])[:longest] for text in texts]
    order, found, norms = [], [], []
    for epoch in range(1 + steps * batch // len(rows)):
        shuffled = np.random.Generator(np.random.Philox(key=[0, epoch])).permutation(len(rows))
        if tokens is None:
            order += [shuffled[at : at + batch] for at in range(0, len(rows), batch)]
        else:
            order += _filled([int(row) for row in shuffled], rows, tokens)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        total, targets = torch.zeros(()), 0
        for row in order[step]:
            ids = torch.tensor([rows[row]])
            logits = model(input_ids=ids).logits[0, :-1]
            total = total + cross_entropy(logits, ids[0, 1:], reduction="sum")
            targets += ids.shape[1] - 1
        (total / targets).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(learning, clip)))
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(total.detach()) / targets)
    return found, norms


def _filled(shuffled: list[int], rows: list[list[int]], tokens: int) -> list[list[int]]:
    """One after the other into batches, each closed where the next text does not fit."""
    batches: list[list[int]] = [[]]
    for row in shuffled:
        if sum(len(rows[other]) for other in [*batches[-1], row]) > tokens:
            batches.append([])
        batches[-1].append(row)
    return batches
