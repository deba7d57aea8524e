"""An adapter on a quantized base: one loss on every layout, and resumed bitwise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dtl.inspect.audit import find_data_difference
from dtl.run.folder import RunFolder
from tests.distributed.layouts import LAYOUTS, lora_run, single, zero
from tests.distributed.runs import Run, interrupted, needs
from tests.distributed.test_adapters import plain_peft

QUANTIZED_STEPS = 6


def quantized_run(kind: str, processes: int, stage: int, *more: str, **how: Any) -> Run:
    """Return a LoRA run over a base in 4 or 8 bits."""
    named = how.pop("named", f"{kind}-{processes}-{stage}")
    overrides = (f"train.steps={QUANTIZED_STEPS}", f"model.quantize={kind}", zero(stage))
    return lora_run(named, processes, *overrides, "layout.micro_batch=3", *more, **how)


NF4 = [quantized_run("nf4", *layout) for layout in LAYOUTS]


@needs(*NF4, single("lora"))
def test_the_loss_is_that_of_plain_peft_and_bitsandbytes_on_every_layout(bed: Path) -> None:
    losses, norms = plain_peft(bed, "lora", QUANTIZED_STEPS, quantized=True)
    assert losses[-1] < losses[0] - 0.02, "the reference does not learn"
    first = single("lora").losses(bed)[0]
    assert losses[0] != pytest.approx(first, rel=1e-5), "nothing was rounded"
    for run in NF4:
        assert run.losses(bed) == pytest.approx(losses, rel=1e-5), run.name
        found = [line["gradient_norm"] for line in run.lines(bed)]
        assert found == pytest.approx(norms, rel=1e-4)


INT8 = [quantized_run("int8", 1, 0), quantized_run("int8", 2, 2)]


@needs(*INT8)
def test_int8_gives_one_loss_as_well(bed: Path) -> None:
    one, two = (run.losses(bed) for run in INT8)
    assert two == pytest.approx(one, rel=1e-5)
    assert one[-1] < one[0] - 0.02


LOFTQ = [
    quantized_run("nf4", *layout, "strategy.init=loftq", named=f"loftq-{layout[0]}-{layout[1]}")
    for layout in ((1, 0), (2, 3))
]


@needs(*LOFTQ, NF4[0])
def test_loftq_starts_alike_on_every_layout(bed: Path) -> None:
    one, two = (run.losses(bed) for run in LOFTQ)
    assert two == pytest.approx(one, rel=1e-5)
    plain = NF4[0].losses(bed)
    assert one[0] != plain[0], "no quantization error was restored"


UNDISTURBED = quantized_run("nf4", 2, 3, named="nf4-undisturbed", bare=False)
RESUMED = interrupted(replace(UNDISTURBED, name="nf4-resumed"), stop_after=QUANTIZED_STEPS // 2)


@needs(UNDISTURBED, RESUMED)
def test_resume_is_bitwise_the_undisturbed_run(bed: Path) -> None:
    resumed, undisturbed = RESUMED.path(bed), UNDISTURBED.path(bed)
    assert find_data_difference(RunFolder(resumed), RunFolder(undisturbed)) is None
    assert RESUMED.losses(bed) == UNDISTURBED.losses(bed)
    assert len(RESUMED.losses(bed)) == QUANTIZED_STEPS
    files = sorted(
        file.relative_to(undisturbed) for file in undisturbed.glob("checkpoints/*/part-*")
    )
    files.append(Path("export/adapter_model.safetensors"))
    assert len(files) == 1 + 2
    for file in files:
        assert (resumed / file).read_bytes() == (undisturbed / file).read_bytes(), file
