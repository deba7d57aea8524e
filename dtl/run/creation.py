"""Create a run folder: complete or absent, and by one of several processes."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from dtl.core.errors import DtlError
from dtl.core.files import sync_to_disk, sync_tree

SKIPPED = "skipped_rows.jsonl"
LENGTHS = "lengths.npz"  # lengths of the examples, if batches depend on them


def check_replaceable(path: Path) -> None:
    """Raise DtlError unless a run can be created here: nothing is here, or only what an interrupted
    creation has left."""
    entries = list(path.iterdir()) if path.exists() else []
    if any(entry.name == "run.json" for entry in entries):
        raise DtlError.of(
            str(path),
            "another process has created this run at the same time",
            f"see `dtl status {path}`; to continue the run when that process has ended, start the "
            "same command again",
        )
    is_leftover = path / "logs" in entries and not any((path / "logs").iterdir())
    others = [entry.name for entry in entries if not _is_of_creation(entry.name)]
    if entries and (others or not is_leftover):
        raise DtlError.of(
            str(path),
            "the folder is not empty, and it is not a run",
            "choose another run.name or run.dir",
        )


def _is_of_creation(name: str) -> bool:
    """Return whether dtl writes a file of this name before run.json."""
    return name in ("logs", "config.yaml", SKIPPED, LENGTHS) or name.startswith(".run.json.")


def publish_run_folder(staged: Path, path: Path) -> None:
    """Give a complete run folder its name. Of several processes, one succeeds; the others raise
    DtlError."""
    sync_tree(staged)
    try:
        staged.rename(path)  # replaces an empty folder
    except OSError:
        if not path.exists():
            raise
        _remove_leftovers(path)
        staged.rename(path)
    sync_to_disk(path.parent)


def _remove_leftovers(path: Path) -> None:
    """Remove what an interrupted creation has left. Raises DtlError where something else is there,
    also where another process gives its run this name meanwhile."""
    check_replaceable(path)
    renamed = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    path.rename(renamed)
    try:
        check_replaceable(renamed)
    except DtlError:
        renamed.rename(path)
        raise
    shutil.rmtree(renamed, ignore_errors=True)
