"""What the process that runs a job provides to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

from dtl.train.heartbeat import Watchdog


@dataclass(frozen=True)
class ProcessContext:
    """What the process that runs a job provides to it.

    `terminal`: where rank 0 prints; None on other ranks. `is_stop_requested`: whether it is time to
    save and end. `check_lease`: raises where the run folder belongs to another process by now.
    `saves_checkpoints`, `exports_model`: False leaves that out.
    """

    terminal: IO[str] | None
    watchdog: Watchdog
    is_stop_requested: Callable[[], bool]
    check_lease: Callable[[], None]
    saves_checkpoints: bool = True
    exports_model: bool = True
