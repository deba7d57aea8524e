"""Report failures of one rank that a restart would not fix: memory or a disk is full, an operation
is not deterministic, or the code fails."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dtl.core.errors import DtlError, RankFailed, shorten_message
from dtl.core.resource_errors import (
    describe_file_error,
    find_nondeterministic_operation,
    is_out_of_memory,
    is_unwritable,
    repeats_at_every_start,
)
from dtl.plan.memory_advice import suggest_memory_reduction

if TYPE_CHECKING:
    from dtl.prepare.prepared_run import PreparedRun
    from dtl.train.heartbeat import Watchdog


@contextmanager
def report_resource_failures(prepared: PreparedRun, watchdog: Watchdog) -> Iterator[None]:
    """Raise RankFailed, with what to change, in place of an error that a restart would repeat."""
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
        elif not isinstance(error, DtlError) and repeats_at_every_start(error):
            location = f"rank {os.environ.get('RANK', '0')}"
            text = shorten_message(f"{type(error).__name__}: {error}")
            problem = f"{text}, in {watchdog.activity}; a restart would end in the same way"
            fix = (
                "correct the data, plugin or config that it names (the traceback is in "
                f"{prepared.config.run.dir}/{prepared.config.run.name}/logs), or report it as a bug"
            )
        else:
            raise
        traceback.print_exc()
        raise RankFailed.of(location, problem, fix) from error
