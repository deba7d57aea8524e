"""PEFT's methods give the same loss on every layout, that of a plain loop, and what they export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.distributed import reference
from tests.distributed.layouts import BATCH, CLIP, LORA, RATE, STEPS, lora_run, single, zero
from tests.distributed.runs import Run, needs

# On few layouts; every method at every stage is in test_every_strategy.py.
METHODS = {
    "dora": (*LORA, "strategy.use_dora=true"),
    "ia3": ("strategy=ia3",),
    "loraplus": (*LORA, "strategy.loraplus_lr_ratio=16"),
    "pissa": (*LORA, "strategy.init=pissa"),
    "eva": (*LORA, "strategy.init=eva"),
    "vera": ("strategy=vera", "strategy.rank=8"),
    "prefix_tuning": ("strategy=prefix_tuning", "strategy.num_virtual_tokens=4"),
    "p_tuning": ("strategy=p_tuning", "strategy.num_virtual_tokens=4"),
}
REFERENCED = ("dora", "ia3")  # compared with a plain loop, for all steps
COMPARED = ("dora", "ia3", "loraplus", "pissa", "eva")
UP_TO_STAGE_2 = ("pissa", "eva")
ADAPTER_STEPS = 6


def method_run(method: str, processes: int, stage: int, **how: Any) -> Run:
    """Return the run of a method on a layout."""
    steps = STEPS if method in REFERENCED else ADAPTER_STEPS
    overrides = (*METHODS[method], zero(stage), f"train.steps={steps}")
    return Run(f"{method}-{processes}-{stage}", processes, overrides, **how)


def exported_run(method: str, processes: int, stage: int) -> Run:
    """Return a run that scores and exports."""
    run = method_run(method, processes, stage)
    return Run(
        f"{run.name}-exported", processes, (*run.overrides, "data.eval=eval.jsonl"), bare=False
    )


def layouts(method: str) -> list[Run]:
    """Return the runs of a method on all its layouts, the first on one process."""
    stages = [(1, 0), (2, 2)] if method in UP_TO_STAGE_2 else [(1, 0), (2, 2), (2, 3)]
    return [method_run(method, *layout) for layout in stages]


def plain_peft(bed: Path, method: str, steps: int, **more: Any) -> tuple[list[float], list[float]]:
    """Return the losses and gradient norms of a plain loop over a plain PEFT model."""
    lines = (bed / "train.jsonl").read_text().splitlines()
    return reference.losses(
        bed / "base",
        [json.loads(line)["text"] for line in lines],
        phases=[(method, steps)],
        batch=BATCH,
        rate=RATE,
        clip=CLIP,
        longest=64,
        **more,
    )


@pytest.mark.parametrize("method", REFERENCED)
@needs(layouts)
def test_the_steps_are_those_of_plain_peft(bed: Path, method: str) -> None:
    losses, norms = plain_peft(bed, method, STEPS)
    assert losses[-1] < losses[0], "the reference does not learn: nothing is proven"
    for run in layouts(method):
        assert run.losses(bed) == pytest.approx(losses, rel=1e-5), run.name
        found = [line["gradient_norm"] for line in run.lines(bed)]
        assert found == pytest.approx(norms, rel=1e-3), run.name


@pytest.mark.parametrize("method", COMPARED)
@needs(layouts)
def test_the_loss_is_the_same_at_every_stage(bed: Path, method: str) -> None:
    first, *others = layouts(method)
    expected = first.losses(bed)
    assert len(set(expected)) > 1
    for run in others:
        assert run.losses(bed) == pytest.approx(expected, rel=1e-5), run.name


VERA, VERA_BF16 = (
    method_run("vera", 2, 2),
    Run(
        "vera-bf16",
        2,
        (*METHODS["vera"], zero(2), "model.dtype=bf16", f"train.steps={ADAPTER_STEPS}"),
    ),
)


@needs(VERA, VERA_BF16)
def test_shared_matrices_are_in_half_precision_as_well(bed: Path) -> None:
    assert VERA_BF16.losses(bed) == pytest.approx(VERA.losses(bed), rel=2e-3)
    assert VERA_BF16.losses(bed) != VERA.losses(bed), "bf16 was not used"


EXPORTED = {
    "pissa": exported_run("pissa", 2, 2),
    "vera": exported_run("vera", 2, 3),
    "prefix_tuning": exported_run("prefix_tuning", 2, 3),
    "p_tuning": exported_run("p_tuning", 2, 3),
}


def stacked_run(stage: int) -> Run:
    """Return a LoRA run over a base with an earlier adapter merged into it."""
    below = f"model.adapters=[runs/{EXPORTED['vera'].name}/export]"
    steps = f"train.steps={ADAPTER_STEPS}"
    return lora_run(f"stacked-{stage}", 2, below, zero(stage), steps, before=(EXPORTED["vera"],))


@needs(stacked_run(0), stacked_run(3))
def test_over_an_earlier_adapter_the_loss_is_the_same_at_every_stage(bed: Path) -> None:
    losses = stacked_run(3).losses(bed)
    assert losses == pytest.approx(stacked_run(0).losses(bed), rel=1e-5)
    assert losses[0] < EXPORTED["vera"].losses(bed)[0] - 1e-3, "it starts where that one ended"


FIRST_ADAPTER = lora_run(
    "former-adapter", 2, zero(3), "train.steps=3", "data.eval=eval.jsonl", bare=False
)


def continued_run(stage: int) -> Run:
    """Return a run that continues to train an earlier adapter."""
    further = f"strategy.continue_from=runs/{FIRST_ADAPTER.name}/export"
    overrides = ("strategy=lora", further, zero(stage), f"train.steps={ADAPTER_STEPS}")
    return Run(f"continued-{stage}", 2, overrides, before=(FIRST_ADAPTER,))


@pytest.mark.parametrize("stage", [0, 3, pytest.param(2, marks=pytest.mark.slow)])
@needs(lambda stage: [continued_run(stage), single("lora")])
def test_an_adapter_continues_as_in_plain_peft_at_every_stage(bed: Path, stage: int) -> None:
    first_adapter = FIRST_ADAPTER.path(bed) / "export"
    losses, norms = plain_peft(bed, "lora", ADAPTER_STEPS, first_adapter=first_adapter)
    assert losses[0] < single("lora").losses(bed)[0] - 1e-2, "it starts where that one ended"
    run = continued_run(stage)
    assert run.losses(bed) == pytest.approx(losses, rel=1e-5)
    found = [line["gradient_norm"] for line in run.lines(bed)]
    assert found == pytest.approx(norms, rel=1e-3)


@pytest.mark.parametrize("method", EXPORTED)
@needs(lambda method: [EXPORTED[method]])
def test_what_zero_partitions_is_complete_in_the_export(bed: Path, method: str) -> None:
    """Opened by plain PEFT over the plain base: the losses of the held-out rows as scored."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = EXPORTED[method].path(bed)
    base = AutoModelForCausalLM.from_pretrained(bed / "base")
    model = PeftModel.from_pretrained(base, run / "export").eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "export")
    scored = sorted((run / "evaluations").glob("*.jsonl"))[-1]
    expected = [json.loads(line)["loss"] for line in scored.read_text().splitlines()]
    found = []
    for line in (bed / "eval.jsonl").read_text().splitlines():
        ids = (tokenizer(json.loads(line)["text"])["input_ids"] + [tokenizer.eos_token_id])[:64]
        tokens = torch.tensor([ids])
        with torch.no_grad():
            logits = model(input_ids=tokens).logits[0, -len(ids) : -1]
        found.append(float(cross_entropy(logits, tokens[0, 1:], reduction="sum")))
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
