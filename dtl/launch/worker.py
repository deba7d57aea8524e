"""One rank of a run: open the run, start the engine, train, and report how it ended."""

from __future__ import annotations

import atexit
import os
import sys
import traceback
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import IO, TYPE_CHECKING

from dtl.core.checksums import DamagedFolder
from dtl.core.errors import DtlError, RankFailed, RunFailed
from dtl.core.lock import Lease, LeaseLost, is_held
from dtl.core.process_env import get_local_rank, set_rank_from_slurm
from dtl.core.signals import STOPPED, Stop, exit_on_signal
from dtl.launch.child_process import exit_when_launcher_dies, redirect_output
from dtl.launch.external_launcher import read_external_launch
from dtl.launch.launched_task import set_rank_from_launcher
from dtl.launch.leftover_processes import check_rendezvous_port, find_leftover_ranks
from dtl.launch.rank_environment import (
    set_allocator,
    set_compiler_caches,
    set_threads,
)
from dtl.launch.rank_failures import report_resource_failures
from dtl.plan.records import ExternalLaunch
from dtl.run.folder import RunFolder

if TYPE_CHECKING:
    from dtl.engine.base import Engine
    from dtl.prepare.prepared_run import PreparedRun
    from dtl.train.heartbeat import Watchdog

LEASE_SECONDS = 90.0  # how long to wait for the lock of a lost node to expire
MAX_REASON = 300  # characters of an error that are printed on the terminal
USAGE = (
    "python -m dtl.launch.worker train CONFIG [key=value ...], or "
    "python -m dtl.launch.worker run RUN_FOLDER"
)


@dataclass(frozen=True)
class _RankRun:
    """A run, as one rank has opened it. `external`: None where the run folder fixes the layout."""

    folder: RunFolder
    prepared: PreparedRun
    external: ExternalLaunch | None


def main(arguments: list[str] | None = None, *, prepared: PreparedRun | None = None) -> int:
    """Run one rank, and return its exit code.

    Exit codes: 0 done, 2 the user must fix something, 1 a failure, 75 stopped and resumable.
    `prepared`: what a forked copy of the submitting process already has.
    """
    arguments = arguments if arguments is not None else sys.argv[1:]
    # 1. Environment and output.
    terminal = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8", errors="replace")
    exit_when_launcher_dies()
    rank = 0
    try:
        rank = _set_environment(arguments)
        with Stop(interrupts=True) as stop:
            # 2. Open the run.
            run = _open_run(arguments, terminal, rank, prepared)
            # 3. Train.
            return 0 if run is None else _train(run, stop, terminal)
    except DtlError as fault:
        if rank == 0 or isinstance(fault, RankFailed):
            print(fault, file=terminal, flush=True)
        return fault.exit_code
    except Exception as error:
        traceback.print_exc()
        reason = " ".join(str(error).split())[:MAX_REASON]
        message = f"rank {rank} failed: {type(error).__name__}: {reason}"
        print(message, file=terminal, flush=True)
        return 1


def _set_environment(arguments: list[str]) -> int:
    """Set the variables of this rank, and return its number. Raises DtlError."""
    set_rank_from_slurm(os.environ)
    if arguments[:1] == ["train"]:
        set_rank_from_launcher(os.environ)
    set_compiler_caches(os.environ)
    set_allocator(os.environ)
    return int(os.environ.get("RANK", "0"))


def _open_run(
    arguments: list[str], terminal: IO[str], rank: int, prepared: PreparedRun | None
) -> _RankRun | None:
    """Return the run that the command line names; None where it is finished. Raises DtlError."""
    if len(arguments) == 2 and arguments[0] == "run":
        return _open_folder(arguments[1], rank, prepared)
    if len(arguments) >= 2 and arguments[0] == "train":
        return _open_config(arguments[1], arguments[2:], terminal, rank)
    raise DtlError.of("command line", f"invalid arguments: {' '.join(arguments)}", USAGE)


def _open_folder(path: str, rank: int, prepared: PreparedRun | None) -> _RankRun:
    """Open a run folder that the submitting process has made."""
    from dtl.prepare import prepared_run

    folder = RunFolder.open(path)
    redirect_output(folder.logs / f"rank-{rank}.log")
    try:
        prepared = prepared or prepared_run.reopen_run(folder, writes=rank == 0)
    except DtlError as fault:
        # A launcher stops the other ranks when one has died, and that looks like a crash.
        if not isinstance(fault, DamagedFolder):
            folder.write_exit_code(fault.exit_code, rank=rank)
        raise
    return _RankRun(folder, prepared, external=None)


def _open_config(
    config: str, overrides: list[str], terminal: IO[str], rank: int
) -> _RankRun | None:
    """Prepare a run under an external launcher: no process has made its folder before."""
    from dtl.prepare import prepared_run

    external = read_external_launch(os.environ)
    prepared = prepared_run.prepare_config_file(
        config, overrides, external=external, writes=rank == 0
    )
    folder = RunFolder.from_config(prepared.config)
    exists = prepared_run.has_same_run(folder, prepared.config)
    if exists and folder.state == "finished":
        if rank == 0:
            print(f"{folder.path} is finished; nothing to do", file=terminal, flush=True)
        return None
    if exists:
        prepared_run.check_data_unchanged(folder, prepared)
    else:
        prepared_run.check_unused(folder, prepared.config)
    return _RankRun(folder, prepared, external)


