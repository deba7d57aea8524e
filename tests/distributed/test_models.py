"""What a model needs beyond its task's loss: routers of experts, and rows of added tokens."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import tiny_experts
from tests.distributed import reference
from tests.distributed.layouts import BATCH, CLIP, LORA, RATE, zero
from tests.distributed.runs import Run, needs

STEPS, LONGEST = 4, 64
COEFFICIENT = 0.5
TOKENS = "model.add_tokens=[stone,river,'<call>']"
# Processes, ZeRO stage and micro-batch.
LAYOUTS = [
    (1, 0, BATCH),
    pytest.param((1, 0, 5), marks=pytest.mark.slow),
    (2, 0, 6),
    pytest.param((2, 2, 3), marks=pytest.mark.slow),
    (2, 3, 3),
]


def experts_run(processes: int, stage: int, micro_batch: int) -> Run:
    """Return a run of a mixture of experts whose routers have a loss."""
    return Run(
        f"experts-{processes}-{stage}-{micro_batch}",
        processes,
        (
            "model.path=experts",
            "strategy=full",
            f"train.router_aux_loss_coef={COEFFICIENT}",
            f"train.steps={STEPS}",
            f"layout.micro_batch={micro_batch}",
            zero(stage),
        ),
    )


def tokens_run(processes: int, stage: int) -> Run:
    """Return a run of LoRA with the rows of added tokens, which exports."""
    overrides = (*LORA, TOKENS, f"train.steps={STEPS}", zero(stage), "data.eval=eval.jsonl")
    return Run(f"tokens-{processes}-{stage}", processes, overrides, bare=False)


@pytest.fixture(scope="module", autouse=True)
def base_of_experts(folder: Path) -> None:
    """Write the base of these runs before they are made."""
    if not (folder / "experts").exists():
        tiny_experts.experts(folder / "experts", "mixtral")


def plain_steps(bed: Path) -> list[tuple[float, float]]:
    """Return loss and router loss of each step by transformers, on each global batch at once."""
    model = AutoModelForCausalLM.from_pretrained(bed / "experts").train()
    made = AutoTokenizer.from_pretrained(bed / "experts")
    texts = [json.loads(line)["text"] for line in (bed / "train.jsonl").read_text().splitlines()]
    rows = [torch.tensor([*made(text)["input_ids"], made.eos_token_id][:LONGEST]) for text in texts]
    order = np.random.Generator(np.random.Philox(key=[0, 0])).permutation(len(rows))
    (optimizer,) = reference.adamw(model, RATE)
    found = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        chosen = [rows[number] for number in order[step * BATCH : (step + 1) * BATCH]]
        tokens = pad_sequence(chosen, batch_first=True)
        mask = pad_sequence([torch.ones(len(row)) for row in chosen], batch_first=True).long()
        output = model(input_ids=tokens, attention_mask=mask, output_router_logits=True)
        labels = tokens.masked_fill(mask == 0, -100)[:, 1:]
        router = COEFFICIENT * output.aux_loss
        loss = cross_entropy(output.logits[:, :-1].flatten(0, 1), labels.flatten()) + router
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        found.append((float(loss.detach()), float(router.detach())))
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
@needs(lambda layout: [experts_run(*layout)])
def test_the_loss_of_routers_is_that_of_transformers_on_every_layout(
    bed: Path, layout: tuple[int, int, int]
) -> None:
    """Loss and router loss of each step; several micro-batches share one balance."""
    lines = experts_run(*layout).lines(bed)
    found = [(line["loss"], line["router_loss"]) for line in lines]
    for ours, theirs in zip(found, plain_steps(bed), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


@needs(tokens_run(1, 0), tokens_run(2, 3))
def test_rows_of_added_tokens_are_learned_and_complete_at_stage_3(bed: Path) -> None:
    """Beside LoRA the loss is that of one process, and the export opens in plain PEFT."""
    single, staged = tokens_run(1, 0), tokens_run(2, 3)
    assert staged.losses(bed) == pytest.approx(single.losses(bed), rel=1e-5)
    logits = []
    for run in (single, staged):
        export = run.path(bed) / "export"
        made = AutoTokenizer.from_pretrained(export)
        base = AutoModelForCausalLM.from_pretrained(bed / "base")
        base.resize_token_embeddings(len(made))
        model = PeftModel.from_pretrained(base, export).eval()
        tokens = made("the stone<call> river", return_tensors="pt")["input_ids"]
        assert int(tokens.max()) == len(made) - 1
        with torch.no_grad():
            logits.append(model(input_ids=tokens).logits)
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-4)


@needs(tokens_run(1, 0))
def test_rows_of_added_tokens_move_from_their_start(bed: Path) -> None:
    from safetensors.torch import load_file

    saved = load_file(tokens_run(1, 0).path(bed) / "export" / "adapter_model.safetensors")
    rows = [value for name, value in saved.items() if "trainable_tokens_delta" in name]
    assert len(rows) == 2 and all(each.shape == (3, 32) for each in rows)
    assert all(not torch.allclose(each[0], each[1]) for each in rows)
