"""Read the log of a run, and follow it while the run continues."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from dtl.cluster.status import query_runs
from dtl.core.errors import DtlError
from dtl.run.folder import RunFolder
from dtl.run.submission import Submission

POLL_SECONDS = 1.0


def iter_log_lines(run: Path, *, rank: int | None, follow: bool) -> Iterator[str]:
    """Yield the lines of a run's log; with `follow` also later ones, until the run ends.

    `rank`: the rank whose full log is read; None: what the run prints for the user. Raises
    DtlError where there is no such log.
    """
    folder = RunFolder.open(run)
    job = Submission.load(run)
    path = folder.logs / f"rank-{rank or 0}.log"
    if rank is None and job is not None:
        path = Path(job.log)
    if not path.exists() and not follow:
        names = ", ".join(sorted(log.name for log in folder.logs.glob("*.log")))
        raise DtlError.of(str(path), "there is no such log", f"choose one of: {names or 'none'}")
    position = 0
    while True:
        is_live = follow and query_runs(run)[0].state in ("queued", "running")
        if path.exists():
            with path.open(encoding="utf-8", errors="replace") as file:
                file.seek(position)
                yield from iter(file.readline, "")
                position = file.tell()
        if not is_live:
            return
        time.sleep(POLL_SECONDS)
