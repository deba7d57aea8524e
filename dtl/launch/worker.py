"""One process on a device: open the run, start the engine, do the job, close."""

from __future__ import annotations

import atexit
import ctypes
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

from dtl.core.errors import DtlError, RankFailed, RunFailed
from dtl.core.lock import Lease, TakenOver
from dtl.core.process_env import number_on_node, take_slurm_rank
from dtl.core.signals import STOPPED, Stop
from dtl.plan.records import OuterLaunch
from dtl.run.folder import RunFolder

if TYPE_CHECKING:
    from dtl.prepare import preparation
    from dtl.train.heartbeat import Watch

NODE_LOCAL = "DTL_NODE_LOCAL"  # a folder on the node's own disk; may name variables
COMPILERS = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TORCH_EXTENSIONS_DIR")
LEASE_SECONDS = 90.0  # of waiting for what a lost node has held
SUPERVISOR = "DTL_SUPERVISOR"  # the process that a launcher of ranks is a child of
USAGE = (
    "python -m dtl.launch.worker train CONFIG [key=value ...], or "
    "python -m dtl.launch.worker run RUN_FOLDER"
)


def main(
    arguments: list[str] | None = None, *, prepared: preparation.Prepared | None = None
) -> int:
    """Exit code: 0 done, 2 the user's fault, 1 a failure, 75 stopped and resumable.

    `prepared`: what a copy of the desk's process has at hand already.
    """
    given = arguments if arguments is not None else sys.argv[1:]
    take_slurm_rank(os.environ)
    cache_on_node(os.environ)
    terminal = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8", errors="replace")
    rank = int(os.environ.get("RANK", "0"))
    _end_with_launcher()
    try:
        with Stop(interrupts=True) as stop:
            return _work(given, terminal, rank, stop, prepared)
    except DtlError as fault:
        if rank == 0 or isinstance(fault, RankFailed):
            print(fault, file=terminal, flush=True)
        return fault.exit_code
    except Exception as failure:
        traceback.print_exc()
        reason = " ".join(str(failure).split())[:300]
        told = f"rank {rank} failed: {type(failure).__name__}: {reason}"
        print(told, file=terminal, flush=True)
        return 1


def _work(
    given: list[str],
    terminal: IO[str],
    rank: int,
    stop: Stop,
    prepared: preparation.Prepared | None,
) -> int:
    from dtl.prepare import preparation

    if len(given) == 2 and given[0] == "run":
        folder = RunFolder.open(given[1])
        log_to(folder.logs / f"rank-{rank}.log")
        try:
            prepared = prepared or preparation.reopen(folder, writes=rank == 0)
        except DtlError as fault:
            # A launcher asks the others to stop when one has died: that is a crash.
            folder.note_end(fault.exit_code, rank=rank)
            raise
        return _train(folder, prepared, None, stop, terminal)
    if len(given) < 2 or given[0] != "train":
        raise DtlError.of("command line", f"dtl.launch.worker cannot do {given}", USAGE)
    outer = outer_launch()
    prepared = preparation.prepare_file(given[1], given[2:], outer=outer, writes=rank == 0)
    folder = RunFolder.of(prepared.config)
    begun = preparation.holds(folder, prepared.config)
    if begun and folder.state == "finished":
        if rank == 0:
            print(f"{folder.path} is finished; nothing to do", file=terminal, flush=True)
        return 0
    if begun:
        preparation.refuse_other_data(folder, prepared.examples)
    else:
        preparation.refuse_used(folder, prepared.config)
    return _train(folder, prepared, outer, stop, terminal)


def _train(
    folder: RunFolder,
    prepared: preparation.Prepared,
    outer: OuterLaunch | None,
    stop: Stop,
    terminal: IO[str],
) -> int:
    from dtl.jobs.train import Process, run
    from dtl.train.heartbeat import Watch
    from dtl.train.setup import start_engine

    stop.interrupts = False  # from here on all ranks stop together
    layout = prepared.plan.layout
    _settle(processes=layout.processes, device=layout.device, alone=layout.zero > 0)
    engine = start_engine(prepared.config, prepared.plan)
    tell = partial(print, file=terminal, flush=True)
    tell_once = tell if engine.is_first else _say_nothing
    watch = Watch(folder.heartbeats, rank=engine.rank, ranks=engine.ranks, tell=tell)
    try:
        if outer is not None:
            _begin(folder, prepared, outer, engine.is_first, tell_once)
            engine.barrier()
            log_to(folder.logs / f"rank-{engine.rank}.log")
        wait = LEASE_SECONDS if "SLURM_JOB_ID" in os.environ else 0.0
        mine = Lease(folder.path, wait=wait) if engine.is_first else nullcontext()
        with mine as lease, watch:
            engine.barrier()  # no rank goes on before the folder is ours
            process = Process(
                terminal if engine.is_first else None,
                watch,
                asked_to_stop=lambda: stop.asked,
                held=lease.hold if lease is not None else _hold_nothing,
            )
            with _local_faults(prepared, watch):
                outcome = run(folder, engine, prepared.examples, process)
            code = 0 if outcome.end == "done" else STOPPED
            if engine.is_first:
                folder.note_end(code)
        if code == STOPPED:
            step = outcome.progress.step
            tell_once(f"stopped after step {step}, saved; `dtl resume {folder.path}` continues")
    except RankFailed as fault:
        folder.note_end(fault.exit_code)
        raise  # without closing: the others are in the middle of something and would not come
    except DtlError as fault:
        if engine.is_first and isinstance(fault, RunFailed) and not isinstance(fault, TakenOver):
            folder.note_end(fault.exit_code)
        engine.close()
        raise
    engine.close()
    return code


