"""Streamed rows give the same loss on any layout, and a run of them moves between layouts."""

from __future__ import annotations

from pathlib import Path

import pytest

from dtl.inspect.audit import audit
from dtl.run.folder import RunFolder
from tests.distributed import launching
from tests.distributed.matrix import STEPS


@pytest.mark.parametrize("zero", [0, 3])
def test_two_ranks_that_stream_have_the_loss_of_encoded_rows(bed: Path, zero: int) -> None:
    """Which is that of plain PyTorch."""
    streamed = launching.train_lines(bed / "runs" / f"streamed-{zero}")
    encoded = launching.train_lines(bed / "runs" / "full-1-0-1")
    for key in ("digest", "targets", "examples"):
        assert [line[key] for line in streamed] == [line[key] for line in encoded]
    losses = [line["loss"] for line in encoded]
    assert [line["loss"] for line in streamed] == pytest.approx(losses, rel=1e-5)


def test_moved_to_two_ranks_it_goes_on_and_lists_rows_that_are_no_examples(bed: Path) -> None:
    moved, whole = (RunFolder(bed / "runs" / name) for name in ("streamed-moved", "streamed-gaps"))
    assert (moved.plan.layout.ranks, moved.plan.layout.zero) == (2, 2)
    found, expected = (launching.train_lines(run.path) for run in (moved, whole))
    assert [line["step"] for line in found] == list(range(1, STEPS + 1))
    for key in ("digest", "targets", "examples", "left_out"):
        assert [line.get(key) for line in found] == [line.get(key) for line in expected]
    assert expected[-1]["targets"] == 0, "the last batch, of one row, has nothing to learn from"
    losses = [line["loss"] for line in expected[:-1]]
    assert [line["loss"] for line in found[:-1]] == pytest.approx(losses, rel=1e-5)
    assert found[-1]["loss"] is expected[-1]["loss"] is None
    skipped = [line["step"] for line in moved.metrics() if line["kind"] == "skip"]
    assert skipped == [STEPS]
    assert audit(moved).fault is None
    gaps = (bed / "gaps.jsonl").read_text().splitlines()
    empty = {f"gaps.jsonl:{line}" for line, text in enumerate(gaps, 1) if text == '{"text": ""}'}
    assert 5 < len(empty) < 25
    for run in (moved, whole):
        listed = [line["place"] for line in run.skipped_rows()]
        assert len(listed) == len(set(listed)) and set(listed) == empty
