"""Signals that ask a process to end: noted at once, obeyed at the next safe point."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any, Self

from dtl.core.errors import StoppedEarly

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
STOPPED = StoppedEarly.exit_code
HANDED_ON = "SIGTERM,SIGINT,SIGHUP,SIGUSR1,SIGQUIT"  # by torchrun, to the ranks


class Stop:
    """Listens to the signals by which people, launchers and clusters end a process.

    While `interrupts` is set there is nothing to save, and the first signal raises StoppedEarly.
    Else it is noted, and `passes_on` is called, each time: asking again changes nothing.
    """

    def __init__(
        self, *, interrupts: bool = False, passes_on: Callable[[], None] | None = None
    ) -> None:
        self.interrupts, self.passes_on = interrupts, passes_on
        self.by: str | None = None  # the first signal's name
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        return self.by is not None

    def __enter__(self) -> Self:
        """Only the main thread may take signals; elsewhere nobody is listened to."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        first = not self.asked
        self.by = self.by or signal.Signals(number).name
        if self.passes_on is not None:
            self.passes_on()
        elif first and self.interrupts:
            raise StoppedEarly.of(
                "", f"stopped by {self.by} before the first step", "the same command goes on"
            )


def ignore_signals() -> None:
    """This process is ending because it was asked to: asking again must not change its exit code,
    while Python takes down what it has loaded."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