@contextmanager
def _local_faults(prepared: preparation.Prepared, watch: Watch) -> Iterator[None]:
    """What one rank meets alone and starting again would not fix: no memory, a full disk."""
    from dtl.plan.memory_advice import relief, wants_disk, wants_memory
    from dtl.train.log import memory_line

    try:
        yield
    except Exception as fault:
        if wants_disk(fault):
            place, found = _place_of(fault, prepared), f"the disk is full, in {watch.doing}"
            fix = "make room, then resume: the newest checkpoint is whole"
        elif wants_memory(fault):
            place = f"rank {os.environ.get('RANK', '0')}"
            found = f"out of memory in {watch.doing}; {memory_line()}"
            fix = relief(prepared.plan, doing=watch.doing)
        else:
            raise
        traceback.print_exc()
        raise RankFailed.of(place, found, fix) from fault


def _place_of(fault: Exception, prepared: preparation.Prepared) -> str:
    return str(getattr(fault, "filename", None) or prepared.config.run.dir)


def _begin(
    folder: RunFolder,
    prepared: preparation.Prepared,
    outer: OuterLaunch,
    is_first: bool,
    tell: Callable[[str], None],
) -> None:
    """Under an outer launcher there was no desk: rank 0 makes the folder, or lays it out anew."""
    layout, examples = prepared.plan.layout, prepared.examples
    tell(
        f"{outer.launcher} fixes the layout: {layout.ranks} ranks, ZeRO {layout.zero}, "
        f"{layout.accumulation} x {layout.micro_batch} examples a rank"
    )
    if is_first and folder.state == "absent":
        for line in examples.lines():
            tell(line)
        skipped = examples.skipped_rows()
        folder.create(
            prepared.config,
            prepared.plan,
            examples.facts,
            examples.data,
            skipped=skipped,
            batching=examples.batching,
        )
    elif is_first:
        folder.lay_out_anew(prepared.config, prepared.plan)


def _say_nothing(_: str) -> None:
    return None


def _hold_nothing() -> None:
    return None


def end_with_parent(parent: int | None = None) -> None:
    """When the process that started this one is killed, die with it: no orphan trains on.

    `parent`: its number; where it has been killed already, this one ends at once.
    """
    if sys.platform != "linux":
        return
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of Linux's prctl(2)
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def _end_with_launcher() -> None:
    """A rank that `dtl train` started ends with its launcher, which is a child of the supervisor's;
    also when that was killed while this one came up."""
    end_with_parent()
    supervisor = os.environ.get(SUPERVISOR)
    if supervisor is not None and sys.platform == "linux":
        try:
            status = Path(f"/proc/{os.getppid()}/stat").read_text(encoding="utf-8")
        except OSError:
            os._exit(1)
        if status.rpartition(")")[2].split()[1] != supervisor:
            os._exit(1)


def cache_on_node(environment: MutableMapping[str, str]) -> None:
    """Compilers keep what they make on the node's own disk, apart for each job: a lock that a
    killed one has left would stop the next. Removed at the end by the first rank of the node."""
    place = os.path.expandvars(environment.get(NODE_LOCAL, ""))
    if not place or "$" in place:
        return
    folder = Path(place) / f"dtl-{os.getuid()}-{environment.get('SLURM_JOB_ID', os.getpid())}"
    for name in COMPILERS:
        environment.setdefault(name, str(folder / name.lower()))
    if number_on_node(environment) == 0:
        atexit.register(shutil.rmtree, folder, ignore_errors=True)


def outer_launch() -> OuterLaunch:
    """The layout that `accelerate launch` or torchrun has left in the environment."""
    environment = os.environ
    zero = None
    offload = None
    by_accelerate = any(name.startswith("ACCELERATE_") for name in environment)
    if environment.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        zero = int(environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))
        where = environment.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none")
        offload = "optimizer" if where != "none" else "none"
    elif by_accelerate:
        zero = 0
    return OuterLaunch(
        launcher="accelerate launch" if by_accelerate else "the outer launcher",
        ranks=int(environment.get("WORLD_SIZE", "1")),
        ranks_a_node=int(environment.get("LOCAL_WORLD_SIZE", environment.get("WORLD_SIZE", "1"))),
        zero=zero,
        offload=offload,
    )


def _settle(*, processes: int, device: str, alone: bool) -> None:
    """Threads, and what a process group reads of the environment when nobody launched us."""
    import torch

    from dtl.core.process_env import free_port, threads

    if device == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or threads(processes)))
    if alone and "RANK" not in os.environ:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        os.environ.update({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", **address})
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def log_to(path: Path) -> None:
    """From here on all that this process prints, from C too, goes to that file."""
    sys.stdout.flush()
    sys.stderr.flush()
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def _exit(code: int) -> None:
    """As sys.exit, but without taking Python down: a library's thread that comes back meanwhile
    would abort the process, and a tracker that is still busy would hold it up."""
    from dtl.train.trackers import is_left_behind

    if not is_left_behind():
        atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _exit(main())
