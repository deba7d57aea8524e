"""Streamed rows give the same loss on any layout, and a run of them moves between layouts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dtl.inspect.audit import audit_run
from dtl.run.folder import RunFolder
from tests.distributed.layouts import single, zero
from tests.distributed.runs import Run, needs


def streamed_run(name: str, rows: str, processes: int, stage: int, **how: Any) -> Run:
    """Return a run whose rows are read and encoded in the step that learns from them."""
    source = f"data.train={{path: {rows}, streaming: true}}"
    return Run(f"streamed-{name}", processes, (source, zero(stage), "layout.micro_batch=2"), **how)


def two_processes(stage: int) -> Run:
    """Return the run on two processes."""
    return streamed_run(str(stage), "train.jsonl", 2, stage)


@pytest.mark.parametrize("stage", [0, 3])
@needs(lambda stage: [two_processes(stage), single("full")])
def test_two_ranks_that_stream_have_the_loss_of_encoded_rows(bed: Path, stage: int) -> None:
    """Which is that of plain PyTorch."""
    streamed, encoded = two_processes(stage).lines(bed), single("full").lines(bed)
    for key in ("digest", "targets", "examples"):
        assert [line[key] for line in streamed] == [line[key] for line in encoded]
    losses = single("full").losses(bed)
    assert [line["loss"] for line in streamed] == pytest.approx(losses, rel=1e-5)


# Of gaps.jsonl some rows are no examples; the run is stopped on one process and resumed on two.
# It ends after four epochs, with a batch of one row that is none.
GAP_STEPS = 20


def run_with_gaps(name: str, processes: int, stage: int, **how: Any) -> Run:
    run = streamed_run(name, "gaps.jsonl", processes, stage, **how)
    return replace(run, overrides=(*run.overrides, f"train.steps={GAP_STEPS}"))


UNDISTURBED = run_with_gaps("undisturbed", 1, 0)
FIRST = run_with_gaps("moved", 1, 0, bare=False, stop_after=GAP_STEPS // 2)
MOVED = run_with_gaps("moved", 2, 2, bare=False, before=(FIRST,))


@needs(UNDISTURBED, MOVED)
def test_moved_to_two_ranks_it_resumes_and_lists_rows_that_are_no_examples(bed: Path) -> None:
    moved, undisturbed = (RunFolder(run.path(bed)) for run in (MOVED, UNDISTURBED))
    layout = moved.plan.layout
    assert (layout.world_size, layout.zero_stage) == (2, 2)
    found, expected = MOVED.lines(bed), UNDISTURBED.lines(bed)
    assert [line["step"] for line in found] == list(range(1, GAP_STEPS + 1))
    for key in ("digest", "targets", "examples", "skipped_rows"):
        assert [line.get(key) for line in found] == [line.get(key) for line in expected]
    assert expected[-1]["targets"] == 0, "the last batch, of one row, has nothing to learn from"
    losses = [line["loss"] for line in expected[:-1]]
    assert [line["loss"] for line in found[:-1]] == pytest.approx(losses, rel=1e-5)
    assert found[-1]["loss"] is expected[-1]["loss"] is None
    skipped = [line["step"] for line in moved.read_metrics() if line["kind"] == "skip"]
    assert skipped == [GAP_STEPS]
    assert audit_run(moved).fault is None
    gaps = (bed / "gaps.jsonl").read_text().splitlines()
    empty = {f"gaps.jsonl:{line}" for line, text in enumerate(gaps, 1) if text == '{"text": ""}'}
    assert 5 < len(empty) < 25
    for run in (moved, undisturbed):
        listed = [line["location"] for line in run.read_skipped_rows()]
        assert len(listed) == len(set(listed)) and set(listed) == empty
