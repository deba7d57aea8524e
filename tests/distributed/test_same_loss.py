"""The same run gives the same loss on any layout, and the loss of plain PyTorch."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from dtl.core.json_lines import read_lines
from dtl.inspect.audit import audit_run
from dtl.run.folder import RunFolder
from tests.distributed import reference
from tests.distributed.covering import cases
from tests.distributed.layouts import (
    BATCH,
    CLIP,
    HELD_OUT,
    LAYOUTS,
    RATE,
    STAGES,
    STEPS,
    STRATEGIES,
    lora_run,
    matrix_run,
    single,
    zero,
)
from tests.distributed.runs import Run, needs

ACCUMULATION = (1, 2, 4)
EDGE_STAGES = [0, 3, *(pytest.param(stage, marks=pytest.mark.slow) for stage in (1, 2))]
CHECKPOINTING = "layout.activation_checkpointing=true"
CHEAP = (("lora", (2, 3)), ("full", (2, 2)))  # of the packed runs


@pytest.mark.parametrize(
    ("strategy", "processes", "stage", "accumulation"),
    cases(tuple(STRATEGIES), (1, 2), STAGES, ACCUMULATION),
)
@needs(lambda **case: [matrix_run(**case)])
def test_loss_equals_plain_pytorch_on_every_layout(
    bed: Path, strategy: str, processes: int, stage: int, accumulation: int
) -> None:
    losses, norms = plain_pytorch(bed, ((strategy, STEPS),))
    assert losses[-1] < losses[0] - 0.05, "the reference does not learn: nothing is proven"
    assert max(norms) > CLIP, "clipping must matter"
    lines = matrix_run(strategy, processes, stage, accumulation).lines(bed)
    assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-5)
    assert [line["gradient_norm"] for line in lines] == pytest.approx(norms, rel=1e-4)


@cache
def plain_pytorch(
    bed: Path,
    phases: tuple[tuple[str, int], ...],
    *,
    optimizer: str | None = None,
    tokens: int | None = None,
) -> tuple[list[float], list[float]]:
    """Return the losses and gradient norms of a plain loop on one process."""
    lines = (bed / "train.jsonl").read_text().splitlines()
    return reference.losses(
        bed / "base",
        [json.loads(line)["text"] for line in lines],
        phases=list(phases),
        batch=BATCH,
        rate=0.001 if optimizer == "lion" else RATE,
        clip=CLIP,
        longest=64,
        by=reference.ADAMW if optimizer is None else reference.OPTIMIZED[optimizer],
        tokens=tokens,
    )


# Strategies one after the other, with the steps of each.
PHASES = {
    "probe-then-full": (("frozen", 4), ("full", 8)),
    "merge-then-full": (("lora", 5), ("full", 7)),
    "full-then-probe": (("full", 5), ("frozen", 7)),
    "unfreezing": (("frozen", 3), ("partial", 4), ("full", 5)),
}
PHASED_STAGES = (0, 2, 3)
PHASED = cases(tuple(PHASES), PHASED_STAGES, strength=1)


def phased_run(name: str, stage: int, kind: str = "undisturbed") -> Run:
    """Return the run of a list of strategies."""
    options = {"lora": ", rank: 4, alpha: 8", "partial": ", top: 1"}
    listed = [f"{{name: {s}, length: {n}{options.get(s, '')}}}" for s, n in PHASES[name]]
    return Run(
        f"{kind}-{name}-{stage}",
        2,
        (
            f"strategy=[{', '.join(listed)}]",
            *(zero(stage), "layout.micro_batch=3", "train.keep_last=1"),
        ),
        bare=False,
    )


@pytest.mark.parametrize(("name", "stage"), PHASED)
@needs(lambda name, stage: [phased_run(name, stage)])
def test_phases_equal_the_same_phases_in_plain_pytorch(bed: Path, name: str, stage: int) -> None:
    losses, norms = plain_pytorch(bed, PHASES[name])
    lines = phased_run(name, stage).lines(bed)
    assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-5)
    assert [line["gradient_norm"] for line in lines] == pytest.approx(norms, rel=1e-4)


# Strategies that train some parameters of the base: which config.
SELECTED = {"partial": "config.yaml", "norm": "config.yaml", "bitfit": "labeled.yaml"}


def selected_run(strategy: str, processes: int, stage: int, *, checkpointing: bool = False) -> Run:
    """Return the run of such a strategy, at stage 3 perhaps with activation checkpointing."""
    layout = "checkpointed" if checkpointing else str(stage)
    overrides = (f"strategy={strategy}", zero(stage), *[CHECKPOINTING] * checkpointing)
    return Run(f"{strategy}-{processes}-{layout}", processes, overrides, SELECTED[strategy])


def selected_runs(strategy: str, *_: Any) -> list[Run]:
    """Return the run on one process, and those that are compared with it."""
    return [
        selected_run(strategy, 1, 0),
        selected_run(strategy, 2, 2),
        selected_run(strategy, 2, 3),
        selected_run(strategy, 2, 3, checkpointing=True),
    ]


@pytest.mark.parametrize("strategy", SELECTED)
@needs(selected_runs)
def test_selected_parameters_train_alike_at_every_stage(bed: Path, strategy: str) -> None:
    first, *others = [run.losses(bed) for run in selected_runs(strategy)]
    assert first[-1] != first[0]
    if strategy == "partial":
        others.append(plain_pytorch(bed, ((strategy, STEPS),))[0])
    for other in others:
        assert other == pytest.approx(first, rel=1e-5)


def packed_run(strategy: str, processes: int, stage: int) -> Run:
    """Return the run of a strategy on packed micro-batches, some of them with checkpointing."""
    how = STRATEGIES.get(strategy, (f"strategy={strategy}",))
    checkpointing = [CHECKPOINTING] if (processes, stage) in ((2, 3), (1, 0)) else []
    overrides = ("train.packing=true", "layout.micro_batch=2", zero(stage), *how, *checkpointing)
    return Run(f"packed-{strategy}-{processes}-{stage}", processes, overrides)


@pytest.mark.parametrize(
    ("strategy", "layout"),
    [
        pytest.param(
            strategy, layout, marks=() if (strategy, layout) in CHEAP else pytest.mark.slow
        )
        for strategy in ("full", "lora", "partial")
        for layout in LAYOUTS
    ],
)
@needs(lambda strategy, layout: [packed_run(strategy, *layout)])
def test_loss_of_packed_examples_equals_plain_pytorch_on_every_layout(
    bed: Path, strategy: str, layout: tuple[int, int]
) -> None:
    losses, norms = plain_pytorch(bed, ((strategy, STEPS),))
    run = packed_run(strategy, *layout)
    lines = run.lines(bed)
    assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-5)
    assert [line["gradient_norm"] for line in lines] == pytest.approx(norms, rel=1e-4)
    written = RunFolder(run.path(bed)).plan.layout
    assert written.packed_positions == 128  # 2 of the longest, of 64 tokens
    assert written.accumulation_steps > 1
    assert audit_run(RunFolder(run.path(bed))).fault is None


OPTIMIZERS = {
    "lion": ("optim.name=lion", "optim.learning_rate=0.001"),
    "adafactor": ("optim.name=adafactor",),
    "muon": ("optim.name=muon",),
    "placed": (
        *("optim.head_learning_rate=0.02", "optim.layer_decay=0.5"),
        *("optim.l2_sp=0.3", "optim.weight_decay=0.4"),
    ),
}
UNSHARDABLE = ("adafactor", "muon")


def optimizer_run(name: str, processes: int, stage: int) -> Run:
    """Return the run of an optimizer, or of learning rates that differ by layer."""
    overrides = ("strategy=full", *OPTIMIZERS[name], zero(stage), "layout.micro_batch=3")
    return Run(f"optimizer-{name}-{processes}-{stage}", processes, overrides)


@pytest.mark.parametrize(
    ("name", "layout"),
    cases(
        tuple(OPTIMIZERS),
        LAYOUTS,
        strength=1,
        valid=lambda case: case[0] not in UNSHARDABLE or case[1][1] == 0,
    ),
)
@needs(lambda name, layout: [optimizer_run(name, *layout)])
def test_every_optimizer_is_that_of_plain_pytorch(
    bed: Path, name: str, layout: tuple[int, int]
) -> None:
    losses, norms = plain_pytorch(bed, (("full", STEPS),), optimizer=name)
    assert losses[-1] < losses[0] - 0.05
    # Muon orthogonalizes in bf16, which enlarges the effect of the order of sums.
    tolerance = 1e-4 if name == "muon" else 2e-6
    lines = optimizer_run(name, *layout).lines(bed)
    assert [line["loss"] for line in lines] == pytest.approx(losses, rel=tolerance)
    assert [line["gradient_norm"] for line in lines] == pytest.approx(norms, rel=1e-2)


TOKENS, TOKEN_STEPS = 400, 10  # tokens in a global batch; of such an epoch has 6 or 7
BATCHINGS = {
    "tokens": (f"train.global_batch={TOKENS} tokens",),
    "grouped": ("train.group_by_length=true",),
    "both": (f"train.global_batch={TOKENS} tokens", "train.group_by_length=true"),
}
BATCHING_LAYOUTS = ((1, 0, 1), (1, 0, 3), (2, 0, 1), (2, 2, 3))  # processes, stage, micro-batch


def batching_run(name: str, processes: int, stage: int, micro_batch: int, **how: Any) -> Run:
    """Return the run of a way to form global batches."""
    named = how.pop("named", f"batching-{name}-{processes}-{stage}-{micro_batch}")
    layout = (zero(stage), f"layout.micro_batch={micro_batch}")
    overrides = (f"train.steps={TOKEN_STEPS}", *BATCHINGS[name], *layout)
    return Run(named, processes, overrides, **how)


def batching_runs(name: str = "tokens") -> list[Run]:
    """Return the runs of a way to form global batches on every layout."""
    return [batching_run(name, *layout) for layout in BATCHING_LAYOUTS]


@needs(batching_runs)
def test_loss_of_batches_of_tokens_equals_plain_pytorch_on_every_layout(bed: Path) -> None:
    losses, norms = plain_pytorch(bed, (("full", TOKEN_STEPS),), tokens=TOKENS)
    for run in batching_runs():
        lines = run.lines(bed)
        assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-5), run.name
        assert [line["gradient_norm"] for line in lines] == pytest.approx(norms, rel=1e-4)
        assert len({line["examples"] for line in lines}) > 2, "batches of tokens differ in examples"
        assert {line["epoch"] for line in lines} >= {0, 1}
        assert audit_run(RunFolder(run.path(bed))).fault is None
    plans = [RunFolder(run.path(bed)).plan for run in batching_runs()]
    assert len({plan.layout.accumulation_steps for plan in plans}) > 1


@pytest.mark.parametrize("name", ["grouped", "both"])
@needs(lambda name: [*batching_runs(name), batching_runs()[0]])
def test_loss_of_grouped_batches_is_the_same_on_every_layout(bed: Path, name: str) -> None:
    first = batching_runs(name)[0].lines(bed)
    for run in batching_runs(name):
        lines = run.lines(bed)
        for key, tolerance in (("loss", 1e-5), ("gradient_norm", 1e-4)):
            expected = [line[key] for line in first]
            assert [line[key] for line in lines] == pytest.approx(expected, rel=tolerance), run.name
        assert [line["digest"] for line in lines] == [line["digest"] for line in first]
        assert audit_run(RunFolder(run.path(bed))).fault is None
    assert first[0]["digest"] != batching_runs()[0].lines(bed)[0]["digest"]


def checkpointed_run(stage: int) -> Run:
    """Return a LoRA run with activation checkpointing."""
    return lora_run(f"checkpointed-{stage}", 2, zero(stage), CHECKPOINTING)


OFFLOADED = Run("offloaded", 2, ("strategy=full", zero(2), "layout.offload=optimizer"))


@pytest.mark.parametrize("stage", EDGE_STAGES)
@needs(lambda stage: [checkpointed_run(stage), single("lora")])
def test_activation_checkpointing_changes_no_loss(bed: Path, stage: int) -> None:
    expected = single("lora").losses(bed)
    assert checkpointed_run(stage).losses(bed) == pytest.approx(expected, rel=1e-5)


@needs(OFFLOADED, single("full"))
def test_optimizer_offload_changes_no_loss(bed: Path) -> None:
    assert OFFLOADED.losses(bed) == pytest.approx(single("full").losses(bed), rel=1e-5)


def bf16_run(stage: int) -> Run:
    """Return a LoRA run in bf16."""
    return lora_run(f"bf16-{stage}", 2, zero(stage), "model.dtype=bf16")


@pytest.mark.parametrize("stage", EDGE_STAGES)
@needs(lambda stage: [bf16_run(stage), single("lora")])
def test_bf16_is_near_fp32_at_every_stage(bed: Path, stage: int) -> None:
    expected, losses = single("lora").losses(bed), bf16_run(stage).losses(bed)
    assert losses == pytest.approx(expected, rel=2e-3)
    assert losses != expected, "bf16 was not used"


def head_run(processes: int, stage: int) -> Run:
    """Return the run of a head that the base does not have."""
    return Run(f"head-{processes}-{stage}", processes, (zero(stage),), "labeled.yaml")


HEAD_LAYOUTS = cases((1, 2), STAGES, strength=1)


@pytest.mark.parametrize(("processes", "stage"), HEAD_LAYOUTS)
@needs(lambda processes, stage: [head_run(1, 0), head_run(processes, stage)])
def test_a_new_head_starts_and_trains_alike_at_every_stage(
    bed: Path, processes: int, stage: int
) -> None:
    losses = head_run(processes, stage).losses(bed)
    assert losses == pytest.approx(head_run(1, 0).losses(bed), rel=1e-5)


@pytest.mark.parametrize(("processes", "stage"), HEAD_LAYOUTS)
@needs(lambda processes, stage: [head_run(1, 0), head_run(processes, stage)])
def test_counts_of_a_classifier_are_identical_at_every_stage(
    bed: Path, processes: int, stage: int
) -> None:
    expected, found = (
        {key: value for key, value in scores(run.path(bed), "adapted").items() if key != "loss"}
        for run in (head_run(1, 0), head_run(processes, stage))
    )
    assert found == expected
    assert sum(v for key, v in found.items() if key.startswith("confusion/")) == HELD_OUT


@needs(matrix_run("full", 2, 3, 2))
def test_the_last_batch_of_an_epoch_is_short_and_counted(bed: Path) -> None:
    lines = matrix_run("full", 2, 3, 2).lines(bed)
    assert [line["examples"] for line in lines[:5]] == [12, 12, 12, 12, 5]
    rows = (bed / "train.jsonl").read_text().splitlines()
    assert sum(line["examples"] for line in lines[:5]) == len(rows)


def scored_run(processes: int) -> Run:
    """Return a run that scores the unadapted base, which no training has changed."""
    overrides = ("data.eval=eval.jsonl", "train.steps=1", "train.evaluation_batch=4", zero(0))
    return Run(f"scored-{processes}", processes, overrides)


@needs(*(scored_run(processes) for processes in (1, 2, 3)))
def test_scores_are_identical_on_one_two_and_three_processes(bed: Path) -> None:
    folders = [scored_run(processes).path(bed) for processes in (1, 2, 3)]
    found = [scores(folder, "unadapted") for folder in folders]
    assert found[0] == found[1] == found[2]
    records = [read_lines(folder / "evaluations" / "step-00000000.jsonl") for folder in folders]
    assert [record["row"] for record in records[0]] == list(range(HELD_OUT))
    assert records[0] == records[1] == records[2]


def scores(run: Path, model: str) -> dict[str, Any]:
    """Return the newest scores of a model in a run's log."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    found = [line for line in lines if line["kind"] == "eval" and line["model"] == model]
    return {key: value for key, value in found[-1].items() if key != "kind"}
