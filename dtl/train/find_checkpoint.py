"""Find the checkpoint that a run resumes from, and what its history has lost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dtl.core.errors import Fault, RunFailed
from dtl.core.files import find_unused_path
from dtl.engine.base import Engine
from dtl.run.folder import RunFolder
from dtl.train.checkpoint import CheckpointStore, read_progress
from dtl.train.log import RunLog

MAX_LISTED = 3  # damaged lines that are printed


@dataclass(frozen=True)
class _Choice:
    """The checkpoint, or why there is none to resume from."""

    path: Path | None
    fault: Fault | None = None


def find_checkpoint(
    folder: RunFolder, store: CheckpointStore, engine: Engine, log: RunLog
) -> Path | None:
    """Return the newest intact checkpoint, the same on every rank, or None. Damaged ones are
    renamed, and what the log has of later steps is removed. What the history has lost is printed,
    and logged.

    Every rank must call. Raises RunFailed where there are only damaged ones, or where those that
    were saved are gone.
    """
    choice = _Choice(None)
    if engine.is_main_process:
        choice = _choose(folder, store, log)
    choice = engine.broadcast_object(choice)
    if choice.fault is not None:
        raise RunFailed(choice.fault)
    if engine.is_main_process:
        _trim_log(folder, log, step=read_progress(choice.path).step if choice.path else None)
    if choice.path is not None:
        log.print_line(f"resuming from {choice.path}")
    return choice.path


def _choose(folder: RunFolder, store: CheckpointStore, log: RunLog) -> _Choice:
    """Rename damaged checkpoints, and compare the newest with the last one that the log has."""
    newest, damaged = store.find_newest_intact()
    for checkpoint in damaged:
        renamed = find_unused_path(checkpoint.path.with_name(f"damaged-{checkpoint.path.name}"))
        log.print_line(f"{checkpoint.path} renamed to {renamed.name}: {checkpoint.reason}")
        checkpoint.path.rename(renamed)
    if newest is None and any(store.folder.glob("damaged-*")):
        problem = "all checkpoints of this run are damaged"
        return _Choice(
            None, Fault(str(store.folder), problem, "start a new run under another name")
        )
    saved = max(
        (line["step"] for line in folder.read_metrics() if line["kind"] == "save"), default=0
    )
    if newest is None and saved:
        return _Choice(
            None,
            Fault(
                str(store.folder),
                f"the checkpoints of this run are gone; metrics.jsonl has that of step {saved}",
                "restore them from a copy, or start a new run under another name",
            ),
        )
    if newest is not None and not damaged and newest.name < store.step_path(saved).name:
        missing = store.step_path(saved)
        log.print_line(f"{missing} is missing, though metrics.jsonl has that it was saved")
    return _Choice(newest)


def _trim_log(folder: RunFolder, log: RunLog, *, step: int | None) -> None:
    """Remove the lines after the checkpoint's step, of which there is none before the first save,
    and name those that are damaged or missing."""
    for reason in (damaged := folder.damaged_lines)[:MAX_LISTED]:
        log.print_line(f"{folder.path}: {reason}; it is left out")
    copy = folder.retain_damaged_log()
    if copy is not None:
        log.print_line(f"{len(damaged)} damaged lines are retained in {copy}")
    if step is None:
        folder.remove_metrics_after(-1)
        return
    folder.remove_metrics_after(step)
    lines = list(folder.read_metrics())
    known = {line["step"] for line in lines if line["kind"] == "train"}
    for line in lines:
        if line["kind"] == "lost":
            known.update(line["steps"])
    missing = [number for number in range(1, step + 1) if number not in known]
    if missing:
        log.lose(step, missing)
