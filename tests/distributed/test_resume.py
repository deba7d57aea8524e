"""A run resumes where it stopped: on another layout to rounding, on the same one bitwise."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dtl.inspect.audit import audit_run, find_data_difference
from dtl.run.folder import RunFolder
from tests.distributed.covering import cases
from tests.distributed.layouts import STAGES, STEPS, STRATEGIES, matrix_run, single, zero
from tests.distributed.runs import Run, interrupted, needs
from tests.distributed.test_same_loss import (
    EDGE_STAGES,
    OPTIMIZERS,
    PHASED_STAGES,
    PHASES,
    TOKEN_STEPS,
    batching_run,
    phased_run,
)

MOVES = ((1, 2), (2, 3), (3, 1))  # processes on which a run is stopped, and resumed


def moved_run(strategy: str, move: tuple[int, int], stage: int) -> Run:
    """Return a run that is stopped half-way and resumed on another number of processes, at another
    stage."""
    before, after = move
    named = f"moved-{before}-{strategy}-{stage}"
    layouts = [(before, stage, 3), (after, (stage + 2) % 4, 2)]
    first, second = (
        Run(
            named,
            processes,
            (*STRATEGIES[strategy], zero(at), f"layout.micro_batch={micro_batch}"),
            bare=False,
        )
        for processes, at, micro_batch in layouts
    )
    return replace(second, before=(replace(first, stop_after=STEPS // 2),))


@pytest.mark.parametrize(("strategy", "move", "stage"), cases(tuple(STRATEGIES), MOVES, STAGES))
@needs(lambda strategy, move, stage: [moved_run(strategy, move, stage), single(strategy)])
def test_loss_after_a_move_to_other_processes_and_another_stage_is_the_same(
    bed: Path, strategy: str, move: tuple[int, int], stage: int
) -> None:
    run = moved_run(strategy, move, stage)
    folder = RunFolder(run.path(bed))
    layout = folder.plan.layout
    assert (layout.world_size, layout.zero_stage) == (move[1], (stage + 2) % 4)
    assert [line["step"] for line in run.lines(bed)] == list(range(1, STEPS + 1))
    assert run.losses(bed) == pytest.approx(single(strategy).losses(bed), rel=1e-5)
    assert audit_run(folder).fault is None


# What is saved in other ways than AdamW's moments: optimizer, ZeRO stage, more.
SAVED = {
    "8bit": ("optim.name=adamw_8bit", zero(0)),
    **{f"bf16-{stage}": (zero(stage), "model.dtype=bf16") for stage in STAGES},
    "adafactor": ("optim.name=adafactor", zero(0)),
    "muon": ("optim.name=muon", zero(0)),
    "lion": (
        *OPTIMIZERS["lion"],
        *(zero(3), "optim.l2_sp=0.3", "train.ema_decay=0.9", "train.export=ema"),
    ),
    "average": (
        *("optim.l2_sp=0.3", zero(2), "train.ema_decay=0.7", "train.average_checkpoints=2"),
        *("train.save_every=4", "data.eval=eval.jsonl"),
    ),
}
SLOW = ("1", "2", "bf16-1", "bf16-2")


def undisturbed(name: str) -> Run:
    """Return a run that nothing interrupts."""
    if name in SAVED:
        return Run(f"undisturbed-{name}", 2, ("strategy=full", *SAVED[name]), bare=False)
    if name == "batches":
        return batching_run("both", 2, 2, 1, named="undisturbed-batches", bare=False)
    if name.isdigit():
        overrides = matrix_run("lora", 2, int(name), 2).overrides
        return Run(f"undisturbed-{name}", 2, overrides, bare=False)
    phases, _, stage = name.rpartition("-")
    return phased_run(phases, int(stage))


def resumed(name: str) -> Run:
    """Return the same run, stopped and resumed on the same layout; phases within the last one."""
    run = undisturbed(name)
    step = TOKEN_STEPS - 2 if name == "batches" else STEPS // 2
    if name not in SAVED and "-" in name:
        step = STEPS - 3
    return interrupted(replace(run, name=f"resumed-{name}"), stop_after=step)


PHASED = [
    pytest.param(f"{phases}-{stage}", marks=parameters.marks)
    for parameters in cases(tuple(PHASES), PHASED_STAGES, strength=1)
    for phases, stage in [parameters.values]
]


@pytest.mark.parametrize(
    "name",
    [
        *(
            pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW))
            for name in (*map(str, STAGES), *SAVED, "batches")
        ),
        *PHASED,
    ],
)
@needs(lambda name: [undisturbed(name), resumed(name)])
def test_resume_on_the_same_layout_is_bitwise_the_undisturbed_run(bed: Path, name: str) -> None:
    runs = [run.path(bed) for run in (resumed(name), undisturbed(name))]
    keys = ("loss", "gradient_norm", "learning_rate", "digest", "targets")
    lines = [
        [[line[key] for key in keys] for line in run.lines(bed)]
        for run in (resumed(name), undisturbed(name))
    ]
    assert lines[0] == lines[1]
    assert hashes(runs[0]) == hashes(runs[1]), "weights, moments and progress"
    assert find_data_difference(RunFolder(runs[0]), RunFolder(runs[1])) is None


def hashes(run: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of the last checkpoint."""
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    assert newest.name == f"step-{RunFolder(run).plan.steps:08d}"
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in newest.iterdir()}


