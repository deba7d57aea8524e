"""A heartbeat a rank: who is where in the run, and the end of a run that hangs."""

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

HUNG = 70  # exit code of a process that a watch has ended


@dataclass(frozen=True)
class Heartbeat:
    """Where a rank was last seen. `number`: calls that all ranks make alike; `doing`: in words;
    `since`, `alive`: when it came there, and when it last wrote, in seconds since 1970."""

    rank: int
    host: str
    process: int
    number: int
    doing: str
    since: float
    alive: float


class Watch:
    """Ends this process when it has stood still for longer than it may.

    Its thread writes the beat beside those of the other ranks. What stands still in one rank holds
    up all of them, so each ends itself, with its stack in its log; the first one says who was late.
    Time in which the whole process was suspended does not count.
    """

    def __init__(self, folder: Path, *, rank: int, ranks: int, tell: Callable[[str], None]) -> None:
        self.folder, self.rank, self.ranks, self.tell = folder, rank, ranks, tell
        self._place = threading.Lock()
        self._beat = Heartbeat(
            rank, socket.gethostname(), os.getpid(), 0, "start", time.time(), 0.0
        )
        self._limit, self._stood_still, self._came = float("inf"), 0.0, time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def doing(self) -> str:
        """What this rank does, in words."""
        return self._beat.doing

    def beat(self, doing: str, *, within: float) -> None:
        """This rank has come so far; it must come further within so many seconds."""
        with self._place:
            number = self._beat.number + 1
            self._beat = replace(self._beat, number=number, doing=doing, since=time.time())
            self._limit, self._stood_still, self._came = within, 0.0, time.monotonic()

    def _run(self) -> None:
        pause, before, ended = 0.0, time.monotonic(), False
        while not ended:
            with self._place:
                # A longer pause than asked for is a process that was suspended, not one that hangs.
                still = time.monotonic() - max(before, self._came)
                self._stood_still += min(still, 2 * pause)
                hangs = self._stood_still > self._limit
                beat = replace(self._beat, alive=time.time())
                pause = max(0.05, min(1.0, self._limit / 10))
            before = time.monotonic()
            _write(self.folder / f"rank-{self.rank}.json", asdict(beat))
            if hangs:
                self._end(beat)
            ended = self._ended.wait(pause)

    def _end(self, mine: Heartbeat) -> None:
        beats = [beat for beat in read_beats(self.folder) if beat.rank < self.ranks] or [mine]
        still = self._stood_still
        verdict = (
            f"rank {mine.rank} has stood still for {still:.0f} s in {mine.doing}; "
            f"{late(beats, after=still / 2)}; the stack of each rank is in its log"
        )
        print(verdict, file=sys.stderr, flush=True)
        faulthandler.dump_traceback(all_threads=True)
        lower = [beat for beat in beats if beat.rank < mine.rank]
        if all(_silent(beat, after=still / 2) for beat in lower):
            self.tell(verdict)
        time.sleep(1.0)  # the others come to the same end: let them write theirs
        for beat in beats:
            if _silent(beat, after=still / 2) and _is_sibling(beat):
                os.kill(beat.process, signal.SIGKILL)  # a launcher would wait for it
        os._exit(HUNG)


def read_beats(folder: Path) -> list[Heartbeat]:
    """The last beat of each rank, in the order of the ranks."""
    found = []
    for file in folder.glob("rank-*.json"):
        try:
            found.append(Heartbeat(**json.loads(file.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError):  # being replaced, or of another version
            continue
    return sorted(found, key=lambda beat: beat.rank)


def late(beats: list[Heartbeat], *, after: float) -> str:
    """Who holds up the others: a rank that does not run at all, or else the one that is behind.

    `after`: seconds without a sign of life that mean it does not run.
    """
    silent = [beat for beat in beats if _silent(beat, after=after)]
    behind = min((beat.number for beat in beats), default=0)
    last = [beat for beat in beats if beat.number == behind]
    if silent:
        return f"no sign of life from {_named(silent)}"
    if len(last) == len(beats):
        return "all ranks are at the same point"
    return f"behind the others is {_named(last)}"


def _silent(beat: Heartbeat, *, after: float) -> bool:
    return time.time() - beat.alive > after


def _is_sibling(beat: Heartbeat) -> bool:
    """Whether it is still that process, started by the launcher that started this one."""
    import psutil

    try:
        here = beat.host == socket.gethostname() and beat.process != os.getpid()
        return here and psutil.Process(beat.process).ppid() == os.getppid()
    except psutil.Error:
        return False


def _named(beats: list[Heartbeat]) -> str:
    return ", ".join(f"rank {beat.rank} on {beat.host} ({beat.doing})" for beat in beats)


def _write(path: Path, value: dict[str, Any]) -> None:
    """Whole or not at all. A disk that is full must not end the watch."""
    staged = path.with_name(f".{path.name}")
    try:
        staged.write_text(json.dumps(value), encoding="utf-8")
        staged.replace(path)
    except OSError as fault:
        print(f"heartbeat not written: {fault}", file=sys.stderr, flush=True)
