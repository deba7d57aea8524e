"""A run goes on where it stopped: on another layout to rounding, on the same one bitwise."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from dtl.audit import audit, difference
from dtl.run_folder import RunFolder
from tests.distributed import launching
from tests.distributed.matrix import STAGES, STEPS, STRATEGIES


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_moved_to_other_ranks_and_another_stage(bed: Path, strategy: str) -> None:
    undisturbed = launching.train_lines(bed / "runs" / f"{strategy}-1-0-1")
    for zero in STAGES:
        run = bed / "runs" / f"moved-{strategy}-{zero}"
        plan = RunFolder(run).plan
        assert (plan.layout.ranks, plan.layout.zero) == (2, (zero + 2) % 4)
        found = launching.train_lines(run)
        assert [line["step"] for line in found] == list(range(1, STEPS + 1))
        expected = [line["loss"] for line in undisturbed]
        assert [line["loss"] for line in found] == pytest.approx(expected, rel=1e-5), run.name
        assert audit(RunFolder(run)).fault is None


@pytest.mark.parametrize("zero", STAGES)
def test_on_the_same_layout_bitwise(bed: Path, zero: int) -> None:
    resumed, whole = (bed / "runs" / f"{kind}-{zero}" for kind in ("stayed", "whole"))
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


def _hashes(run: Path) -> dict[str, str]:
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    assert newest.name == f"step-{STEPS:08d}"
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in newest.iterdir()}
