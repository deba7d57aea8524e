"""Safe points: where a run reports that it is alive, and where it can be stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dtl.config.schema import Train
    from dtl.engine.base import Engine
    from dtl.train.deadline import Deadline
    from dtl.train.log import RunLog
    from dtl.train.process import ProcessContext


class StopRequested(Exception):
    """All ranks have agreed, at the same point, to save and end."""


class SafePoints:
    """The heartbeats and stop requests of one rank."""

    def __init__(
        self,
        process: ProcessContext,
        engine: Engine,
        log: RunLog,
        deadline: Deadline,
        options: Train,
    ) -> None:
        self.process, self.engine, self.log = process, engine, log
        self.deadline, self.options = deadline, options
        self._has_stepped = False

    def heartbeat(self, activity: str) -> None:
        """Report a short activity. Until the first step has ended it has the timeout of a long one,
        because the first step may compile kernels."""
        options = self.options
        timeout = options.hang_seconds if self._has_stepped else options.loading_hang_seconds
        self.process.watchdog.heartbeat(activity, timeout=timeout)

    def long_heartbeat(self, activity: str) -> None:
        """Report a long activity, such as loading a model."""
        self.process.watchdog.heartbeat(activity, timeout=self.options.loading_hang_seconds)

    def is_stop_requested(self) -> bool:
        """Return this rank's vote at the end of a step; the ranks add up their votes."""
        self._has_stepped = True
        return self._votes_to_stop()

    def check_stop(self, activity: str) -> None:
        """Report an activity outside of the loop; raise StopRequested, on all ranks or on none,
        where the run has to stop. Every rank must call."""
        if activity.startswith("export"):
            self.long_heartbeat(activity)
            self.engine.barrier()  # rank 0 writes alone, for longer than a collective may take
        else:
            self.heartbeat(activity)
        if self.engine.all_reduce_sum(float(self._votes_to_stop()))[0] > 0:
            raise StopRequested

    def _votes_to_stop(self) -> bool:
        is_due = self.engine.is_main_process and self.deadline.is_near()
        if is_due:
            self.log.print_line("the time limit of this launch is nearly reached")
        return self.process.is_stop_requested() or is_due
