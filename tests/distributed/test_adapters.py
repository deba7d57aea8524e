"""PEFT's methods give the same loss on every layout, that of a plain loop, and what they export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.distributed import launching, reference
from tests.distributed.matrix import (
    ADAPTER_EXPORTS,
    ADAPTER_RUNS,
    ADAPTER_STEPS,
    BATCH,
    CLIP,
    CONTINUED_STAGES,
    FORMER,
    PARITY,
    RATE,
    STEPS,
    WAYS,
)

LAYOUTS = {
    way: [f"{way}-{ranks}-{zero}" for name, ranks, zero in ADAPTER_RUNS if name == way]
    for way in WAYS
}


@pytest.mark.parametrize("method", PARITY)
def test_twenty_steps_are_those_of_plain_peft(bed: Path, method: str) -> None:
    lines = (bed / "train.jsonl").read_text().splitlines()
    losses, norms = reference.losses(
        bed / "base",
        [json.loads(line)["text"] for line in lines],
        phases=[(method, STEPS)],
        batch=BATCH,
        rate=RATE,
        clip=CLIP,
        longest=64,
    )
    assert losses[-1] < losses[0], "the reference does not learn: the bed proves nothing"
    for run in LAYOUTS[method]:
        found = launching.train_lines(bed / "runs" / run)
        assert [line["loss"] for line in found] == pytest.approx(losses, rel=1e-5), run
        assert [line["gradient_norm"] for line in found] == pytest.approx(norms, rel=1e-3), run


@pytest.mark.parametrize("method", WAYS)
def test_the_loss_is_the_same_at_every_stage(bed: Path, method: str) -> None:
    alone, *others = [
        [line["loss"] for line in launching.train_lines(bed / "runs" / run)]
        for run in LAYOUTS[method]
    ]
    assert len(set(alone)) > 1
    for found, run in zip(others, LAYOUTS[method][1:], strict=True):
        assert found == pytest.approx(alone, rel=1e-5), run


def test_shared_matrices_are_in_half_precision_as_well(bed: Path) -> None:
    plain, half = (
        [line["loss"] for line in launching.train_lines(bed / "runs" / run)]
        for run in ("vera-2-2", "vera-half")
    )
    assert half == pytest.approx(plain, rel=2e-3)
    assert half != plain, "bf16 was not used"


def test_over_an_earlier_adapter_the_loss_is_the_same_at_every_stage(bed: Path) -> None:
    found = {
        run: [line["loss"] for line in launching.train_lines(bed / "runs" / run)]
        for run in ("stacked-0", "stacked-3", "vera-2-3")
    }
    assert found["stacked-3"] == pytest.approx(found["stacked-0"], rel=1e-5)
    assert found["stacked-3"][0] < found["vera-2-3"][0] - 1e-3, "it goes on where that one ended"


def test_an_adapter_goes_on_as_in_plain_peft_at_every_stage(bed: Path) -> None:
    lines = (bed / "train.jsonl").read_text().splitlines()
    losses, norms = reference.losses(
        bed / "base",
        [json.loads(line)["text"] for line in lines],
        phases=[("lora", ADAPTER_STEPS)],
        batch=BATCH,
        rate=RATE,
        clip=CLIP,
        longest=64,
        former=bed / FORMER,
    )
    fresh = launching.train_lines(bed / "runs" / "lora-1-0-1")
    assert losses[0] < fresh[0]["loss"] - 1e-2, "it goes on where it ended"
    for zero in CONTINUED_STAGES:
        found = launching.train_lines(bed / "runs" / f"continued-{zero}")
        assert [line["loss"] for line in found] == pytest.approx(losses, rel=1e-5), zero
        assert [line["gradient_norm"] for line in found] == pytest.approx(norms, rel=1e-3), zero


@pytest.mark.parametrize("run", ADAPTER_EXPORTS)
def test_what_zero_has_shared_out_is_whole_in_the_export(bed: Path, run: str) -> None:
    """Opened by plain PEFT over the plain base: the losses of the held-out rows as scored."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export = bed / "runs" / run / "export"
    base = AutoModelForCausalLM.from_pretrained(bed / "base")
    model = PeftModel.from_pretrained(base, export).eval()
    tokenizer = AutoTokenizer.from_pretrained(export)
    scored = sorted((bed / "runs" / run / "evaluations").glob("*.jsonl"))[-1]
    expected = [json.loads(line)["loss"] for line in scored.read_text().splitlines()]
    found = []
    for line in (bed / "eval.jsonl").read_text().splitlines():
        ids = (tokenizer(json.loads(line)["text"])["input_ids"] + [tokenizer.eos_token_id])[:64]
        tokens = torch.tensor([ids])
        with torch.no_grad():
            logits = model(input_ids=tokens).logits[0, -len(ids) : -1]
        found.append(float(cross_entropy(logits, tokens[0, 1:], reduction="sum")))
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
