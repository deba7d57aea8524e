"""Starts or continues a comparison: all of it, or one of its runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from dtl.compare import cluster
from dtl.compare.cluster import Queue
from dtl.compare.records import Comparison
from dtl.compare.run import Running, begin
from dtl.compare.state import State
from dtl.config.load import load_config
from dtl.core.errors import DtlError

HOME = Path("comparisons")


def start(
    path: Path,
    overrides: Sequence[str],
    *,
    out: Path | None = None,
    cell: int | None = None,
    only_list: bool = False,
    queue: Queue | None = None,
    job: Path | None = None,
    say: Callable[[str], None] = print,
    fork: bool = True,
) -> Comparison | None:
    """`path`: a config, or the folder of a comparison. `cell`: the number of a run, from 1, that is
    run alone. `queue`: put all into it. `job`: the folder of a job from there, whose part is run.
    None where not all was to be run. Raises DtlError; StoppedEarly where it was asked to
    end, and goes on when it is started again."""
    state = _open(path, overrides, out)
    planned = state.grid.planned_runs
    if only_list:
        for number, one in enumerate(planned, start=1):
            say(f"{number:>4}  {one.name}")
        return None
    if queue is not None:
        _put_into(queue, state, say)
        return None
    running = Running(state, say, fork)
    if job is not None:
        return _part(running, job)
    cluster.check_not_queued(state)
    if cell is None:
        return running.all()
    if cell > len(planned):
        raise DtlError.of(
            "--cell",
            f"the comparison has {len(planned)} runs",
            f"use a number from 1 to {len(planned)}",
        )
    running.one(planned[cell - 1])
    return None


def _put_into(queue: Queue, state: State, say: Callable[[str], None]) -> None:
    ids = cluster.submit(state, queue)
    for number in dict.fromkeys(one.partition("_")[0] for one in ids):
        say(f"job {number}: {state.folder}")
    say(f"`dtl compare {state.folder}` shows the results after job {ids[-1]}")


def _part(running: Running, job: Path) -> Comparison | None:
    """Run the part of a Slurm job and record its exit code."""
    planned = cluster.of_job(running.state, job)
    try:
        found = None
        if planned is None:
            found = running.all()
        elif not running.state.finished(planned):
            running.one(planned)
    except DtlError as fault:
        rate_failed = planned is not None and running.state.finished(planned)
        if not rate_failed:
            cluster.close(job, exit_code=fault.exit_code)
            raise
    cluster.close(job, exit_code=0)
    return found


def _open(path: Path, overrides: Sequence[str], out: Path | None) -> State:
    if not path.is_dir():
        config = load_config(path, overrides)
        assert config.run.name is not None
        return begin(config, out or HOME / config.run.name)
    if overrides or out is not None:
        raise DtlError.of(
            str(path),
            "is an existing comparison, whose grid cannot change",
            "pass its config to add seeds or time",
        )
    return State.at(path)
