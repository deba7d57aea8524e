"""A run goes on where it stopped: on another layout to rounding, on the same one bitwise."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from dtl.inspect.audit import audit, difference
from dtl.run.folder import RunFolder
from tests.distributed import launching
from tests.distributed.matrix import (
    JUMP,
    JUMP_BACK,
    KEPT,
    MOVES,
    PHASED_STAGES,
    PHASES,
    STAGES,
    STEPS,
    STRATEGIES,
)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("before", "after"), MOVES)
def test_moved_to_other_ranks_and_another_stage(
    bed: Path, strategy: str, before: int, after: int
) -> None:
    undisturbed = launching.train_lines(bed / "runs" / f"{strategy}-1-0-1")
    for zero in STAGES:
        run = bed / "runs" / f"moved-{before}-{strategy}-{zero}"
        plan = RunFolder(run).plan
        assert (plan.layout.ranks, plan.layout.zero) == (after, (zero + 2) % 4)
        found = launching.train_lines(run)
        assert [line["step"] for line in found] == list(range(1, STEPS + 1))
        expected = [line["loss"] for line in undisturbed]
        assert [line["loss"] for line in found] == pytest.approx(expected, rel=1e-5), run.name
        assert audit(RunFolder(run)).fault is None


@pytest.mark.parametrize(
    "name",
    [
        *map(str, STAGES),
        *KEPT,
        "batches",
        *(f"{phases}-{zero}" for phases in PHASES for zero in PHASED_STAGES),
    ],
)
def test_on_the_same_layout_bitwise(bed: Path, name: str) -> None:
    resumed, whole = (bed / "runs" / f"{kind}-{name}" for kind in ("stayed", "whole"))
    keys = ("loss", "gradient_norm", "learning_rate", "digest", "targets")
    lines = [
        [[line[key] for key in keys] for line in launching.train_lines(run)]
        for run in (resumed, whole)
    ]
    assert lines[0] == lines[1]
    assert _hashes(resumed) == _hashes(whole), "weights, moments and progress"
    assert difference(RunFolder(resumed), RunFolder(whole)) is None


@pytest.mark.parametrize("zero", STAGES)
def test_a_step_that_is_not_finite_is_left_out_by_all_and_told(bed: Path, zero: int) -> None:
    run = bed / "runs" / f"poison-{zero}"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    skipped = [line for line in lines if line["kind"] == "skip"]
    assert [line["step"] for line in skipped] == [4, 5]
    assert all(len(line["examples"]) == 12 for line in skipped[:1])
    trained = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in trained if line["loss"] is None] == [4, 5]
    clean = launching.train_lines(bed / "runs" / "full-1-0-1")
    assert [line["loss"] for line in trained[:3]] == pytest.approx(
        [line["loss"] for line in clean[:3]], rel=1e-5
    )
    assert trained[-1]["loss"] < trained[0]["loss"] - 0.5, "it goes on learning"
    same = launching.train_lines(bed / "runs" / "poison-0")
    finite = [place for place, line in enumerate(same) if line["loss"] is not None]
    assert [trained[place]["loss"] for place in finite] == pytest.approx(
        [same[place]["loss"] for place in finite], rel=1e-5
    )


def test_moments_of_8_bits_learn_like_those_of_32_and_are_saved_as_they_are(bed: Path) -> None:
    from safetensors.torch import load_file

    eight = launching.train_lines(bed / "runs" / "whole-8bit")
    full = launching.train_lines(bed / "runs" / "full-2-0-1")
    assert [line["loss"] for line in eight] == pytest.approx(
        [line["loss"] for line in full], rel=0.02
    )
    assert [line["loss"] for line in eight] != [line["loss"] for line in full]
    stored = {}
    for part in (bed / "runs" / "whole-8bit" / "checkpoints" / f"step-{STEPS:08d}").glob("part-*"):
        stored |= load_file(part)
    large, small = "model.embed_tokens.weight", "model.norm.weight"
    assert str(stored[f"state1/{large}"].dtype) == "torch.uint8"
    assert stored[f"absmax2/{large}"].numel() == stored[f"weight/{large}"].numel() / 256
    assert str(stored[f"state1/{small}"].dtype) == "torch.float32"


@pytest.mark.parametrize("zero", STAGES)
def test_after_a_jump_the_run_goes_back_and_on_as_if_it_had_left_out_those_batches(
    bed: Path, zero: int
) -> None:
    jumped, spared = (RunFolder(bed / "runs" / f"{name}-{zero}") for name in ("jumped", "spared"))
    (spike,) = jumped.spikes
    assert (spike["step"], len(spike["examples"])) == (JUMP, 12)
    assert spike["left_out"] == list(range(JUMP - JUMP_BACK + 1, JUMP + 1))
    assert spike["back_to"] <= JUMP - JUMP_BACK
    assert spike["score"] > 20
    lines = [launching.train_lines(run.path) for run in (jumped, spared)]
    assert [line["step"] for line in lines[0]] == list(range(1, JUMP + 11))
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]], "bitwise"
    assert [line["step"] for line in lines[0] if line["loss"] is None] == spike["left_out"]
    skipped = [line["step"] for line in jumped.metrics() if line["kind"] == "skip"]
    assert skipped == spike["left_out"]
    newest = [sorted(run.checkpoints.glob("step-*"))[-1] for run in (jumped, spared)]
    parts = [sorted(path.glob("part-*")) for path in newest]
    assert [p.read_bytes() for p in parts[0]] == [p.read_bytes() for p in parts[1]]
    assert audit(jumped).fault is None


@pytest.mark.parametrize("place", ["unadapted", "evaluation", "export"])
def test_stopped_within_a_scoring_or_the_export_it_ends_as_if_nothing_had_been(
    bed: Path, place: str
) -> None:
    stopped, whole = (RunFolder(bed / "runs" / f"stop-{name}") for name in (place, "nowhere"))
    times = ("seconds", "tokens_per_second", "memory_bytes")
    lines = [
        [
            {key: value for key, value in line.items() if key not in times}
            for line in run.metrics()
            if line["kind"] in ("train", "eval")
        ]
        for run in (stopped, whole)
    ]
    assert lines[0] == lines[1]
    assert {**stopped.result, "export": None} == {**whole.result, "export": None}
    exports = [
        {file.name: file.read_bytes() for file in sorted(run.export.iterdir())}
        for run in (stopped, whole)
    ]
    assert exports[0].keys() == exports[1].keys()
    weights = "adapter_model.safetensors"
    assert exports[0][weights] == exports[1][weights]


def test_the_best_step_is_kept_and_exported_with_its_own_scores(bed: Path) -> None:
    from safetensors.torch import load_file

    run = RunFolder(bed / "runs" / "stop-nowhere")
    scored = {
        line["step"]: line["perplexity"]
        for line in run.metrics()
        if line["kind"] == "eval" and line["model"] == "adapted"
    }
    best = min(scored, key=lambda step: scored[step])
    assert list(scored) == [2, 4, 6, 8]
    assert best != 8, "the bed is made so"
    assert run.result["best"] == {"step": best, "score": -scored[best]}
    assert run.result["scores"]["adapted"]["perplexity"] == scored[best]
    kept = sorted(path.name for path in run.checkpoints.glob("step-*"))
    assert kept == [f"step-{best:08d}", "step-00000008"]
    stored = {}
    for part in (run.checkpoints / f"step-{best:08d}").glob("part-*"):
        stored |= load_file(part)
    exported = load_file(run.export / "adapter_model.safetensors")
    assert exported
    for name, value in exported.items():
        inner = name.replace(".weight", ".default.weight")
        assert value.equal(stored[f"weight/{inner}"])


def _hashes(run: Path) -> dict[str, str]:
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    assert newest.name == f"step-{RunFolder(run).plan.steps:08d}"
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in newest.iterdir()}
