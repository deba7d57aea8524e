"""Collect the statistics of the training rows that a task needs, such as its labels."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from dtl.core.cache_folder import cache_folder, read_cache_record, write_cache_record
from dtl.data.cache.store import wait_for_file
from dtl.data.sources.rows import Rows
from dtl.prepare.row_sets import Mixture, RowSubset
from dtl.prepare.sources import CACHE_FORMAT, SourceReader
from dtl.tasks.base import DatasetStats


def collect_stats(
    reader: SourceReader, rows: Rows | RowSubset | Mixture, model_config: Any
) -> DatasetStats:
    """Return the task's statistics of the rows; those of streamed rows are cached."""
    task = reader.task
    if not reader.config.data.train.streaming:
        return task.collect_dataset_stats(rows, model_config)
    options = reader.config.task.training_options
    parts = [CACHE_FORMAT, rows.fingerprint, options, model_config.to_dict()]
    text = json.dumps(parts, sort_keys=True, default=str)
    path = cache_folder() / "dataset_stats" / f"{hashlib.sha256(text.encode()).hexdigest()}.json"
    record = read_cache_record(path)
    while record is None:
        if reader.writes:
            write_cache_record(path, {"stats": task.collect_dataset_stats(rows, model_config)})
        else:
            wait_for_file(path)
        record = read_cache_record(path)
    stats: DatasetStats = record["stats"]
    return stats
