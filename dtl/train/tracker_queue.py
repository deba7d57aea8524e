"""Sending metrics to experiment trackers, which can neither slow the run down nor end it."""

from __future__ import annotations

import queue
import re
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from dtl.config.diff import flatten
from dtl.core.errors import shorten_message
from dtl.core.files import read_record, write_record
from dtl.run.evaluations import EVALUATION_KIND

if TYPE_CHECKING:
    from dtl.run.folder import RunFolder

MAX_QUEUED_LINES = 2000  # that a slow tracker has not taken; further lines are dropped
CLOSING_SECONDS = 15.0  # for all trackers together, at the end of the run
THREAD_NAME = "dtl-tracker"
RUN_IDS_FILE = "trackers.json"  # the run's id in each tracker, to resume it
NON_METRICS = ("kind", "step", "model", "digest", "examples", "reason")


class Tracker(Protocol):
    """A run that has been started in a tracker. `run_id`: its id there; None: its folder is its
    id."""

    @property
    def run_id(self) -> str | None: ...

    def log_config(self, values: dict[str, Any]) -> None: ...

    def log(self, values: dict[str, float], step: int) -> None: ...

    def finish(self) -> None: ...


class OpenTracker(Protocol):
    """Starts a run in a tracker, or resumes the run `run_id`."""

    def __call__(
        self, name: str, *, folder: Path, run_id: str | None, first_step: int
    ) -> Tracker: ...


def read_metrics(line: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a line of metrics.jsonl, by kind and name."""
    kind = line["kind"]
    if kind == "skip":
        return {"skip": 1.0}
    prefix = f"held-out {line.get('model')}" if kind == EVALUATION_KIND else kind
    return {
        f"{prefix}/{re.sub(r'[^-A-Za-z0-9_. /]', '_', key)}": float(value)
        for key, value in line.items()
        if key not in NON_METRICS
        and isinstance(value, int | float)
        and not key.startswith("confusion/")
    }


def send_lines(
    name: str,
    folder: RunFolder,
    lines: Iterable[dict[str, Any]],
    *,
    open_tracker: OpenTracker,
    as_new_run: bool,
) -> None:
    """Send lines of metrics.jsonl to a tracker, from its start to its end."""
    tracker: Tracker | None = None
    try:
        for line in lines:
            if tracker is None:
                known = None if as_new_run else read_run_ids(folder).get(name)
                tracker = open_tracker(
                    name, folder=folder.path, run_id=known, first_step=line["step"]
                )
                if tracker.run_id not in (None, known):
                    run_ids = {**read_run_ids(folder), name: tracker.run_id}
                    write_record(folder.path / RUN_IDS_FILE, run_ids)
                if known is None and (as_new_run or line["step"] <= 1):
                    tracker.log_config(flatten(folder.config.model_dump(mode="json")))
            tracker.log(read_metrics(line), line["step"])
    finally:
        if tracker is not None:
            tracker.finish()


def read_run_ids(folder: RunFolder) -> dict[str, str]:
    """Return the run's id in each tracker that has one."""
    path = folder.path / RUN_IDS_FILE
    return read_record(path) if path.is_file() else {}


@dataclass
class TrackerThread:
    """One tracker in a thread of its own. Only its first failure is printed."""

    name: str
    folder: RunFolder
    print_line: Callable[[str], None]
    open_tracker: OpenTracker
    max_queued_lines: int = MAX_QUEUED_LINES
    has_warned: bool = False
    _lines: queue.Queue[dict[str, Any] | None] = field(init=False)
    _thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self._lines = queue.Queue(self.max_queued_lines)
        self._thread = threading.Thread(target=self._send_lines, name=THREAD_NAME, daemon=True)
        self._thread.start()

    def put(self, line: dict[str, Any]) -> None:
        """Queue a line and return at once; where the queue is full, drop it."""
        if not self._thread.is_alive():
            return
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.warn("is slower than the run: steps are dropped there")

    def close(self, *, deadline: float) -> None:
        """Wait for the queued lines until that moment of time.monotonic()."""
        try:
            self._lines.put(None, timeout=max(0.0, deadline - time.monotonic()))
        except queue.Full:  # drop a line for the end marker
            with suppress(queue.Empty):
                self._lines.get_nowait()
            with suppress(queue.Full):
                self._lines.put_nowait(None)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self.warn("did not take all lines in time")

    def warn(self, problem: str) -> None:
        """Print the first problem of this tracker."""
        if not self.has_warned:
            self.has_warned = True
            self.print_line(
                f"tracker {self.name} {problem}; the run continues, and `dtl track "
                f"{self.folder.path} --to {self.name}` sends all of it later"
            )

    def _send_lines(self) -> None:
        try:
            lines = iter(self._lines.get, None)
            send_lines(
                self.name, self.folder, lines, open_tracker=self.open_tracker, as_new_run=False
            )
        except Exception as fault:  # whatever fails in a tracker must not end the run
            reason = shorten_message(fault)
            self.warn(f"failed ({type(fault).__name__}: {reason})")


@dataclass(frozen=True)
class Trackers:
    """All trackers of a run."""

    threads: tuple[TrackerThread, ...] = ()

    @classmethod
    def start(
        cls,
        names: Iterable[str],
        folder: RunFolder,
        print_line: Callable[[str], None],
        *,
        open_tracker: OpenTracker,
    ) -> Self:
        """Start a thread for each tracker."""
        unique = dict.fromkeys(names)
        return cls(tuple(TrackerThread(name, folder, print_line, open_tracker) for name in unique))

    def put(self, line: dict[str, Any]) -> None:
        """Queue a line for all trackers."""
        for thread in self.threads:
            thread.put(line)

    def close(self) -> None:
        """Wait for all of them, together no longer than CLOSING_SECONDS."""
        deadline = time.monotonic() + CLOSING_SECONDS
        for thread in self.threads:
            thread.close(deadline=deadline)


def is_any_thread_alive() -> bool:
    """Return whether a tracker is still busy; exit handlers of its library would wait for it."""
    return any(thread.name == THREAD_NAME for thread in threading.enumerate())
