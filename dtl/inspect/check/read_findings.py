"""Problems of how the rows were read: guesses, suspicious texts, tags, invalid rows of data.mix."""

from __future__ import annotations

from collections.abc import Iterator

from dtl.config.schema import Data
from dtl.inspect.check.findings import Finding, create_finding
from dtl.prepare.prepared_data import PreparedData
from dtl.tasks.base import Task


def find_read_problems(prepared: PreparedData, task: Task, data: Data) -> Iterator[Finding]:
    """Yield findings of the files and of the training rows together."""
    for source in prepared.all_sources:
        for fault in source.rows.find_suspicions(source.key):
            yield Finding("suspicious_file", fault, source.valid_rows)
    for fault in task.find_data_faults(prepared.dataset_stats):
        yield Finding("suspicious_rows", fault, 1)
    for source in prepared.mixed_sources:
        if source.faults:
            total = source.valid_rows + len(source.faults)
            stops = data.on_bad_row == "fail" or len(source.faults) / total > data.max_bad_fraction
            yield create_finding(
                "invalid_rows",
                [fault.location for fault in source.faults],
                total,
                f"rows of {source.key} are invalid and {'stop a run' if stops else 'are skipped'}: "
                f"{source.faults[0].problem}",
                source.faults[0].fix,
                is_fatal=stops,
            )
