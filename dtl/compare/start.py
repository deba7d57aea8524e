"""Starts or continues a comparison: all of it, or one of its runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from dtl.compare import cluster
from dtl.compare.cluster import QueueOptions
from dtl.compare.records import Comparison
from dtl.compare.run import Runner, create_or_resume
from dtl.compare.state import ComparisonState
from dtl.config.load import load_config
from dtl.core.errors import DtlError

COMPARISONS_FOLDER = Path("comparisons")


def start(
    path: Path,
    overrides: Sequence[str],
    *,
    out: Path | None = None,
    cell: int | None = None,
    only_list: bool = False,
    queue: QueueOptions | None = None,
    job: Path | None = None,
    say: Callable[[str], None] = print,
    fork: bool = True,
) -> Comparison | None:
    """`path`: a config, or the folder of a comparison. `cell`: the number of a run, from 1, that is
    run alone. `queue`: put all into it. `job`: the folder of a job from there, whose part is run.
    None where not all was to be run. Raises DtlError; StoppedEarly where it was asked to
    end, and goes on when it is started again."""
    state = _open_state(path, overrides, out)
    planned = state.grid.planned_runs
    if only_list:
        for number, one in enumerate(planned, start=1):
            say(f"{number:>4}  {one.name}")
        return None
    if queue is not None:
        _submit(queue, state, say)
        return None
    runner = Runner(state, say, fork)
    if job is not None:
        return _run_job(runner, job)
    cluster.check_not_queued(state)
    if cell is None:
        return runner.run_all()
    if cell > len(planned):
        raise DtlError.of(
            "--cell",
            f"the comparison has {len(planned)} runs",
            f"use a number from 1 to {len(planned)}",
        )
    runner.run_one(planned[cell - 1])
    return None


def _submit(queue: QueueOptions, state: ComparisonState, say: Callable[[str], None]) -> None:
    ids = cluster.submit(state, queue)
    for number in dict.fromkeys(one.partition("_")[0] for one in ids):
        say(f"job {number}: {state.folder}")
    say(f"`dtl compare {state.folder}` shows the results after job {ids[-1]}")


def _run_job(runner: Runner, job: Path) -> Comparison | None:
    """Run the part of a Slurm job and record its exit code."""
    planned = cluster.find_planned_run(runner.state, job)
    try:
        found = None
        if planned is None:
            found = runner.run_all()
        elif not runner.state.is_finished(planned):
            runner.run_one(planned)
    except DtlError as fault:
        rate_failed = planned is not None and runner.state.is_finished(planned)
        if not rate_failed:
            cluster.record_job_end(job, exit_code=fault.exit_code)
            raise
    cluster.record_job_end(job, exit_code=0)
    return found


def _open_state(path: Path, overrides: Sequence[str], out: Path | None) -> ComparisonState:
    if not path.is_dir():
        config = load_config(path, overrides)
        assert config.run.name is not None
        return create_or_resume(config, out or COMPARISONS_FOLDER / config.run.name)
    if overrides or out is not None:
        raise DtlError.of(
            str(path),
            "is an existing comparison, whose grid cannot change",
            "pass its config to add seeds or time",
        )
    return ComparisonState.load(path)
