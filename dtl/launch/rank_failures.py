"""Report failures of one rank that a restart would not fix: memory or a disk is full, or an
operation is not deterministic."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dtl.core.errors import RankFailed
from dtl.core.resource_errors import (
    describe_file_error,
    find_nondeterministic_operation,
    is_out_of_memory,
    is_unwritable,
)
from dtl.plan.memory_advice import suggest_memory_reduction

if TYPE_CHECKING:
    from dtl.prepare.prepared_run import PreparedRun
    from dtl.train.heartbeat import Watchdog


@contextmanager
def report_resource_failures(prepared: PreparedRun, watchdog: Watchdog) -> Iterator[None]:
    """Raise RankFailed, with what to change, in place of an error of a full disk or memory, or of
    an operation that `run.deterministic` refuses."""
    from dtl.train.log import format_peak_memory

    try:
        yield
    except Exception as error:
        fault = describe_file_error(error) if is_unwritable(error) else None
        if fault is not None:
            location = fault.location or prepared.config.run.dir
            problem = f"{fault.problem}, in {watchdog.activity}"
            fix = f"{fault.fix}, then resume: the newest checkpoint is intact"
        elif is_out_of_memory(error):
            location = f"rank {os.environ.get('RANK', '0')}"
            problem = f"out of memory in {watchdog.activity}; {format_peak_memory()}"
            fix = suggest_memory_reduction(prepared.plan, activity=watchdog.activity)
        elif (operation := find_nondeterministic_operation(error)) is not None:
            location = "run.deterministic"
            problem = f"{operation} has no deterministic implementation on this device"
            fix = "set it to false; the run then repeats up to rounding"
        else:
            raise
        traceback.print_exc()
        raise RankFailed.of(location, problem, fix) from error
