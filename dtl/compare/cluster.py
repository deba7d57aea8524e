"""A comparison in a cluster's queue: an array of searches, an array of cells, and its table."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtl.backends.base import Job
from dtl.backends.slurm import Options, Plugin, read_site
from dtl.compare.state import State
from dtl.core.errors import DtlError
from dtl.core.process_env import surroundings
from dtl.core.units import parse_seconds
from dtl.plan.hardware import this_machine
from dtl.run.folder import RunFolder, write_json

if TYPE_CHECKING:
    from dtl.compare.grid import Planned

JOBS = "jobs"  # a folder for each job, named after what it runs
NOTE = "submitted.json"
TABLE = "table"


@dataclass(frozen=True)
class Queue:
    """Where a comparison goes; `time`: of one of its jobs."""

    cluster: str
    time: str | None = None
    account: str | None = None
    partition: str | None = None

    def site(self) -> Options:
        """Its file, changed as it was asked for; each job takes one GPU where there are any."""
        site = read_site(self.cluster)
        asked: dict[str, Any] = {"account": self.account, "partition": self.partition}
        changes = {name: value for name, value in asked.items() if value is not None}
        return site.model_copy(
            update={**changes, "gpus_per_node": min(1, site.gpus_per_node), "exclusive": False}
        )


def submit(state: State, queue: Queue) -> tuple[str, ...]:
    """The ids of its jobs: what is finished already is left out, and the last one makes the table.
    Raises DtlError, in Slurm's own words where it refuses."""
    if state.budget is not None:
        raise DtlError.of(
            "--budget", "a queue keeps no time of all its jobs together", "leave it out"
        )
    refuse_live(state)
    site = queue.site()
    backend = Plugin(site)
    left = [one for one in state.grid.planned if not state.finished(one)]
    parts = [
        [one.name for one in left if one.kind == "rate"],
        [one.name for one in left if one.kind == "cell"],
        [TABLE],
    ]
    ids: list[str] = []
    for names in filter(None, parts):
        job = _job(state, names, queue, site, after=ids[-1].partition("_")[0] if ids else None)
        if not ids:
            backend.check(job)
        ids += backend.submit(job)
    note = {"options": site.model_dump(mode="json"), "ids": ids}
    write_json(state.folder / NOTE, note)
    return tuple(ids)


def refuse_live(state: State) -> None:
    """Raises DtlError while jobs of the comparison wait or run."""
    note = state.folder / NOTE
    if not note.is_file():
        return
    before = json.loads(note.read_text(encoding="utf-8"))
    states = Plugin(Options.model_validate(before["options"])).states(before["ids"])
    live = [number for number, one in states.items() if one.phase != "ended"]
    if live:
        runs = state.grid.planned
        done = sum(map(state.finished, runs))
        raise DtlError.of(
            str(state.folder),
            f"{len(live)} of its jobs wait or run, and {done} of {len(runs)} runs are finished",
            f"wait for job {live[-1]}, or end them: scancel {' '.join(_whole(live))}",
        )


def of_job(state: State, folder: Path) -> Planned | None:
    """What the job of a folder runs; None: the table. Raises DtlError for another folder."""
    by_name = {one.name: one for one in state.grid.planned}
    if folder.name != TABLE and folder.name not in by_name:
        raise DtlError.of("--job", f"{folder.name} is no run of {state.folder}", "see --list")
    return by_name.get(folder.name)


def close(folder: Path, *, exit_code: int) -> None:
    """Leave word to the job script how it ended."""
    job = RunFolder(folder)
    if exit_code == 0:
        job.finish({})
    else:
        job.note_end(exit_code)


def _whole(ids: Sequence[str]) -> list[str]:
    """Arrays, not their parts."""
    return list(dict.fromkeys(number.partition("_")[0] for number in ids))


def _job(
    state: State, names: Sequence[str], queue: Queue, site: Options, *, after: str | None
) -> Job:
    jobs = (state.folder / JOBS).absolute()
    folders = tuple(jobs / name for name in names)
    for folder in folders:
        (folder / "result.json").unlink(missing_ok=True)
    run = jobs if names != [TABLE] else folders[0]
    argv = (sys.executable, "-m", "dtl", "compare", str(state.folder.absolute()), "--job", str(run))
    return Job(
        run,
        argv,
        surroundings(this_machine().device if site.gpus_per_node == 0 else "cuda"),
        name=f"dtl-{state.folder.name}",
        seconds=None if queue.time is None else parse_seconds(queue.time),
        after=after,
        after_any=True,
        cells=() if names == [TABLE] else folders,
    )
