"""When to save and end by oneself: before the time of the launch, or of the Slurm job, is up."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from dtl.config.schema import Train
from dtl.core.units import parse_seconds

STARTED = "DTL_STARTED"  # when the command began, in seconds since 1970; set by the desk
SLOW_DISK = 200e6  # bytes a second: what a first save is taken to cost, before one was measured
SPARE_SECONDS = 5.0


def ends_at(options: Train, environment: Mapping[str, str]) -> float | None:
    """Seconds since 1970 at which this launch has to be over; None: no limit."""
    limits = []
    if options.wall_time is not None:
        started = float(environment.get(STARTED, time.time()))
        limits.append(started + parse_seconds(options.wall_time))
    if environment.get("SLURM_JOB_END_TIME", "").isdigit():
        limits.append(float(environment["SLURM_JOB_END_TIME"]))
    return min(limits, default=None)


class Deadline:
    """Measures what passes between two safe points, and what a save costs.

    `ends`: seconds since 1970, or None. `checkpoint_bytes`: of a save that is still to come.
    """

    def __init__(self, ends: float | None, *, checkpoint_bytes: int) -> None:
        self.ends = ends
        self.save_seconds = checkpoint_bytes / SLOW_DISK
        self._longest, self._last = 0.0, time.time()

    @classmethod
    def of(cls, options: Train, *, checkpoint_bytes: int) -> Deadline:
        return cls(ends_at(options, os.environ), checkpoint_bytes=checkpoint_bytes)

    def saved(self, seconds: float) -> None:
        """A save took so long."""
        self.save_seconds = max(seconds, self.save_seconds / 2)
        self._last = time.time()

    @property
    def near(self) -> bool:
        """Asked at every safe point: whether the next one would come too late to save twice."""
        now = time.time()
        self._longest, self._last = max(self._longest, now - self._last), now
        if self.ends is None:
            return False
        return now + self._longest + 2 * self.save_seconds + SPARE_SECONDS >= self.ends
