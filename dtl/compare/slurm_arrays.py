"""Submits a comparison to Slurm: an array of search runs, an array of cells, and a results job."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtl.backends.base import Job
from dtl.backends.slurm import Options, Plugin
from dtl.cluster.sites import read_site
from dtl.compare.state import ComparisonState
from dtl.core.errors import DtlError
from dtl.core.files import read_record, write_record
from dtl.core.process_env import launcher_environment
from dtl.core.units import parse_seconds
from dtl.plan.hardware import detect_hardware
from dtl.run.folder import RunFolder

if TYPE_CHECKING:
    from dtl.compare.grid import PlannedRun

JOBS_FOLDER = "jobs"  # a folder per job, named after its run
SUBMITTED_FILE = "submitted.json"
TABLE_JOB = "table"


@dataclass(frozen=True)
class QueueOptions:
    """The cluster and the options of each job. `time`: time limit of one job."""

    cluster: str
    time: str | None = None
    account: str | None = None
    partition: str | None = None

    def site(self) -> Options:
        """Return the site's options with one GPU per job, if it has GPUs.

        Raises DtlError for a site of another backend.
        """
        site = read_site(self.cluster)
        if not isinstance(site, Options):
            raise DtlError.of(
                "--cluster",
                f"a comparison cannot be submitted by backend '{site.backend}'",
                "choose a Slurm cluster, or leave out --cluster",
            )
        overrides: dict[str, Any] = {"account": self.account, "partition": self.partition}
        changes = {name: value for name, value in overrides.items() if value is not None}
        return site.model_copy(
            update={**changes, "gpus_per_node": min(1, site.gpus_per_node), "exclusive": False}
        )


def submit(state: ComparisonState, queue: QueueOptions) -> tuple[str, ...]:
    """Submit all unfinished runs and a last job that writes the results; return the job ids.
    Raises DtlError, with Slurm's message if it rejects a job."""
    if state.budget_seconds is not None:
        raise DtlError.of(
            "--time-budget", "a cluster queue has no time limit over all jobs", "remove it"
        )
    check_not_queued(state)
    site = queue.site()
    backend = Plugin(site)
    unfinished = [one for one in state.grid.planned_runs if not state.is_finished(one)]
    parts = [
        [one.name for one in unfinished if one.kind == "search"],
        [one.name for one in unfinished if one.kind == "cell"],
        [TABLE_JOB],
    ]
    ids: list[str] = []
    for names in filter(None, parts):
        dependency = ids[-1].partition("_")[0] if ids else None
        job = _make_job(state, names, queue, site, dependency=dependency)
        if not ids:
            for warning in backend.check(job):
                print(f"warning: {warning}", file=sys.stderr, flush=True)
        ids += backend.submit(job)
    submitted = {"options": site.model_dump(mode="json"), "ids": ids}
    write_record(state.folder / SUBMITTED_FILE, submitted)
    return tuple(ids)


def check_not_queued(state: ComparisonState) -> None:
    """Raise DtlError while jobs of the comparison are pending or running."""
    path = state.folder / SUBMITTED_FILE
    if not path.is_file():
        return
    submitted = read_record(path)
    backend = Plugin(Options.model_validate(submitted["options"]))
    states = backend.query_states(submitted["ids"])
    live = [number for number, one in states.items() if one.state != "ended"]
    if live:
        runs = state.grid.planned_runs
        finished = sum(map(state.is_finished, runs))
        raise DtlError.of(
            str(state.folder),
            f"{len(live)} of its jobs are pending or running, {finished} of {len(runs)} runs are "
            "finished",
            f"wait for job {live[-1]}, or cancel them: scancel {' '.join(_array_ids(live))}",
        )


def find_planned_run(state: ComparisonState, folder: Path) -> PlannedRun | None:
    """Return the run of a job folder; None: the results. Raises DtlError for other folders."""
    by_name = {one.name: one for one in state.grid.planned_runs}
    if folder.name != TABLE_JOB and folder.name not in by_name:
        raise DtlError.of("--job", f"{folder.name} is not a run of {state.folder}", "see --list")
    return by_name.get(folder.name)


def record_job_end(folder: Path, *, exit_code: int) -> None:
    """Record the exit code for the job script."""
    job = RunFolder(folder)
    if exit_code == 0:
        job.finish({})
    else:
        job.write_exit_code(exit_code)


def _array_ids(ids: Sequence[str]) -> list[str]:
    """Return the ids of job arrays, without those of their tasks."""
    return list(dict.fromkeys(number.partition("_")[0] for number in ids))


def _make_job(
    state: ComparisonState,
    names: Sequence[str],
    queue: QueueOptions,
    site: Options,
    *,
    dependency: str | None,
) -> Job:
    jobs = (state.folder / JOBS_FOLDER).absolute()
    folders = tuple(jobs / name for name in names)
    for folder in folders:
        (folder / "result.json").unlink(missing_ok=True)
    run = jobs if names != [TABLE_JOB] else folders[0]
    argv = (sys.executable, "-m", "dtl", "compare", str(state.folder.absolute()), "--job", str(run))
    return Job(
        run,
        argv,
        launcher_environment(detect_hardware().device if site.gpus_per_node == 0 else "cuda"),
        name=f"dtl-{state.folder.name}",
        time_limit_seconds=None if queue.time is None else parse_seconds(queue.time),
        dependency=dependency,
        dependency_may_fail=True,
        array_runs=() if names == [TABLE_JOB] else folders,
        writes_steps=False,
    )
