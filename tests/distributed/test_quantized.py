"""An adapter on a quantized base: one loss on every layout, and resumed bitwise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dtl.inspect.audit import difference
from dtl.run.folder import RunFolder
from tests.distributed import launching, reference
from tests.distributed.matrix import (
    BATCH,
    CLIP,
    LOFTQ_LAYOUTS,
    QUANTIZED_LAYOUTS,
    QUANTIZED_STEPS,
    RATE,
)


def test_the_loss_is_that_of_plain_peft_and_bitsandbytes_on_every_layout(bed: Path) -> None:
    lines = (bed / "train.jsonl").read_text().splitlines()
    losses, norms = reference.losses(
        bed / "base",
        [json.loads(line)["text"] for line in lines],
        phases=[("lora", QUANTIZED_STEPS)],
        batch=BATCH,
        rate=RATE,
        clip=CLIP,
        longest=64,
        quantized=True,
    )
    assert losses[-1] < losses[0] - 0.02, "the reference does not learn"
    plain = launching.train_lines(bed / "runs" / "lora-1-0-1")
    assert losses[0] != pytest.approx(plain[0]["loss"], rel=1e-5), "nothing was rounded"
    for ranks, zero in QUANTIZED_LAYOUTS:
        found = launching.train_lines(bed / "runs" / f"nf4-{ranks}-{zero}")
        assert [line["loss"] for line in found] == pytest.approx(losses, rel=1e-5), (ranks, zero)
        assert [line["gradient_norm"] for line in found] == pytest.approx(norms, rel=1e-4)


def test_eight_bits_give_one_loss_as_well(bed: Path) -> None:
    alone, shared = (
        launching.train_lines(bed / "runs" / f"int8-{name}") for name in ("1-0", "2-2")
    )
    assert [line["loss"] for line in shared] == pytest.approx(
        [line["loss"] for line in alone], rel=1e-5
    )
    assert alone[-1]["loss"] < alone[0]["loss"] - 0.02


def test_loftq_begins_alike_on_every_layout(bed: Path) -> None:
    names = [f"nf4-loftq-{ranks}-{zero}" for ranks, zero in LOFTQ_LAYOUTS]
    alone, shared = ([x["loss"] for x in launching.train_lines(bed / "runs" / n)] for n in names)
    assert shared == pytest.approx(alone, rel=1e-5)
    plain = launching.train_lines(bed / "runs" / "nf4-1-0")
    assert alone[0] != pytest.approx(plain[0]["loss"], rel=1e-5), "nothing was made good"


def test_resumed_bitwise(bed: Path) -> None:
    ranks, zero = QUANTIZED_LAYOUTS[-1]
    stayed, whole = (bed / "runs" / f"nf4{name}-{ranks}-{zero}" for name in ("-stayed", ""))
    assert difference(RunFolder(stayed), RunFolder(whole)) is None
    losses = [[line["loss"] for line in launching.train_lines(run)] for run in (stayed, whole)]
    assert losses[0] == losses[1] and len(losses[0]) == QUANTIZED_STEPS
    files = sorted(file.relative_to(whole) for file in whole.glob("checkpoints/*/part-*"))
    files.append(Path("export/adapter_model.safetensors"))
    assert len(files) == 1 + ranks
    for file in files:
        assert (stayed / file).read_bytes() == (whole / file).read_bytes(), file
