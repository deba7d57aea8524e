"""Results and resources that a run folder records, for model cards and reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dtl.evaluation.groups import bootstrap_interval
from dtl.run.folder import RunFolder
from dtl.train.usage import Usage, read_usage

if TYPE_CHECKING:
    from dtl.tasks.base import DatasetStats, Task


@dataclass(frozen=True)
class RunResults:
    """Recorded results of a run; None or empty: not recorded.

    `sources`: SHA-256 and number of rows, by the config key of the source. `intervals`: 95 %
    interval of the task's metric, by model (unadapted, adapted). `held_out_examples`: a number.
    """

    base_fingerprint: str | None = None
    sources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    held_out_examples: int | None = None
    usage: Usage | None = None


def collect_results(
    folder: RunFolder, task: Task, dataset_stats: DatasetStats, *, step: int, weights: str
) -> RunResults:
    """Return what run.json, the stored evaluation records and the usage records say.

    `step`: step of the exported weights. `weights`: adapted, or the name of
    an average.
    """
    evaluations = (("unadapted", 0, "unadapted"), ("adapted", step, weights))
    records_by_model = {
        model: records
        for model, at_step, name in evaluations
        if (records := folder.read_eval_records(at_step, weights=name))
    }
    return RunResults(
        base_fingerprint=folder.data["base"],
        sources=folder.data.get("sources", {}),
        intervals={
            model: bootstrap_interval(task, np.asarray(task.metric_counts(records, dataset_stats)))
            for model, records in records_by_model.items()
        },
        held_out_examples=(
            len(records_by_model["adapted"]) if "adapted" in records_by_model else None
        ),
        usage=read_usage(folder.usage),
    )
