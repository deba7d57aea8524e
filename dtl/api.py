"""The same as the command line, from a notebook or a script."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dtl.config.load import load_config
from dtl.config.schema import RunConfig
from dtl.plan import Plan
from dtl.run_folder import RunFolder

__all__ = ["Outcome", "load_config", "load_run", "plan", "resume", "train"]

STOPPED = 75


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


def train(config: RunConfig, *, say: Callable[[str], None] = print) -> Outcome:
    """Validate, plan, launch on this machine, train, score, export.

    A finished run of the same config is left as it is; an interrupted one goes on. Raises DtlError
    for the user's faults.
    """
    from dtl import desk

    folder = RunFolder.of(config)
    if desk.holds(folder, config):
        return resume(folder.path, _layout_of(config, folder), say=say)
    desk.refuse_used(folder, config)
    prepared = desk.prepare_run(config)
    for line in prepared.plan.lines():
        say(line)
    say(prepared.examples.train.census.line("train"))
    if prepared.examples.held_out is not None:
        say(prepared.examples.held_out.census.line("held out"))
    folder.create(config, prepared.plan, prepared.examples.facts)
    return Outcome(_launch(folder), folder)


def resume(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    allow_change: Iterable[str] = (),
    say: Callable[[str], None] = print,
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
    if overrides:
        config = desk.reconfigure(folder, overrides, allow_change=frozenset(allow_change))
        prepared = desk.prepare_run(config)
        folder.lay_out_anew(config, prepared.plan)
        for line in prepared.plan.lines():
            say(line)
    return Outcome(_launch(folder), folder)


def _layout_of(config: RunConfig, folder: RunFolder) -> list[str]:
    """Overrides that give a begun run the layout that the config now asks for."""
    if folder.state == "finished" or folder.config.layout == config.layout:
        return []
    asked = config.layout.model_dump(mode="json")
    return [f"layout.{key}={'null' if value is None else value}" for key, value in asked.items()]


def _launch(folder: RunFolder) -> int:
    folder.note_stop(None)
    return _fork(folder) if folder.plan.layout.ranks == 1 else _accelerate_launch(folder)


def _fork(folder: RunFolder) -> int:
    """One process needs no launcher: a copy of this one, which has everything imported already."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            from dtl import worker

            code = worker.main(["run", str(folder.path)])
        finally:
            os._exit(code)
    with _forwarding(child):
        _, status = os.waitpid(child, 0)
    return _judge(folder, os.waitstatus_to_exitcode(status))


def _accelerate_launch(folder: RunFolder) -> int:
    from dtl.launch import command

    started = command(folder)
    with (folder.logs / "launcher.log").open("ab") as log:
        process = subprocess.Popen(
            started.argv,
            env={**os.environ, **started.environment},
            stderr=log,
            start_new_session=True,
        )
        with _forwarding(process.pid):
            code = process.wait()
    return _judge(folder, code)


def _judge(folder: RunFolder, code: int) -> int:
    """Launchers have exit codes of their own; what the run folder says is what happened."""
    if folder.state == "finished":
        return 0
    if folder.stopped:
        return STOPPED
    return code if code == 2 else 1


class _forwarding:
    """While a child runs, what ends this process ends the child first, in good order."""

    def __init__(self, child: int) -> None:
        self.child = child

    def __enter__(self) -> None:
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
        self.before = {number: signal.signal(number, self._pass_on) for number in signals}

    def _pass_on(self, *_: object) -> None:
        os.kill(self.child, signal.SIGTERM)

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
