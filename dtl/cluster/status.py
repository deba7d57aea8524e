"""Where runs are, what they say, and how they are asked to end: from run folders and the queue."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from dtl.backends.base import CANCELLED, JobState
from dtl.config import registry
from dtl.core.errors import DtlError, RunFailed
from dtl.core.lock import holder_here, is_held
from dtl.core.signals import STOPPED
from dtl.core.units import format_seconds
from dtl.run.folder import RunFolder
from dtl.run.submission import FILE, Submitted, starts

RECENT = 50  # steps whose time tells how long the rest will take
DEPTH = 3  # folders below one another in which runs are looked for
HEADINGS = ("run", "state", "step", "loss", "left", "restarts", "job", "reason")


@dataclass(frozen=True)
class Status:
    """One run. `left`: seconds to the last step; `restarts`: of the last submission."""

    run: Path
    state: str
    reason: str
    step: int
    steps: int
    loss: float | None
    left: float | None
    restarts: int
    job: str

    def row(self) -> tuple[str, ...]:
        """As text, under HEADINGS."""
        return (
            str(self.run),
            self.state,
            f"{self.step}/{self.steps}",
            "" if self.loss is None else f"{self.loss:.4f}",
            "" if self.left is None else format_seconds(self.left),
            str(self.restarts or ""),
            self.job,
            self.reason,
        )


def runs_in(place: Path) -> list[RunFolder]:
    """The run in a folder, or the runs below it. Raises DtlError where there is none."""
    if (place / "run.json").is_file():
        return [RunFolder(place)]
    found = [
        path.parent
        for depth in range(1, DEPTH + 1)
        for path in place.glob("/".join(["*"] * depth) + "/run.json")
    ]
    if not found:
        raise DtlError.of(str(place), "there is no run in this folder", "name another by --dir")
    return [RunFolder(path) for path in sorted(found)]


def status(place: Path) -> list[Status]:
    """Where each run of a folder is. Slurm is asked once for each site; where it does not answer,
    the heartbeats tell."""
    folders = runs_in(place)
    submitted = {folder.path: Submitted.of(folder.path) for folder in folders}
    queues: dict[str, dict[str, JobState] | str] = {}
    for backend in {job.backend for job in submitted.values() if job}:
        jobs = [job for job in submitted.values() if job and job.backend == backend]
        ids = [number for job in jobs for number in job.ids]
        try:
            queues[backend] = jobs[0].open().query_states(ids)
        except DtlError as fault:
            queues[backend] = str(fault)
    return [_status(folder, submitted[folder.path], queues) for folder in folders]


def _status(
    folder: RunFolder, job: Submitted | None, queues: dict[str, dict[str, JobState] | str]
) -> Status:
    queue = queues[job.backend] if job else {}
    state, reason, number = "", queue if isinstance(queue, str) else "", ""
    if job and job.ids and isinstance(queue, dict):
        present = next((one for one in job.ids if queue[one].phase != "ended"), job.ids[-1])
        number, reason = present, queue[present].reason
        state = queue[present].phase if queue[present].phase != "ended" else ""
    elif job and job.ids:
        number = job.ids[0]
    if folder.state == "finished":
        state, reason = "finished", ""
    elif not state:
        state = _by_itself(folder)
    lines = [line for line in folder.metrics() if line["kind"] == "train"]
    step, steps = (lines[-1]["step"] if lines else 0), folder.plan.steps
    running = state == "running" and bool(lines)
    pace = median(line["seconds"] for line in lines[-RECENT:]) if running else None
    return Status(
        folder.path,
        state,
        reason,
        step,
        steps,
        lines[-1]["loss"] if lines else None,
        None if pace is None else pace * (steps - step),
        max(0, starts(folder.path) - 1),
        number,
    )


def _by_itself(folder: RunFolder) -> str:
    """What the folder alone tells of a run that is not finished."""
    if is_held(folder.path):
        return "running"
    word = folder.ended
    if word is None:
        return "stopped" if (folder.path / CANCELLED).exists() else "interrupted"
    return "stopped" if word == STOPPED else "failed"


def lines(run: Path, *, rank: int | None, follow: bool) -> Iterator[str]:
    """What a run has said, and with `follow` what it will say until it ends. `rank`: all that the
    libraries of this one said. Raises DtlError."""
    folder = RunFolder.open(run)
    job = Submitted.of(run)
    path = folder.logs / f"rank-{rank or 0}.log"
    if rank is None and job is not None:
        path = Path(job.log)
    if not path.exists() and not follow:
        known = ", ".join(sorted(log.name for log in folder.logs.glob("*.log")))
        raise DtlError.of(str(path), "there is no such log yet", f"there are: {known or 'none'}")
    place = 0
    while True:
        live = follow and status(run)[0].state in ("queued", "running")
        if path.exists():
            with path.open(encoding="utf-8", errors="replace") as file:
                file.seek(place)
                yield from iter(file.readline, "")
                place = file.tell()
        if not live:
            return
        time.sleep(1.0)


def cancel(place: Path, *, say: Callable[[str], None]) -> None:
    """Ask the runs of a folder to save and end, and wait until they have. Raises DtlError."""
    asked = [folder for folder in runs_in(place) if folder.state != "finished"]
    if not asked:
        say(f"{place} is finished; nothing to do")
    for folder in asked:
        (folder.path / CANCELLED).touch()  # before: it must not go into the queue again
        if (folder.path / FILE).is_file():
            _cancel_submitted(folder)
        else:
            _cancel_here(folder)
    for folder in asked:
        _wait(folder, say)


def _cancel_submitted(folder: RunFolder) -> None:
    job = Submitted.of(folder.path)
    assert job is not None
    backend = job.open()
    for number in reversed(job.ids):  # the last link first: none may start meanwhile
        backend.cancel(number)


def _cancel_here(folder: RunFolder) -> None:
    process = holder_here(folder.path)
    (folder.path / CANCELLED).unlink()
    if process is not None:
        local = registry.load("backends", "local")
        local.Plugin(local.Options()).cancel(str(process))
    elif is_held(folder.path):
        raise DtlError.of(
            str(folder.path), "is being written on another machine", "cancel it on that one"
        )


def _wait(folder: RunFolder, say: Callable[[str], None]) -> None:
    job = Submitted.of(folder.path)
    limit = time.monotonic() + (job.options["lead_seconds"] if job else 60)
    while True:
        now = status(folder.path)[0]
        if now.state not in ("running", "queued"):
            break
        if now.state == "queued":  # it came back before it was asked
            _cancel_submitted(folder)
        if time.monotonic() > limit:
            raise RunFailed.of(
                str(folder.path), "has been asked, and still saves", "look again: dtl status"
            )
        time.sleep(0.5)
    say(f"{folder.path}: {now.state} after step {now.step}; `dtl resume {folder.path}` continues")
