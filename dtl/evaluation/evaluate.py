"""Scores over every held-out example, each exactly once, on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dtl.core.files import write_text
from dtl.core.json_lines import encode_lines
from dtl.data.cache.encoded import EncodedData
from dtl.data.evaluation_batch import EvaluationBatchSize
from dtl.data.loader import Collate, iter_evaluation_batches
from dtl.evaluation.groups import scores_by_group

if TYPE_CHECKING:
    from dtl.engine.base import Engine
    from dtl.metrics.base import EvalRecord
    from dtl.tasks.base import DatasetStats, Task


@dataclass(frozen=True)
class EvaluationSetup:
    """What to score on. `batch_size`: of a batch on one rank. `group_by`: the column of
    `data.groups`, by which the metric is broken down."""

    task: Task
    data: EncodedData
    collate: Collate
    dataset_stats: DatasetStats
    processor: Any
    batch_size: EvaluationBatchSize
    group_by: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """Scores, and the record of each example in the order of the rows."""

    scores: dict[str, float]
    records: list[EvalRecord]

    def write(self, path: Path) -> None:
        """Write the records as JSON lines with checksums."""
        path.parent.mkdir(parents=True, exist_ok=True)
        # Atomically: a report may read while the run writes.
        write_text(path, encode_lines(self.records), sync=False)


@torch.no_grad()
def evaluate(
    engine: Engine, setup: EvaluationSetup, *, check_stop: Callable[[str], None]
) -> Evaluation:
    """Return scores and records. Every rank must call.

    Batches are formed before they are distributed, so that the same sums are added on any layout.
    `check_stop` is called on all ranks before each batch; it may end the run.
    """
    records = setup.task.join_records(_collect_records(engine, setup, check_stop))
    scores = setup.task.score(records, setup.dataset_stats)
    groups = setup.data.groups
    if setup.group_by is None or groups is None:
        return Evaluation(scores, records)
    grouped = [{**record, "group": group} for record, group in zip(records, groups, strict=True)]
    by_group = scores_by_group(setup.task, grouped, setup.dataset_stats, setup.group_by)
    return Evaluation({**scores, **by_group}, grouped)


def _collect_records(
    engine: Engine, setup: EvaluationSetup, check_stop: Callable[[str], None]
) -> list[EvalRecord]:
    """Return the records of all ranks in the order of the rows, each with its `row`."""
    engine.unwrapped_model.eval()
    batches = iter_evaluation_batches(
        setup.data,
        setup.collate,
        size=setup.batch_size,
        parallel_dims=engine.parallel_dims,
        device=engine.device,
        transform=partial(setup.task.transform, processor=setup.processor),
    )
    own: list[tuple[int, EvalRecord]] = []
    for number, batch in enumerate(batches, start=1):
        check_stop(f"evaluation, batch {number}")
        with engine.autocast():
            records = setup.task.eval_records(
                engine.model, engine.to_device(batch.tensors), processor=setup.processor
            )
        own.extend(zip(batch.ids, records, strict=False))  # an empty batch has records but no ids
    numbered = sorted(engine.all_gather_object(own), key=lambda pair: pair[0])
    if [number for number, _ in numbered] != list(range(len(setup.data))):
        raise RuntimeError("evaluation did not cover every example exactly once")
    return [{"row": int(setup.data.rows[number]), **record} for number, record in numbered]
