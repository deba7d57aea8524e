"""The end of a launch: when to save and stop before its time limit, or that of its Slurm job."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Self

from dtl.config.schema import Train
from dtl.core.units import parse_seconds

START_TIME = "DTL_STARTED"  # when the command began, in seconds since 1970
ASSUMED_BYTES_PER_SECOND = 200e6  # of the disk, until a save has been measured
SAFETY_MARGIN_SECONDS = 5.0


def find_end_time(options: Train, environment: Mapping[str, str]) -> float | None:
    """Return when this launch has to end, in seconds since 1970; None: no limit."""
    limits = []
    if options.wall_time is not None:
        started = float(environment.get(START_TIME, time.time()))
        limits.append(started + parse_seconds(options.wall_time))
    if environment.get("SLURM_JOB_END_TIME", "").isdigit():
        limits.append(float(environment["SLURM_JOB_END_TIME"]))
    return min(limits, default=None)


class Deadline:
    """Measures the time between two safe points and the time of a save.

    `end_time`: in seconds since 1970, or None. `checkpoint_bytes`: size of a checkpoint.
    """

    def __init__(self, end_time: float | None, *, checkpoint_bytes: int) -> None:
        self.end_time = end_time
        self.save_seconds = checkpoint_bytes / ASSUMED_BYTES_PER_SECOND
        self._longest_interval, self._last_safe_point = 0.0, time.time()

    @classmethod
    def from_config(cls, options: Train, *, checkpoint_bytes: int) -> Self:
        """Return the deadline of this launch."""
        return cls(find_end_time(options, os.environ), checkpoint_bytes=checkpoint_bytes)

    def record_save(self, seconds: float) -> None:
        """Record how long a save took."""
        self.save_seconds = max(seconds, self.save_seconds / 2)
        self._last_safe_point = time.time()

    def is_near(self) -> bool:
        """Return whether the next safe point would be too late to save twice. Call it at every safe
        point, because it measures the time between them."""
        now = time.time()
        interval, self._last_safe_point = now - self._last_safe_point, now
        self._longest_interval = max(self._longest_interval, interval)
        if self.end_time is None:
            return False
        needed = self._longest_interval + 2 * self.save_seconds + SAFETY_MARGIN_SECONDS
        return now + needed >= self.end_time
