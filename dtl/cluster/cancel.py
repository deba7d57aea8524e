"""Request runs to save and stop, and wait until they have."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from dtl.backends.base import CANCELLED
from dtl.cluster.status import find_runs, query_runs
from dtl.config import registry
from dtl.core.errors import DtlError, RunFailed
from dtl.core.lock import find_local_holder, is_held
from dtl.run.folder import RunFolder
from dtl.run.submission import FILE, Submission

LOCAL_TIMEOUT_SECONDS = 60


def cancel_runs(path: Path, *, print_line: Callable[[str], None]) -> None:
    """Request the unfinished runs of a folder to save and stop; return when all have.

    Raises DtlError where one cannot be reached, and RunFailed where one does not stop in time.
    """
    folders = [folder for folder in find_runs(path) if folder.state != "finished"]
    if not folders:
        print_line(f"{path} is finished; nothing to do")
    submitted = [folder for folder in folders if (folder.path / FILE).is_file()]
    for folder in submitted:
        (folder.path / CANCELLED).touch()  # first: no job may restart, also if the queue is down
    for folder in folders:
        if folder in submitted:
            _cancel_submitted(folder)
        else:
            _cancel_local(folder)
    for folder in folders:
        _wait_until_stopped(folder, print_line)


def _cancel_submitted(folder: RunFolder) -> None:
    job = Submission.load(folder.path)
    assert job is not None
    backend = job.open_backend()
    try:
        for number in reversed(job.job_ids):  # the last of a chain first: none may start meanwhile
            backend.cancel(number)
    except RunFailed as fault:
        (found,) = fault.faults
        raise RunFailed.of(
            found.location,
            f"{found.problem}; the run is marked as cancelled, and no job of it restarts, but one "
            "that runs has not been stopped",
            f"{found.fix}, then run `dtl cancel {folder.path}` again",
        ) from fault


def _cancel_local(folder: RunFolder) -> None:
    process = find_local_holder(folder.path)
    if process is not None:
        local = registry.load("backends", "local")
        local.Plugin(local.Options()).cancel(str(process))
    elif is_held(folder.path):
        raise DtlError.of(
            str(folder.path), "is running on another machine", "cancel it on that machine"
        )


def _wait_until_stopped(folder: RunFolder, print_line: Callable[[str], None]) -> None:
    job = Submission.load(folder.path)
    limit = time.monotonic() + (job.options["lead_seconds"] if job else LOCAL_TIMEOUT_SECONDS)
    while True:
        status = query_runs(folder.path)[0]
        if status.state not in ("running", "queued"):
            break
        if status.state == "queued":  # it was requeued before the request
            _cancel_submitted(folder)
        if time.monotonic() > limit:
            raise RunFailed.of(
                str(folder.path), "the run is still saving", "check again later: dtl status"
            )
        time.sleep(0.5)
    print_line(
        f"{folder.path}: {status.state} after step {status.step}; "
        f"to continue, run `dtl resume {folder.path}`"
    )
