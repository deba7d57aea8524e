"""What a run has stored of itself, for its model card."""

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
class RunEvidence:
    """`base`: the fingerprint of the base model. `sources`: by the config key of each source, the
    digest and the number of its rows. `intervals`: of the unadapted and the adapted model, 95 % of
    the task's best score. `scored`: held-out examples. None or empty: not known."""

    base_fingerprint: str | None = None
    sources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    held_out_examples: int | None = None
    usage: Usage | None = None


def collect_evidence(
    folder: RunFolder, task: Task, dataset_stats: DatasetStats, *, step: int, weights: str
) -> RunEvidence:
    """From run.json, the stored outcomes of the scorings, and what its launches noted. `step`:
    after which the weights are those that are exported. `weights`: adapted, or an average."""
    outcomes = {
        model: stored
        for model, at, of in (("unadapted", 0, "unadapted"), ("adapted", step, weights))
        if (stored := folder.read_eval_records(at, weights=of))
    }
    return RunEvidence(
        base_fingerprint=folder.data["base"],
        sources=folder.data.get("sources", {}),
        intervals={
            model: bootstrap_interval(task, np.asarray(task.metric_counts(stored, dataset_stats)))
            for model, stored in outcomes.items()
        },
        held_out_examples=len(outcomes["adapted"]) if "adapted" in outcomes else None,
        usage=read_usage(folder.usage),
    )
