"""The same training in plain PyTorch: no Accelerate, no DeepSpeed, no dtl."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig


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
) -> tuple[list[float], list[float]]:
    """Loss and gradient norm of each step; `phases`: strategies and their steps, each with its own
    optimizer and cosine schedule; no warm-up, seed 0. `quantized`: the base is in nf4, by
    transformers and bitsandbytes."""
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
        order += [shuffled[at : at + batch] for at in range(0, len(rows), batch)]
    for strategy, steps in phases:
        model = _adapted(model, strategy)
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learning, lr=rate, weight_decay=0.0)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
            total, targets = torch.zeros(()), 0
            for row in order[len(found)]:
                ids = torch.tensor([rows[row]])
                logits = model(input_ids=ids).logits[0, :-1]
                total = total + cross_entropy(logits, ids[0, 1:], reduction="sum")
                targets += ids.shape[1] - 1
            (total / targets).backward()
            norms.append(float(torch.nn.utils.clip_grad_norm_(learning, clip)))
            optimizer.step()
            optimizer.zero_grad()
            found.append(float(total.detach()) / targets)
        if strategy == "lora" and len(phases) > 1:
            model = model.merge_and_unload()
    return found, norms


def _adapted(model: Any, strategy: str) -> Any:
    torch.manual_seed(0)
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