def _train(run: _RankRun, stop: Stop, terminal: IO[str]) -> int:
    """Train on this rank, and return its exit code."""
    from dtl.train.heartbeat import Watchdog

    layout, rank = run.prepared.plan.layout, int(os.environ.get("RANK", "0"))
    set_threads(processes=layout.processes_per_node, device=layout.device)
    print_line = partial(print, file=terminal, flush=True)
    # While another process holds the folder, its ranks write their heartbeats there.
    may_write = run.folder.state != "absent" and not is_held(run.folder.path)
    watchdog = Watchdog(
        run.folder.heartbeats if may_write else None,
        rank=rank,
        world_size=layout.world_size,
        print_line=print_line,
    )
    with watchdog:
        engine = _start_engine(run, stop, watchdog)
        try:
            end, step = _train_with_lock(run, engine, watchdog, stop, terminal)
            if end == STOPPED and engine.is_main_process:
                print_line(
                    f"stopped after step {step}, saved; to continue, run "
                    f"`dtl resume {run.folder.path}`"
                )
        except RankFailed as fault:
            if not isinstance(fault, DamagedFolder):  # a restart makes a folder of the cache again
                run.folder.write_exit_code(fault.exit_code)
            # Without closing: the other ranks are in a step and would not join the collective.
            raise
        except DtlError as fault:
            is_failure = isinstance(fault, RunFailed) and not isinstance(fault, LeaseLost)
            if engine.is_main_process and is_failure:
                run.folder.write_exit_code(fault.exit_code)
            engine.close()
            raise
        _report(run, watchdog, "leaving the process group")
        engine.close()
    return end


def _start_engine(run: _RankRun, stop: Stop, watchdog: Watchdog) -> Engine:
    """Start the engine: until all ranks are there, a signal ends this one at once."""
    from dtl.train.setup import start_engine

    check_rendezvous_port(os.environ)
    if run.prepared.plan.layout.device == "cuda" and get_local_rank(os.environ) == 0:
        for each in find_leftover_ranks():
            watchdog.print_line(f"warning: {each} is a rank of another run")
    _report(run, watchdog, "joining the process group")
    with exit_on_signal():
        stop.interrupts = False  # afterwards one stops all ranks together, after a save
        return start_engine(run.prepared.config, run.prepared.plan)


def _report(run: _RankRun, watchdog: Watchdog, activity: str) -> None:
    """Report a phase outside of training to the watchdog."""
    watchdog.heartbeat(activity, timeout=run.prepared.config.train.loading_hang_seconds)


def _train_with_lock(
    run: _RankRun, engine: Engine, watchdog: Watchdog, stop: Stop, terminal: IO[str]
) -> tuple[int, int]:
    """Return the exit code, and the last step."""
    from dtl.jobs.train import run as run_job
    from dtl.train.process import ProcessContext

    folder = run.folder
    if run.external is not None:
        _create_folder(run, run.external, engine, terminal)
    _report(run, watchdog, "waiting for the lock of the run folder")
    wait = LEASE_SECONDS if "SLURM_JOB_ID" in os.environ else 0.0
    lock = Lease(folder.path, wait=wait) if engine.is_main_process else nullcontext()
    with lock as lease:
        engine.barrier()  # no rank continues before rank 0 holds the lock
        if engine.broadcast_object(folder.state == "finished"):  # while this process waited
            if engine.is_main_process:
                print(f"{folder.path} is finished; nothing to do", file=terminal, flush=True)
            return 0, folder.last_step
        watchdog.write_to(folder.heartbeats)
        if engine.is_main_process:
            folder.remove_leftovers()
        if run.external is not None:
            _write_plan(run, engine)
        process = ProcessContext(
            terminal if engine.is_main_process else None,
            watchdog,
            is_stop_requested=lambda: stop.is_requested,
            check_lease=lease.check if lease is not None else _check_nothing,
        )
        with report_resource_failures(run.prepared, watchdog):
            result = run_job(folder, engine, run.prepared.data, process)
        code = 0 if result.end == "done" else STOPPED
        if engine.is_main_process:
            folder.write_exit_code(code)
    return code, result.progress.step


def _create_folder(
    run: _RankRun, external: ExternalLaunch, engine: Engine, terminal: IO[str]
) -> None:
    """Have rank 0 create the run folder of an external launcher, unless it exists; wait for it."""
    folder, prepared = run.folder, run.prepared
    layout = prepared.plan.layout
    if engine.is_main_process:
        line = (
            f"layout set by {external.launcher}: {engine.world_size} ranks, ZeRO "
            f"{layout.zero_stage}, {layout.accumulation_steps} x {layout.micro_batch} examples per "
            "rank"
        )
        print(line, file=terminal, flush=True)
        if folder.state == "absent":
            from dtl.prepare import prepared_run

            for line in prepared.data.format_lines():
                print(line, file=terminal, flush=True)
            prepared_run.write_run(folder, prepared)
    engine.barrier()
    redirect_output(folder.logs / f"rank-{engine.rank}.log")


def _write_plan(run: _RankRun, engine: Engine) -> None:
    """Have rank 0 write the layout of this launch into the run folder, which it has locked."""
    if engine.is_main_process:
        from dtl.prepare import prepared_run

        prepared_run.write_run(run.folder, run.prepared)
    engine.barrier()


def _check_nothing() -> None:
    return None


def exit_process(code: int) -> None:
    """Exit without interpreter shutdown (os._exit).

    Unlike after sys.exit, a library's thread that wakes up meanwhile cannot abort the process, and
    a tracker that is still busy cannot delay it.
    """
    from dtl.train.tracker_queue import is_any_thread_alive

    if not is_any_thread_alive():
        atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    exit_process(main())
