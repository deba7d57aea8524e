"""Starts or continues a comparison: all of it, one of its runs, or its jobs on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dtl.compare import slurm_arrays
from dtl.compare.records import Comparison
from dtl.compare.run import Runner, create_or_resume
from dtl.compare.slurm_arrays import QueueOptions
from dtl.compare.state import ComparisonState
from dtl.config.load import load_config
from dtl.core.errors import DtlError

COMPARISONS_FOLDER = Path("comparisons")


@dataclass(frozen=True)
class StartOptions:
    """What to start. `out`: the folder of a new comparison; None: comparisons/NAME. `cell`: run
    only this run, counted from 1. `only_list`: list the runs. `queue`: submit all runs there.
    `job`: run the part of this job folder, inside a cluster job."""

    out: Path | None = None
    cell: int | None = None
    only_list: bool = False
    queue: QueueOptions | None = None
    job: Path | None = None


def start(
    path: Path,
    overrides: Sequence[str],
    options: StartOptions,
    *,
    print_line: Callable[[str], None] = print,
    can_fork: bool = True,
) -> Comparison | None:
    """Start or continue a comparison. `path`: a config, or the folder of a comparison. Return its
    results, or None if the options select only a part. Raises DtlError; StoppedEarly after a stop
    signal, and the same call continues."""
    state = _open_state(path, overrides, options.out)
    planned_runs = state.grid.planned_runs
    if options.only_list:
        for number, planned in enumerate(planned_runs, start=1):
            print_line(f"{number:>4}  {planned.name}")
        return None
    if options.queue is not None:
        _submit(options.queue, state, print_line)
        return None
    runner = Runner(state, print_line, can_fork)
    if options.job is not None:
        return _run_job(runner, options.job)
    slurm_arrays.check_not_queued(state)
    if options.cell is None:
        return runner.run_all()
    total = len(planned_runs)
    if options.cell > total:
        raise DtlError.of(
            "--cell", f"the comparison has {total} runs", f"use a number from 1 to {total}"
        )
    runner.run_one(planned_runs[options.cell - 1])
    return None


def _submit(queue: QueueOptions, state: ComparisonState, print_line: Callable[[str], None]) -> None:
    ids = slurm_arrays.submit(state, queue)
    for number in dict.fromkeys(one.partition("_")[0] for one in ids):
        print_line(f"job {number}: {state.folder}")
    print_line(f"`dtl compare {state.folder}` shows the results after job {ids[-1]}")


def _run_job(runner: Runner, job: Path) -> Comparison | None:
    """Run the part of a cluster job and record its exit code. A failed search run is no failure of
    its job, because the search continues without it."""
    planned = slurm_arrays.find_planned_run(runner.state, job)
    comparison = None
    try:
        if planned is None:
            comparison = runner.run_all()
        elif not runner.state.is_finished(planned):
            runner.run_one(planned)
    except DtlError as fault:
        is_failed_search = planned is not None and runner.state.is_finished(planned)
        if not is_failed_search:
            slurm_arrays.record_job_end(job, exit_code=fault.exit_code)
            raise
    slurm_arrays.record_job_end(job, exit_code=0)
    return comparison


def _open_state(path: Path, overrides: Sequence[str], out: Path | None) -> ComparisonState:
    """Create or load the state of a comparison."""
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
