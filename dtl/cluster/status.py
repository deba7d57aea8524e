"""Query the state of runs, from their run folders and the queue."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median

from dtl.backends.base import CANCELLED, JobState
from dtl.core.errors import DtlError
from dtl.core.lock import is_held
from dtl.core.signals import STOPPED
from dtl.core.units import format_seconds
from dtl.run.folder import RunFolder
from dtl.run.submission import Submission, count_starts

RECENT_STEPS = 50  # whose median time estimates the remaining time
MAX_DEPTH = 3  # of the folders below one another in which runs are searched
HEADINGS = ("run", "state", "step", "loss", "remaining", "restarts", "job", "reason")

Queue = dict[str, JobState] | str  # states by job id, or why they cannot be queried


@dataclass(frozen=True)
class Status:
    """The state of one run.

    `remaining_seconds`: estimate until the last step; None where it is not running. `restarts`: of
    the last submission. `job`: its job id, "" where it was not submitted.
    """

    run: Path
    state: str
    reason: str
    step: int
    steps: int
    loss: float | None
    remaining_seconds: float | None
    restarts: int
    job: str

    def row(self) -> tuple[str, ...]:
        """Return it as text, under HEADINGS."""
        remaining = self.remaining_seconds
        return (
            str(self.run),
            self.state,
            f"{self.step}/{self.steps}",
            "" if self.loss is None else f"{self.loss:.4f}",
            "" if remaining is None else format_seconds(remaining),
            str(self.restarts or ""),
            self.job,
            self.reason,
        )


@dataclass(frozen=True)
class _QueueEntry:
    """What the queue says of a run: its job, and "" for a state that it does not know."""

    state: str = ""
    reason: str = ""
    job: str = ""


def find_runs(path: Path) -> list[RunFolder]:
    """Return the run in a folder, or the runs below it. Raises DtlError where there is none."""
    if (path / "run.json").is_file():
        return [RunFolder(path)]
    runs = [
        file.parent
        for depth in range(1, MAX_DEPTH + 1)
        for file in path.glob("/".join(["*"] * depth) + "/run.json")
        if not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    if not runs:
        raise DtlError.of(str(path), "there is no run in this folder", "choose another with --dir")
    return [RunFolder(run) for run in sorted(runs)]


def query_runs(path: Path) -> list[Status]:
    """Return the state of each run of a folder. Raises DtlError where there is none.

    Each backend is queried once. Where it does not answer, the state is that of the run folder.
    """
    folders = find_runs(path)
    damaged = {folder.path: fault for folder in folders if (fault := _find_damage(folder))}
    submissions = {
        folder.path: None if folder.path in damaged else Submission.load(folder.path)
        for folder in folders
    }
    queues: dict[str, Queue] = {}
    for backend in {job.backend for job in submissions.values() if job}:
        jobs = [job for job in submissions.values() if job and job.backend == backend]
        ids = [number for job in jobs for number in job.job_ids]
        try:
            queues[backend] = jobs[0].open_backend().query_states(ids)
        except DtlError as fault:
            queues[backend] = str(fault)
    return [
        _damaged_status(folder.path, damaged[folder.path])
        if folder.path in damaged
        else _build_status(folder, _read_queue(submissions[folder.path], queues))
        for folder in folders
    ]


def _find_damage(folder: RunFolder) -> str | None:
    """Return what is wrong with a file that the state of a run depends on; None if nothing."""
    try:
        Submission.load(folder.path)
        _ = folder.plan, folder.config
    except DtlError as fault:
        return str(fault)
    return None


def _damaged_status(run: Path, reason: str) -> Status:
    """Return the state of a run that cannot be read; the other runs are listed beside it."""
    return Status(run, "damaged", reason, 0, 0, None, None, 0, "")


def _read_queue(job: Submission | None, queues: dict[str, Queue]) -> _QueueEntry:
    if job is None:
        return _QueueEntry()
    queue = queues[job.backend]
    if not job.job_ids:
        return _QueueEntry(reason=queue if isinstance(queue, str) else "")
    if isinstance(queue, str):
        return _QueueEntry(reason=queue, job=job.job_ids[0])
    live = (number for number in job.job_ids if queue[number].state != "ended")
    number = next(live, job.job_ids[-1])
    state = queue[number]
    return _QueueEntry("" if state.state == "ended" else state.state, state.reason, number)


def _build_status(folder: RunFolder, entry: _QueueEntry) -> Status:
    state, reason = entry.state or _state_of_folder(folder), entry.reason
    if folder.state == "finished":
        state, reason = "finished", ""
    if damage := folder.result_damage:
        reason = f"result.json: {damage}"
    if damaged := folder.damaged_lines:
        reason = "; ".join(filter(None, [reason, f"{len(damaged)} damaged lines ({damaged[0]})"]))
    lines = [line for line in folder.read_metrics() if line["kind"] == "train"]
    step, steps = (lines[-1]["step"] if lines else 0), folder.plan.steps
    remaining = None
    if state == "running" and lines:
        step_seconds = median(line["seconds"] for line in lines[-RECENT_STEPS:])
        remaining = step_seconds * (steps - step)
    return Status(
        folder.path,
        state,
        reason,
        step,
        steps,
        lines[-1]["loss"] if lines else None,
        remaining,
        max(0, count_starts(folder.path) - 1),
        entry.job,
    )


def _state_of_folder(folder: RunFolder) -> str:
    """Return the state of an unfinished run, by its folder alone."""
    if is_held(folder.path):
        return "running"
    exit_code = folder.exit_code
    if exit_code is None:
        return "stopped" if (folder.path / CANCELLED).exists() else "interrupted"
    return "stopped" if exit_code == STOPPED else "failed"
