"""Signals that request a process to stop: stored at once, obeyed at the next safe point.

What happens on SIGTERM, SIGINT, SIGUSR1 or SIGHUP:

1. Before training starts there is nothing to save: `Stop` raises StoppedEarly at once.
2. The supervisor (`dtl.launch.supervisor`) forwards the signal to rank 0 as SIGTERM. torchrun
   forwards it to its ranks, and a Slurm job script forwards it to its job steps.
3. On each rank `Stop` only stores it. After each step `dtl.train.safe_points` reports it to
   `dtl.train.loop`, which sums the requests of all ranks: all stop after the same step.
4. The loop saves a checkpoint, and `dtl.launch.worker` exits with code 75 (STOPPED). The supervisor
   does not restart the run; a Slurm job is requeued. `dtl resume` continues from the checkpoint.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from dtl.core.errors import StoppedEarly

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
STOPPED = StoppedEarly.exit_code
FORWARDED_BY_TORCHRUN = "SIGTERM,SIGINT,SIGHUP,SIGUSR1,SIGQUIT"


class Stop:
    """Handles the signals by which people, launchers and clusters stop a process.

    While `interrupts` is set, there is nothing to save, and the first signal raises StoppedEarly.
    Otherwise the signal is stored, and `forward` is called for each one; a second signal changes
    nothing.
    """

    def __init__(
        self, *, interrupts: bool = False, forward: Callable[[], None] | None = None
    ) -> None:
        self.interrupts, self.forward = interrupts, forward
        self.signal_name: str | None = None  # of the first signal
        self._previous_handlers: dict[int, Any] = {}

    @property
    def is_requested(self) -> bool:
        """Whether a signal has arrived."""
        return self.signal_name is not None

    def __enter__(self) -> Self:
        """Install the handlers; only the main thread may do so, other threads get no signals."""
        if threading.current_thread() is threading.main_thread():
            self._previous_handlers = {
                number: signal.signal(number, self._handle) for number in SIGNALS
            }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: object) -> None:
        is_first = not self.is_requested
        self.signal_name = self.signal_name or signal.Signals(number).name
        if self.forward is not None:
            self.forward()
        elif is_first and self.interrupts:
            raise StoppedEarly.of(
                "",
                f"stopped by {self.signal_name} before the first step",
                "run the same command to continue",
            )


@contextmanager
def exit_on_signal() -> Iterator[None]:
    """End this process at the first signal, with STOPPED, also while its main thread waits inside a
    library, where Python calls no handler: in a process group that another rank never joins, a
    launcher would wait for this one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=_exit_on_first_signal, args=(reader,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        os.close(writer)  # ends the thread
        thread.join()
        os.close(reader)


def _exit_on_first_signal(reader: int) -> None:
    """Read the numbers of signals, one byte each, until the pipe is closed."""
    while number := os.read(reader, 1):
        if number[0] in SIGNALS:
            name = signal.Signals(number[0]).name
            print(f"stopped by {name} before the first step", file=sys.stderr, flush=True)
            os._exit(STOPPED)


def ignore_signals() -> None:
    """Ignore stop signals from now on, because the process is ending already.

    Another signal must not change its exit code while Python shuts down.
    """
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
