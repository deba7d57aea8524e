"""Sends what a run tells to trackers, so that none of them can slow the run or end it."""

from __future__ import annotations

import json
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from dtl.config.diff import flat
from dtl.run.folder import write_json

if TYPE_CHECKING:
    from dtl.run.folder import RunFolder

LINES_HELD = 2000  # that a slow tracker has not taken yet; what comes then is left out
CLOSING_SECONDS = 15.0  # for all trackers together, at the end of the run
THREAD = "dtl-tracker"
IDENTITIES = "trackers.json"  # the run's name at each tracker, to go on with it
NO_MEASURES = ("kind", "step", "model", "digest", "examples", "reason")


class Tracker(Protocol):
    """What is asked of a tracker of Accelerate's that has begun a run. `identity`: the run's name
    there; None: its folder says it."""

    @property
    def identity(self) -> str | None: ...

    def configure(self, values: dict[str, Any]) -> None: ...

    def log(self, values: dict[str, float], step: int) -> None: ...

    def finish(self) -> None: ...


@dataclass(frozen=True)
class Start:
    """Where a tracker begins. `identity`: of a run to go on with; None: of none. `step`: the first
    that it is told of."""

    identity: str | None
    step: int


Open = Callable[[str, "RunFolder", Start], Tracker]


def measures(line: dict[str, Any]) -> dict[str, float]:
    """What a tracker is told of a line of metrics.jsonl: numbers, by kind and name."""
    start = {"eval": f"held-out {line.get('model')}"}.get(line["kind"], line["kind"])
    if line["kind"] == "skip":
        return {"skip": 1.0}
    return {
        f"{start}/{re.sub(r'[^-A-Za-z0-9_. /]', '_', key)}": float(value)
        for key, value in line.items()
        if key not in NO_MEASURES
        and isinstance(value, int | float)
        and not key.startswith("confusion/")
    }


def send(
    name: str, folder: RunFolder, lines: Iterable[dict[str, Any]], *, opener: Open, anew: bool
) -> None:
    """Lines to a tracker, from its start to its end. `anew`: as a new run of it."""
    tracker: Tracker | None = None
    try:
        for line in lines:
            if tracker is None:
                known = None if anew else identities(folder).get(name)
                tracker = opener(name, folder, Start(known, line["step"]))
                if tracker.identity not in (None, known):
                    write_json(
                        folder.path / IDENTITIES, {**identities(folder), name: tracker.identity}
                    )
                if known is None and (anew or line["step"] <= 1):
                    tracker.configure(flat(folder.config.model_dump(mode="json")))
            tracker.log(measures(line), line["step"])
    finally:
        if tracker is not None:
            tracker.finish()


def identities(folder: RunFolder) -> dict[str, str]:
    """The run's name at each tracker that has one."""
    path = folder.path / IDENTITIES
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


@dataclass
class Follower:
    """One tracker, in a thread of its own. What goes wrong with it is told once."""

    name: str
    folder: RunFolder
    say: Callable[[str], None]
    opener: Open
    held: int = LINES_HELD
    told: bool = False
    _lines: queue.Queue[dict[str, Any] | None] = field(init=False)
    _thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self._lines = queue.Queue(self.held)
        self._thread = threading.Thread(target=self._follow, name=THREAD, daemon=True)
        self._thread.start()

    def take(self, line: dict[str, Any]) -> None:
        """Returns at once. What a tracker cannot take is left out."""
        if not self._thread.is_alive():
            return
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.tell("does not keep up with the run: steps are left out there")

    def close(self, *, until: float) -> None:
        """Let it take the rest, if it does so before that moment of time.monotonic()."""
        try:
            self._lines.put(None, timeout=max(0.0, until - time.monotonic()))
        except queue.Full:  # a line gives way to the word that it is over
            with suppress(queue.Empty):
                self._lines.get_nowait()
            with suppress(queue.Full):
                self._lines.put_nowait(None)
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self.tell("did not take all in time")

    def tell(self, problem: str) -> None:
        if not self.told:
            self.told = True
            self.say(
                f"tracker {self.name} {problem}; the run goes on, and `dtl track {self.folder.path}"
                f" --to {self.name}` sends all of it later"
            )

    def _follow(self) -> None:
        try:
            lines = iter(self._lines.get, None)
            send(self.name, self.folder, lines, opener=self.opener, anew=False)
        except Exception as fault:  # whatever it is, it is not the run's
            reason = " ".join(str(fault).split())[:200]
            self.tell(f"failed ({type(fault).__name__}: {reason})")


@dataclass(frozen=True)
class Trackers:
    """All that follow a run."""

    followers: tuple[Follower, ...] = ()

    @classmethod
    def of(
        cls, names: Iterable[str], folder: RunFolder, say: Callable[[str], None], *, opener: Open
    ) -> Trackers:
        return cls(tuple(Follower(name, folder, say, opener) for name in dict.fromkeys(names)))

    def take(self, line: dict[str, Any]) -> None:
        for follower in self.followers:
            follower.take(line)

    def close(self) -> None:
        """Waits no longer than CLOSING_SECONDS for all of them."""
        until = time.monotonic() + CLOSING_SECONDS
        for follower in self.followers:
            follower.close(until=until)


def is_left_behind() -> bool:
    """Whether a tracker is still busy; what its library does at the end of a process would wait."""
    return any(thread.name == THREAD for thread in threading.enumerate())
