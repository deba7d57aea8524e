"""The same as the command line, from a notebook or a script."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dtl.config.load import load_config
from dtl.config.schema import RunConfig
from dtl.errors import DtlError
from dtl.lease import holder_here
from dtl.plan import Plan
from dtl.run_folder import RunFolder

if TYPE_CHECKING:
    from dtl.desk import Prepared

__all__ = ["Outcome", "load_config", "load_run", "plan", "resume", "train"]

RESTARTS = 3  # after a crash
SAME_STEP = 3  # crashes after one and the same step: it would crash again
CRASHED = -1


@dataclass(frozen=True)
class Outcome:
    """How a command ended: 0 done, 1 the run failed, 75 stopped early and resumable."""

    exit_code: int
    run: RunFolder


def plan(config: RunConfig) -> Plan:
    """What `train` would launch, and why. Reads the data; starts nothing."""
    from dtl.desk import prepare_run

    return prepare_run(config).plan


def load_run(path: str | Path) -> RunFolder:
    """A run folder: its config, plan, metrics and result."""
    return RunFolder.open(path)


def train(config: RunConfig, *, say: Callable[[str], None] = print, fork: bool = False) -> Outcome:
    """Validate, plan, launch on this machine, train, score, export.

    A finished run of the same config is left as it is; an interrupted one goes on. `fork`: a single
    process may be a copy of this one, which saves seconds; never where torch has computed before,
    since its threads do not live on in a copy. Raises DtlError for the user's faults.
    """
    from dtl import desk

    folder = RunFolder.of(config)
    if desk.holds(folder, config):
        return resume(folder.path, _layout_of(config, folder), say=say, fork=fork)
    desk.refuse_used(folder, config)
    if config.layout.nodes > 1:
        raise DtlError.of(
            "layout.nodes",
            f"`dtl train` starts this machine alone, not {config.layout.nodes}",
            "start each with `accelerate launch --config_file launch/two_nodes.yaml`",
        )
    prepared = desk.prepare_run(config)
    for line in prepared.plan.lines():
        say(line)
    examples = prepared.examples
    for line in examples.lines():
        say(line)
    skipped = examples.skipped_rows()
    folder.create(config, prepared.plan, examples.facts, examples.data, skipped=skipped)
    return Outcome(_launch(folder, say, prepared, fork=fork), folder)


def resume(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    allow_change: Iterable[str] = (),
    say: Callable[[str], None] = print,
    fork: bool = False,
) -> Outcome:
    """Continue an interrupted run from its newest whole checkpoint; leave a finished one alone.

    Another layout (`layout.processes=4`) gives the same result. Keys that would change it are
    refused, unless they are named in `allow_change`. Raises DtlError.
    """
    from dtl import desk

    folder = RunFolder.open(path)
    if folder.state == "finished":
        say(f"{folder.path} is finished; nothing to do")
        return Outcome(0, folder)
    say(f"{folder.path} was interrupted; it goes on")
    prepared = None
    if overrides:
        config = desk.reconfigure(folder, overrides, allow_change=frozenset(allow_change))
        prepared = desk.prepare_run(config)
        desk.refuse_other_data(folder, prepared.examples)
        folder.lay_out_anew(config, prepared.plan)
        for line in prepared.plan.lines():
            say(line)
    return Outcome(_launch(folder, say, prepared, fork=fork), folder)


def _layout_of(config: RunConfig, folder: RunFolder) -> list[str]:
    """Overrides that give a begun run the layout that the config now asks for."""
    if folder.state == "finished" or folder.config.layout == config.layout:
        return []
    asked = config.layout.model_dump(mode="json")
    return [f"layout.{key}={'null' if value is None else value}" for key, value in asked.items()]


def _launch(
    folder: RunFolder, say: Callable[[str], None], prepared: Prepared | None, *, fork: bool
) -> int:
    """Start the processes; after a crash start them again from the newest checkpoint."""
    stuck_at: list[int] = []
    for restart in range(RESTARTS + 1):
        code = _launch_once(folder, prepared, fork=fork)
        if code != CRASHED:
            return code
        stuck_at.append(folder.last_step)
        if stuck_at[-SAME_STEP:] == [stuck_at[-1]] * SAME_STEP:
            say(f"crashed {SAME_STEP} times after step {stuck_at[-1]}; see {folder.logs}")
            return 1
        if restart < RESTARTS:
            pause = 2.0**restart
            say(f"crashed after step {stuck_at[-1]}; starting again in {pause:.0f} s")
            time.sleep(pause)
    say(f"crashed {RESTARTS + 1} times; see {folder.logs}, then `dtl resume {folder.path}`")
    return 1


def _launch_once(folder: RunFolder, prepared: Prepared | None, *, fork: bool) -> int:
    folder.note_end(None)
    copied = fork and folder.plan.layout.ranks == 1
    code = _fork(folder, prepared) if copied else _accelerate_launch(folder)
    if folder.state == "finished":
        return 0
    return code if code == 2 else folder.ended if folder.ended is not None else CRASHED


def _fork(folder: RunFolder, prepared: Prepared | None) -> int:
    """One process needs no launcher: a copy of this one, which has all it needs at hand already."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            from dtl import worker

            code = worker.main(["run", str(folder.path)], prepared=prepared)
        finally:
            os._exit(code)
    with _forwarding(folder, child):
        _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _accelerate_launch(folder: RunFolder) -> int:
    from dtl.launch import command
    from dtl.worker import end_with_parent

    started = command(folder)
    with (folder.logs / "launcher.log").open("ab") as log:
        process = subprocess.Popen(
            started.argv,
            env={**os.environ, **started.environment},
            stderr=log,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        with _forwarding(folder, process.pid):
            return process.wait()


class _forwarding:
    """While a run goes on, what would end this process asks the run to save and end first.

    Rank 0 is asked, and tells the others. A launcher would give them 30 s, which a large save may
    not keep; it is asked only while there is no rank 0 yet.
    """

    def __init__(self, folder: RunFolder, child: int) -> None:
        self.folder, self.child = folder, child

    def __enter__(self) -> None:
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
        self.before = {number: signal.signal(number, self._pass_on) for number in signals}

    def _pass_on(self, *_: object) -> None:
        os.kill(holder_here(self.folder.path) or self.child, signal.SIGTERM)

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
