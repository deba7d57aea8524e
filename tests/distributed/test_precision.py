"""In bf16 what is trained starts from its fp32 value, and gradients are summed in fp32, at any ZeRO
stage."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dtl.train.checkpoint import read_loss_scaler_state
from dtl.train.checkpoint_tensors import CheckpointTensors
from tests import tiny, tiny_vision, tiny_whisper
from tests.distributed.bases import Case, spoken, write_cases
from tests.distributed.covering import cases
from tests.distributed.layouts import zero
from tests.distributed.runs import Run, interrupted, needs

BATCH, OVERFLOW, STEPS = 6, 3, 6
STAGES = (0, 1, 2, 3)


def texts(count: int, *, seed: int) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    labels = ("even", "odd")
    return [{"text": tiny.sentence(draw, 16), "label": labels[n % 2]} for n in range(count)]


CASES = {
    "decoder": Case("{name: causal_lm, max_length: 32}", tiny.decoder, texts),
    "encoder": Case("text_classification", tiny.encoder, texts),
    "whisper": Case("{name: asr_seq2seq, language: en}", tiny_whisper.whisper, spoken),
    "resnet": Case("image_classification", tiny_vision.resnet, tiny_vision.pictures),
}
# What is trained of which base; the positions of Whisper's encoder are frozen in any case.
TRAINED = {
    "full": ("decoder", ("strategy=full",)),
    "partial": ("decoder", ("strategy=partial", "strategy.top=1")),
    "embeddings": ("decoder", ("strategy=lora", "strategy.modules_to_save=[embed_tokens]")),
    "adapter": ("decoder", ("strategy=lora", "strategy.rank=2")),
    "head": ("encoder", ("strategy=lora", "strategy.rank=2")),
    "whisper": ("whisper", ("strategy=full",)),
    "resnet": ("resnet", ("strategy=full",)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with bases whose files are in fp16, and their rows."""
    folder = tmp_path_factory.mktemp("half")
    write_cases(folder, CASES, steps=1, rows=BATCH, held_out=3)
    for base in CASES:
        file = folder / base / "model.safetensors"
        halved = {name: value.half() for name, value in load_file(file).items()}
        save_file(halved, file, metadata={"format": "pt"})
    return folder


def still_run(name: str, stage: int, processes: int = 2) -> Run:
    """Return a run of one step whose rate is 0 in fp32: its checkpoint has the start values."""
    base, strategy = TRAINED[name]
    overrides = (
        *(*strategy, zero(stage), "model.dtype=bf16", "layout.micro_batch=1"),
        # The products of packed examples are rounded to bf16 together.
        *("optim.learning_rate=1e-60", "data.eval=null", "train.packing=false"),
    )
    return Run(f"{name}-{processes}-{stage}", processes, overrides, f"{base}.yaml", bare=False)


def trained_weights(run: Run, bed: Path) -> dict[str, Tensor]:
    """Return the master weights that the checkpoint of a run has."""
    (checkpoint,) = (run.path(bed) / "checkpoints").glob("step-*")
    tensors = CheckpointTensors(checkpoint)
    return {name: tensors.read(f"weight/{name}") for name in tensors.weight_names}


def value_in_file(file: dict[str, Tensor], name: str) -> Tensor | None:
    """Return the value that the weight file has for a parameter; None for a new one."""
    plain = name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
    return file.get(plain, file.get(plain.partition(".")[2]))


START_CASES = cases(tuple(TRAINED), STAGES, strength=1)


@pytest.mark.parametrize(("name", "stage"), START_CASES)
@needs(lambda name, stage: [still_run(name, stage)])
def test_master_weights_start_from_the_exact_values_of_the_file(
    bed: Path, name: str, stage: int
) -> None:
    file = load_file(bed / TRAINED[name][0] / "model.safetensors")
    weights = trained_weights(still_run(name, stage), bed)
    rounded = 0
    for key, value in weights.items():
        assert value.dtype == torch.float32
        if (expected := value_in_file(file, key)) is not None:
            assert torch.equal(value, expected.float()), key
            rounded += not torch.equal(expected.float(), expected.bfloat16().float())
    assert rounded or name in ("adapter", "head"), (
        "bf16 has all values of the file: nothing is proven"
    )


@pytest.mark.parametrize(("name", "stage"), START_CASES)
@needs(lambda name, stage: [still_run(name, 0), still_run(name, stage)])
def test_new_parameters_start_from_the_same_values_at_every_stage(
    bed: Path, name: str, stage: int
) -> None:
    expected = trained_weights(still_run(name, 0), bed)
    found = trained_weights(still_run(name, stage), bed)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize("stage", [1, 2, 3])
@needs(lambda stage: [still_run("full", stage), still_run("full", 2, processes=1)])
def test_gradients_do_not_depend_on_how_micro_batches_are_divided(bed: Path, stage: int) -> None:
    """The gradient of each example is in bf16 on every layout, and their sum in fp32."""
    (expected,) = still_run("full", 2, processes=1).lines(bed)
    (found,) = still_run("full", stage).lines(bed)
    assert found["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=1e-6)


def fp16_run(stage: int) -> Run:
    """Return a run in fp16 whose loss is 50 times as large in one step: a gradient overflows."""
    overrides = ("strategy=full", zero(stage), f"train.steps={STEPS}", "data.eval=null")
    name = f"fp16-{stage}"
    return Run(name, 2, overrides, "decoder.yaml", bare=False, jump=OVERFLOW, fp16=True)


def resumed_fp16_run(stage: int) -> Run:
    """Return the same run, stopped after the overflow and resumed."""
    return interrupted(
        replace(fp16_run(stage), name=f"fp16-{stage}-resumed"), stop_after=OVERFLOW + 1
    )


FP16_STAGES = [0, 2, 3, pytest.param(1, marks=pytest.mark.slow)]


@pytest.mark.parametrize("stage", FP16_STAGES)
@needs(lambda stage: [fp16_run(stage), fp16_run(0)])
def test_fp16_skips_the_step_that_overflows_and_halves_the_loss_scale(
    bed: Path, stage: int
) -> None:
    run = fp16_run(stage)
    lines = run.lines(bed)
    assert [line["step"] for line in lines if not math.isfinite(norm(line))] == [OVERFLOW]
    assert [line["loss"] for line in lines] == pytest.approx(fp16_run(0).losses(bed), rel=5e-3)
    (checkpoint,) = (run.path(bed) / "checkpoints").glob("step-*")
    state = read_loss_scaler_state(checkpoint)
    assert state is not None
    assert (state.scale, state.steps_since_change) == (2**15, STEPS - OVERFLOW)


def norm(line: dict[str, Any]) -> float:
    """Return the gradient norm of a step; it is written as null where it is not finite."""
    return math.nan if line["gradient_norm"] is None else float(line["gradient_norm"])


@pytest.mark.parametrize("stage", FP16_STAGES)
@needs(lambda stage: [fp16_run(stage), resumed_fp16_run(stage)])
def test_a_resumed_fp16_run_continues_with_its_loss_scale(bed: Path, stage: int) -> None:
    run, resumed = fp16_run(stage), resumed_fp16_run(stage)
    assert resumed.losses(bed) == run.losses(bed)
    states = [
        read_loss_scaler_state(max((each.path(bed) / "checkpoints").glob("step-*")))
        for each in (run, resumed)
    ]
    assert states[0] == states[1]
