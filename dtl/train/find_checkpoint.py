"""Find the checkpoint that a run resumes from."""

from __future__ import annotations

from pathlib import Path

from dtl.core.errors import RunFailed
from dtl.engine.base import Engine
from dtl.run.folder import RunFolder
from dtl.train.checkpoint import CheckpointStore, read_progress
from dtl.train.log import RunLog


def find_checkpoint(
    folder: RunFolder, store: CheckpointStore, engine: Engine, log: RunLog
) -> Path | None:
    """Return the newest intact checkpoint, the same on every rank, or None. Damaged ones are
    renamed, and what the log has of later steps is removed.

    Every rank must call. Raises RunFailed where there are only damaged ones.
    """
    newest, all_damaged = None, False
    if engine.is_main_process and store.folder.exists():
        newest, damaged = store.find_newest_intact()
        for checkpoint in damaged:
            renamed = _find_unused_path(
                checkpoint.path.with_name(f"damaged-{checkpoint.path.name}")
            )
            log.print_line(f"{checkpoint.path} renamed to {renamed.name}: {checkpoint.reason}")
            checkpoint.path.rename(renamed)
        all_damaged = newest is None and any(store.folder.glob("damaged-*"))
    newest, all_damaged = engine.broadcast_object((newest, all_damaged))
    if all_damaged:
        raise RunFailed.of(
            str(store.folder),
            "all checkpoints of this run are damaged",
            "start a new run under another name",
        )
    if engine.is_main_process:
        folder.remove_metrics_after(read_progress(newest).step if newest else -1)
    if newest is not None:
        log.print_line(f"resuming from {newest}")
    return newest


def _find_unused_path(path: Path) -> Path:
    """Return the path, with a number where the name is taken."""
    number, unused = 2, path
    while unused.exists():
        unused, number = path.with_name(f"{path.name}-{number}"), number + 1
    return unused
