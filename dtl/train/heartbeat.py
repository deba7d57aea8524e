"""The heartbeat of each rank, and the watchdog that ends a run that hangs."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from dtl.core.files import write_text

HANG_EXIT_CODE = 70  # of a process that its watchdog has ended


@dataclass(frozen=True)
class Heartbeat:
    """What a rank was last doing.

    `count`: of heartbeats; all ranks make the same ones. `activity`: as text. `activity_start`,
    `last_alive`: when the activity began, and when this was written, in seconds since 1970.
    """

    rank: int
    host: str
    pid: int
    count: int
    activity: str
    activity_start: float
    last_alive: float


class Watchdog:
    """Ends this process when it makes no progress within its timeout.

    Its thread writes the heartbeat next to those of the other ranks. A rank that hangs blocks all
    of them, so each ends itself, with its stack in its log, and the first one prints which rank is
    late. Time in which the process was suspended does not count.

    `folder`: of the heartbeats; None until `write_to`, where this process may not write yet.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        rank: int,
        world_size: int,
        print_line: Callable[[str], None],
    ) -> None:
        self.folder, self.rank, self.world_size = folder, rank, world_size
        self.print_line = print_line
        self._lock = threading.Lock()
        self._heartbeat = Heartbeat(
            rank, socket.gethostname(), os.getpid(), 0, "start", time.time(), 0.0
        )
        self._timeout, self._idle_seconds = float("inf"), 0.0
        self._last_heartbeat = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        if self.folder is not None:
            self.write_to(self.folder)
        self._thread.start()
        return self

    def write_to(self, folder: Path) -> None:
        """Write the heartbeat to a folder from now on."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def activity(self) -> str:
        """What this rank is doing, as text."""
        return self._heartbeat.activity

    def heartbeat(self, activity: str, *, timeout: float) -> None:
        """Report progress; the next report must come within so many seconds."""
        with self._lock:
            self._heartbeat = replace(
                self._heartbeat,
                count=self._heartbeat.count + 1,
                activity=activity,
                activity_start=time.time(),
            )
            self._timeout, self._idle_seconds = timeout, 0.0
            self._last_heartbeat = time.monotonic()

    def _run(self) -> None:
        pause, before, is_stopped = 0.0, time.monotonic(), False
        while not is_stopped:
            with self._lock:
                # A pause longer than intended is a process that was suspended, not one that hangs.
                idle = time.monotonic() - max(before, self._last_heartbeat)
                self._idle_seconds += min(idle, 2 * pause)
                hangs = self._idle_seconds > self._timeout
                heartbeat = replace(self._heartbeat, last_alive=time.time())
                pause = max(0.05, min(1.0, self._timeout / 10))
            before = time.monotonic()
            if self.folder is not None:
                _write(self.folder / f"rank-{self.rank}.json", asdict(heartbeat))
            if hangs:
                self._end_process(heartbeat)
            is_stopped = self._stop.wait(pause)

    def _end_process(self, own: Heartbeat) -> None:
        heartbeats = [
            heartbeat
            for heartbeat in (read_heartbeats(self.folder) if self.folder is not None else [])
            if heartbeat.rank < self.world_size
        ] or [own]
        idle = self._idle_seconds
        message = (
            f"rank {own.rank} has made no progress for {idle:.0f} s in {own.activity}; "
            f"{describe_late_ranks(heartbeats, after=idle / 2)}; the stack of each rank is in its "
            "log"
        )
        print(message, file=sys.stderr, flush=True)
        faulthandler.dump_traceback(all_threads=True)
        lower = [heartbeat for heartbeat in heartbeats if heartbeat.rank < own.rank]
        if all(_is_silent(heartbeat, after=idle / 2) for heartbeat in lower):
            self.print_line(message)
        time.sleep(1.0)  # the others find the same: let them write their stacks
        for heartbeat in heartbeats:
            if _is_silent(heartbeat, after=idle / 2) and _is_sibling(heartbeat):
                os.kill(heartbeat.pid, signal.SIGKILL)  # a launcher would wait for it
        os._exit(HANG_EXIT_CODE)


def read_heartbeats(folder: Path) -> list[Heartbeat]:
    """Return the last heartbeat of each rank, in rank order."""
    heartbeats = []
    for file in folder.glob("rank-*.json"):
        try:
            heartbeats.append(Heartbeat(**json.loads(file.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError):  # being replaced, or of another version
            continue
    return sorted(heartbeats, key=lambda heartbeat: heartbeat.rank)


def describe_late_ranks(heartbeats: list[Heartbeat], *, after: float) -> str:
    """Return which ranks block the others: those that do not run, or else those that are behind.

    `after`: seconds without a heartbeat file after which a rank counts as not running.
    """
    silent = [heartbeat for heartbeat in heartbeats if _is_silent(heartbeat, after=after)]
    lowest = min((heartbeat.count for heartbeat in heartbeats), default=0)
    last = [heartbeat for heartbeat in heartbeats if heartbeat.count == lowest]
    if silent:
        return f"no sign of life from {_format_ranks(silent)}"
    if len(last) == len(heartbeats):
        return "all ranks are at the same point"
    return f"behind the others is {_format_ranks(last)}"


def _is_silent(heartbeat: Heartbeat, *, after: float) -> bool:
    return abs(time.time() - heartbeat.last_alive) > after  # a clock may have been set back


def _is_sibling(heartbeat: Heartbeat) -> bool:
    """Return whether the process of a heartbeat still runs and has the same parent as this one."""
    import psutil

    try:
        is_other = heartbeat.host == socket.gethostname() and heartbeat.pid != os.getpid()
        return is_other and psutil.Process(heartbeat.pid).ppid() == os.getppid()
    except psutil.Error:
        return False


def _format_ranks(heartbeats: list[Heartbeat]) -> str:
    return ", ".join(f"rank {each.rank} on {each.host} ({each.activity})" for each in heartbeats)


def _write(path: Path, value: dict[str, Any]) -> None:
    """Write a file atomically. A full disk must not end the watchdog."""
    try:
        write_text(path, json.dumps(value), sync=False)
    except OSError as fault:
        print(f"heartbeat not written: {fault}", file=sys.stderr, flush=True)
