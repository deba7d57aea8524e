"""One run under test: start its command, watch its files, find its processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.chaos.setup import EVALUATE_EVERY, Scenario, Setup
from dtl.launch.child_process import set_parent_death_signal

LIMIT_SECONDS = 240.0  # nothing here takes so long unless it hangs
END_SECONDS = 45.0  # a launcher gives its ranks 30 s
LAUNCHERS = {"accelerate.commands.launch", "torch.distributed.run"}
POLL_SECONDS = 0.001


class TimedOut(Exception):
    """A wait that took longer than its limit."""


@dataclass(frozen=True)
class Processes:
    """The process ids of a run."""

    supervisor: int | None
    launcher: int | None
    ranks: dict[int, int]

    @property
    def all(self) -> list[int]:
        processes = [self.supervisor, self.launcher, *self.ranks.values()]
        return [process for process in processes if process is not None]

    def ids_of(self, victim: str) -> list[int]:
        """Return the process ids of a victim; none where it is not running."""
        if victim == "all":
            return self.all
        if victim.startswith("rank "):
            rank = self.ranks.get(int(victim.removeprefix("rank ")))
            return [] if rank is None else [rank]
        one = self.supervisor if victim == "supervisor" else self.launcher
        return [] if one is None else [one]


@dataclass
class Run:
    """A command that may be started several times, and the folder that it writes."""

    setup: Setup
    workdir: Path
    scenario: Scenario
    overrides: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    argv: tuple[str, ...] = ()  # another command than dtl's
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    stale_saves: set[tuple[str, int]] = field(
        default_factory=set
    )  # staged folders of dead processes
    start_step: int = 0
    _read: tuple[int, dict[str, Any]] = (-1, {})  # size of the log, its last line

    @property
    def folder(self) -> Path:
        return self.workdir / "runs" / "run"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def output(self) -> str:
        """All that the command has printed."""
        path = self.workdir / "output.txt"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    @property
    def last_output(self) -> str:
        """The end of its output, in one line."""
        return " ".join(self.output.split())[-250:]

    def command(self) -> list[str]:
        """Return the command: of dtl, unless `argv` is set."""
        if self.argv:
            return list(self.argv)
        arguments = [*self.scenario.arguments(), *self.overrides, "run.name=run"]
        return [sys.executable, "-m", "dtl", "train", str(self.setup.config), *arguments]

    def start(self) -> None:
        """Start the command."""
        self.workdir.mkdir(parents=True, exist_ok=True)
        self.record_stale_saves()
        self.starts += 1
        with (self.workdir / "output.txt").open("ab") as output:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.workdir,
                env={**self.setup.environment(self.mark), **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=set_parent_death_signal,  # ending the trials ends their runs
            )

    @property
    def exit_code(self) -> int | None:
        """None while the command runs."""
        assert self.process is not None
        return self.process.poll()

    def wait(self, seconds: float = LIMIT_SECONDS) -> int:
        """Return the exit code of the command. Raises TimedOut."""
        assert self.process is not None
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise TimedOut(f"the command did not end within {seconds:.0f} s") from None

    def wait_until(self, condition: Callable[[], bool], seconds: float = LIMIT_SECONDS) -> bool:
        """Wait for a condition; return False when the command ended first. Raises TimedOut."""
        limit = time.monotonic() + seconds
        while not condition():
            if self.exit_code is not None:
                return condition()
            if time.monotonic() > limit:
                raise TimedOut(f"nothing happened for {seconds:.0f} s")
            time.sleep(POLL_SECONDS)
        return True

    def last_line(self) -> dict[str, Any]:
        """Return the newest complete line of the log."""
        try:
            with (self.folder / "metrics.jsonl").open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size != self._read[0]:
                    file.seek(max(0, size - 4096))
                    lines = [line for line in file.read().split(b"\n")[:-1] if line[-1:] == b"}"]
                    self._read = (size, dict(json.loads(lines[-1])) if lines else {})
            return self._read[1]
        except (OSError, ValueError):
            return {}

    @property
    def step(self) -> int:
        """The newest step in the log."""
        return int(self.last_line().get("step", 0))

    @property
    def is_finished(self) -> bool:
        return (self.folder / "result.json").exists()

    @property
    def is_saving(self) -> bool:
        """Whether a save is in progress that no ended process has left behind."""
        return bool(self._staged() - self.stale_saves)

    @property
    def is_exporting(self) -> bool:
        return any(self.folder.glob(".export*"))

    @property
    def phase(self) -> str:
        """What the run does now, by its files."""
        if self.is_finished:
            return "finished"
        if not (self.folder / "run.json").exists():
            return "supervisor"
        if self.is_saving:
            return "save"
        if self.is_exporting:
            return "export"
        line = self.last_line()
        step = int(line.get("step", 0))
        if step >= self.scenario.steps:
            return "after the last step"
        if step <= self.start_step:
            return "start-up"
        return "evaluation" if is_before_evaluation(line) else "steps"

    def _staged(self) -> set[tuple[str, int]]:
        try:
            with os.scandir(self.checkpoints) as entries:
                staged = [entry for entry in entries if entry.name.startswith(".staged-")]
            return {(entry.name, entry.stat().st_ctime_ns) for entry in staged}
        except OSError:
            return set()

    def record_stale_saves(self) -> None:
        """Record the unfinished saves and the step of processes that have all ended."""
        self.stale_saves = self._staged()
        self.start_step = self.step

    def processes(self) -> Processes:
        """Return the running processes by their role."""
        assert self.process is not None
        supervisor = self.process.pid if self.exit_code is None else None
        launcher: int | None = None
        ranks: dict[int, int] = {}
        for child in _descendants(supervisor):
            try:
                words, rank = child.cmdline(), child.environ().get("RANK")
            except psutil.Error:
                continue
            if rank is not None:
                ranks.setdefault(int(rank), child.pid)  # not a rank's own children
            elif launcher is None and not LAUNCHERS.isdisjoint(words):
                launcher = child.pid
        return Processes(supervisor, launcher, ranks)

    def running_processes(self) -> list[psutil.Process]:
        """Return every process of this machine with the mark of this run."""
        running = []
        for process in psutil.process_iter():
            try:
                marked = process.environ().get("CHAOS_MARK") == self.mark
                if marked and process.status() != psutil.STATUS_ZOMBIE:
                    running.append(process)
            except psutil.Error:
                continue
        return running

    def wait_for_ranks(self, ranks: int = 2) -> Processes | None:
        """Wait until all ranks run; return None when the command ended first."""
        limit = time.monotonic() + LIMIT_SECONDS
        while time.monotonic() < limit:
            processes = self.processes()
            if len(processes.ranks) == ranks:
                return processes
            if processes.supervisor is None:
                return None
            time.sleep(0.05)
        raise TimedOut("the ranks were not started")

    def wait_until_ended(self, processes: list[int], seconds: float = END_SECONDS) -> list[int]:
        """Wait until these have ended; return those that still run after the limit."""
        limit = time.monotonic() + seconds
        while left := [process for process in processes if _is_running(process)]:
            if time.monotonic() > limit:
                return left
            if self.process is not None:
                self.process.poll()
            time.sleep(0.005)
        return []

    def find_leftovers(self, seconds: float = END_SECONDS) -> list[str]:
        """Describe the processes that still run some time after the command has ended."""
        limit = time.monotonic() + seconds
        while left := self.running_processes():
            if time.monotonic() > limit:
                return [f"process {process.pid} still runs" for process in left]
            time.sleep(0.02)
        return []

    def kill_all(self) -> None:
        """Kill all processes of this run."""
        for process in self.running_processes():
            kill(process.pid, signal.SIGCONT)
            kill(process.pid, signal.SIGKILL)
        if self.process is not None:
            self.process.wait(timeout=END_SECONDS)

    def remove(self) -> None:
        """Remove the folder of the trial."""
        shutil.rmtree(self.workdir, ignore_errors=True)


def is_before_evaluation(line: dict[str, Any]) -> bool:
    """Whether the newest line is that of a step after which the model is scored."""
    return line.get("kind") == "train" and int(line["step"]) % EVALUATE_EVERY == 0


def kill(process: int, number: signal.Signals) -> bool:
    """Send a signal; return False where the process has ended."""
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return False
    return True


def _descendants(process: int | None) -> list[psutil.Process]:
    """Return the children of a process and theirs."""
    try:
        return psutil.Process(process).children(recursive=True) if process else []
    except psutil.Error:
        return []


def _is_running(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