def nan_run(stage: int) -> Run:
    """Return a run in which the loss of two steps is NaN on one rank only."""
    return Run(f"nan-{stage}", 2, ("strategy=full", zero(stage)), poison=(4, 5))


@pytest.mark.parametrize("stage", EDGE_STAGES)
@needs(lambda stage: [nan_run(stage), nan_run(0), single("full")])
def test_a_step_that_is_not_finite_is_skipped_by_all_ranks_and_logged(
    bed: Path, stage: int
) -> None:
    run = nan_run(stage).path(bed)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    skipped = [line for line in lines if line["kind"] == "skip"]
    assert [line["step"] for line in skipped] == [4, 5]
    assert all(len(line["examples"]) == 12 for line in skipped[:1])
    trained = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in trained if line["loss"] is None] == [4, 5]
    clean = single("full").losses(bed)
    assert [line["loss"] for line in trained[:3]] == pytest.approx(clean[:3], rel=1e-5)
    assert trained[-1]["loss"] < trained[0]["loss"] - 0.5, "training goes on"
    same = nan_run(0).lines(bed)
    finite = [index for index, line in enumerate(same) if line["loss"] is not None]
    assert [trained[index]["loss"] for index in finite] == pytest.approx(
        [same[index]["loss"] for index in finite], rel=1e-5
    )


@needs(undisturbed("8bit"), matrix_run("full", 2, 0, 2))
def test_8_bit_moments_train_like_32_bit_moments_and_are_saved_as_they_are(bed: Path) -> None:
    from safetensors.torch import load_file

    eight, full = undisturbed("8bit"), matrix_run("full", 2, 0, 2)
    assert eight.losses(bed) == pytest.approx(full.losses(bed), rel=0.02)
    assert eight.losses(bed) != full.losses(bed)
    stored = {}
    for part in (eight.path(bed) / "checkpoints" / f"step-{STEPS:08d}").glob("part-*"):
        stored |= load_file(part)
    large, small = "model.embed_tokens.weight", "model.norm.weight"
    assert str(stored[f"state1/{large}"].dtype) == "torch.uint8"
    assert stored[f"absmax2/{large}"].numel() == stored[f"weight/{large}"].numel() / 256
    assert str(stored[f"state1/{small}"].dtype) == "torch.float32"


JUMP, ROLLBACK = 31, 6  # the step whose loss jumps, and how many steps the run goes back
SKIPPED = tuple(range(JUMP - ROLLBACK + 1, JUMP + 1))


def spike_run(name: str, stage: int, **how: Any) -> Run:
    """Return a run that watches for loss spikes."""
    overrides = (
        *("strategy=full", zero(stage), f"train.steps={JUMP + 10}", "train.save_every=4"),
        f"train.loss_spike={{threshold: 20, window_steps: 30, rollback_steps: {ROLLBACK}}}",
    )
    return Run(f"{name}-{stage}", 2, overrides, bare=False, **how)


def jumped(stage: int) -> Run:
    """Return the run whose loss jumps in one step."""
    return spike_run("jumped", stage, jump=JUMP)


def spared(stage: int) -> Run:
    """Return the run that skips those batches from its start."""
    return spike_run("spared", stage, skip_steps=SKIPPED)


