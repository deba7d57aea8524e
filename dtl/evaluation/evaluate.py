"""Scores over every held-out example, each exactly once, whatever the number of ranks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dtl.core.files import write_text
from dtl.data.cache.encoded import EncodedData
from dtl.data.loader import Collate, iter_evaluation_batches
from dtl.evaluation.groups import scores_by_group

if TYPE_CHECKING:
    from dtl.engine.base import Engine
    from dtl.metrics.base import EvalRecord
    from dtl.tasks.base import DatasetStats, Task


@dataclass(frozen=True)
class Evaluation:
    """Scores, and the outcome of each example in the order of the rows."""

    scores: dict[str, float]
    outcomes: list[EvalRecord]

    def write(self, path: Path) -> None:
        """One outcome a line, with the number of its row."""
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(outcome) + "\n" for outcome in self.outcomes)
        write_text(path, lines, sync=False)  # a report may read while the run writes


@torch.no_grad()
def evaluate(
    engine: Engine,
    task: Task,
    data: EncodedData,
    collate: Collate,
    dataset_stats: DatasetStats,
    *,
    batch: int,
    processor: Any,
    group_by: str | None = None,
    pause: Callable[[str], None],
) -> Evaluation:
    """Batches are formed before they are dealt out, so the same sums are added on any layout.

    `group_by`: the column by whose values, which the data has, the best score is broken down.
    `pause` is called on all ranks before each batch, where the run may be stopped.
    """
    engine.unwrapped_model.eval()
    mine: list[tuple[int, dict[str, Any]]] = []
    batches = iter_evaluation_batches(
        data,
        collate,
        batch=batch,
        parallel_dims=engine.parallel_dims,
        transform=partial(task.transform, processor=processor),
    )
    for number, held in enumerate(batches, start=1):
        pause(f"evaluation, batch {number}")
        with engine.autocast():
            found = task.eval_records(
                engine.model, engine.to_device(held.tensors), processor=processor
            )
        mine.extend(zip(held.ids, found, strict=False))  # an empty batch has outcomes but no ids
    everyone = sorted(engine.all_gather_object(mine), key=lambda pair: pair[0])
    if [number for number, _ in everyone] != list(range(len(data))):
        raise RuntimeError("evaluation did not see every example exactly once")
    outcomes = [{"row": int(data.rows[number]), **outcome} for number, outcome in everyone]
    scores = task.score(outcomes, dataset_stats)
    if group_by is None or data.groups is None:
        return Evaluation(scores, outcomes)
    grouped = [
        {**outcome, "group": group} for outcome, group in zip(outcomes, data.groups, strict=True)
    ]
    return Evaluation(
        {**scores, **scores_by_group(task, grouped, dataset_stats, group_by)}, grouped
    )