@pytest.mark.parametrize("stage", EDGE_STAGES)
@needs(lambda stage: [jumped(stage), spared(stage)])
def test_after_a_loss_spike_the_run_is_bitwise_one_that_skipped_those_batches(
    bed: Path, stage: int
) -> None:
    with_jump, without = (RunFolder(run(stage).path(bed)) for run in (jumped, spared))
    (spike,) = with_jump.spikes
    assert (spike["step"], len(spike["examples"])) == (JUMP, 12)
    assert spike["skipped_steps"] == list(SKIPPED)
    assert spike["back_to"] <= JUMP - ROLLBACK
    assert spike["score"] > 20
    lines = [run(stage).lines(bed) for run in (jumped, spared)]
    assert [line["step"] for line in lines[0]] == list(range(1, JUMP + 11))
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]], "bitwise"
    assert [line["step"] for line in lines[0] if line["loss"] is None] == spike["skipped_steps"]
    skipped = [line["step"] for line in with_jump.read_metrics() if line["kind"] == "skip"]
    assert skipped == spike["skipped_steps"]
    newest = [sorted(run.checkpoints.glob("step-*"))[-1] for run in (with_jump, without)]
    parts = [sorted(path.glob("part-*")) for path in newest]
    assert [p.read_bytes() for p in parts[0]] == [p.read_bytes() for p in parts[1]]
    assert audit_run(with_jump).fault is None


EXPORT_MOMENTS = ("export, gathering", "export, writing", "export, renaming")


def stopped_run(name: str, *stops: dict[str, Any]) -> Run:
    """Return a run that is stopped so often and resumed each time. What it learns makes the
    held-out text less likely, so the best step is not the last one."""
    overrides = (
        *("strategy=lora", "strategy.rank=4", "strategy.target_modules=[q_proj,lm_head]", zero(2)),
        *("optim.learning_rate=0.03", "optim.schedule=constant"),
        *("data.eval=numbers.jsonl", "train.steps=8", "train.evaluate_every=2"),
        *("train.export=best", "train.evaluation_batch=16", "train.keep_last=1"),
    )
    run = Run(f"stop-{name}", 2, overrides, bare=False)
    before: tuple[Run, ...] = ()
    for stop in stops:
        before = (replace(run, before=before, **stop),)
    return replace(run, before=before)


NEVER_STOPPED = stopped_run("never")
STOPPED = {
    "unadapted": stopped_run("unadapted", {"stop_at": "evaluation, batch 2"}),
    "evaluation": stopped_run("evaluation", {"stop_after": 4}, {"stop_at": "evaluation, batch 2"}),
    "export": stopped_run("export", *({"stop_at": moment} for moment in EXPORT_MOMENTS)),
}


@pytest.mark.parametrize("moment", STOPPED)
@needs(lambda moment: [STOPPED[moment], NEVER_STOPPED])
def test_a_run_stopped_within_an_evaluation_or_the_export_ends_like_the_undisturbed_run(
    bed: Path, moment: str
) -> None:
    stopped, undisturbed = (RunFolder(run.path(bed)) for run in (STOPPED[moment], NEVER_STOPPED))
    times = ("seconds", "tokens_per_second", "memory_bytes")
    lines = [
        [
            {key: value for key, value in line.items() if key not in times}
            for line in run.read_metrics()
            if line["kind"] in ("train", "eval")
        ]
        for run in (stopped, undisturbed)
    ]
    assert lines[0] == lines[1]
    assert {**stopped.result, "export": None} == {**undisturbed.result, "export": None}
    exports = [
        {file.name: file.read_bytes() for file in sorted(run.export.iterdir())}
        for run in (stopped, undisturbed)
    ]
    assert exports[0].keys() == exports[1].keys()
    weights = "adapter_model.safetensors"
    assert exports[0][weights] == exports[1][weights]


@needs(NEVER_STOPPED)
def test_the_best_step_is_retained_and_exported_with_its_own_scores(bed: Path) -> None:
    from safetensors.torch import load_file

    run = RunFolder(NEVER_STOPPED.path(bed))
    scored = {
        line["step"]: line["perplexity"]
        for line in run.read_metrics()
        if line["kind"] == "eval" and line["model"] == "adapted"
    }
    best = min(scored, key=lambda step: scored[step])
    assert list(scored) == [2, 4, 6, 8]
    assert best == 2, scored
    assert run.result["best"] == {"step": best, "score": -scored[best]}
    assert run.result["scores"]["adapted"]["perplexity"] == scored[best]
    retained = sorted(path.name for path in run.checkpoints.glob("step-*"))
    assert retained == [f"step-{best:08d}", "step-00000008"]
    stored = {}
    for part in (run.checkpoints / f"step-{best:08d}").glob("part-*"):
        stored |= load_file(part)
    exported = load_file(run.export / "adapter_model.safetensors")
    assert exported
    for name, value in exported.items():
        inner = name.replace(".weight", ".default.weight")
        assert value.equal(stored[f"weight/{inner}"])
