"""The micro-batches of one optimizer step, read ahead of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dtl.core.parallel_dims import ParallelDims
from dtl.data.batching import Batching, GlobalBatch
from dtl.data.cache.encoded import EncodedData
from dtl.data.cache.streamed import SkippedRow, StreamedData, StreamedExamples
from dtl.data.order import (
    accumulation_steps,
    form_evaluation_batches,
    largest_padded_size,
    split_into_micro_batches,
)

if TYPE_CHECKING:
    from torch import Tensor

ExampleValues = dict[str, Any]
Collate = Callable[[list[ExampleValues]], dict[str, "Tensor"]]
CollateIds = Callable[[Sequence[int]], dict[str, "Tensor"]]


class ExampleTransform(Protocol):
    """An example as it is shown this time; `draw`: what a varied view is drawn from."""

    def __call__(
        self, values: ExampleValues, *, rng: np.random.Generator | None
    ) -> ExampleValues: ...


def identity_transform(values: ExampleValues, *, rng: np.random.Generator | None) -> ExampleValues:
    """No view but the one that was encoded."""
    return values


@dataclass(frozen=True)
class Batch:
    """One micro-batch. An empty one holds the shortest example at weight 0, so that every rank
    makes the same calls; its loss and gradient count for nothing."""

    ids: tuple[int, ...]
    tensors: dict[str, Tensor]
    targets: int
    weight: float


@dataclass(frozen=True)
class StepBatches:
    """What one rank does for one optimizer step. `all_...`: counted over the global batch, which
    every rank knows without asking the others.

    `shared`: where rows are streamed each rank knows its own: `all_targets`, `all_length` and
    `left_out`, the rows that are no examples, are those of this rank until they are added up.
    """

    step: int
    epoch: int
    batches: tuple[Batch, ...]
    global_ids: np.ndarray
    global_targets: int
    global_length: int
    skipped_rows: tuple[SkippedRow, ...] = ()
    counts_are_local: bool = False

    @property
    def global_examples(self) -> int:
        return len(self.global_ids)


@dataclass(frozen=True)
class Loader:
    """Windows of one rank. Jumping to a step costs nothing: the order is a function."""

    data: EncodedData | StreamedData
    collate: Collate
    batching: Batching
    micro_batch: int
    parallel_dims: ParallelDims
    transform: ExampleTransform = identity_transform

    @property
    def seed(self) -> int:
        return self.batching.seed

    @cached_property
    def max_padded_size(self) -> int | None:
        """Where batches differ in examples: what `micro_batch` of the longest ones take, padded."""
        if self.batching.sizes is None:
            return None
        return largest_padded_size(self.micro_batch, self.data.lengths)

    def iter_steps(self, *, after_step: int, last_step: int) -> Iterator[StepBatches]:
        """Windows after_step + 1 ... last_step; the next one is collated while this one trains."""
        with ThreadPoolExecutor(max_workers=1) as reader:
            ahead: Future[StepBatches] | None = None
            for step in range(after_step + 1, last_step + 1):
                batches = ahead.result() if ahead else self.load_step(step)
                ahead = reader.submit(self.load_step, step + 1) if step < last_step else None
                yield batches

    def load_step(self, step: int) -> StepBatches:
        """The window of optimizer step `step`, which counts from 1."""
        global_batch = self.batching.batch_for_step(step)
        if isinstance(self.data, StreamedData):
            return self._load_streamed_step(step, global_batch, self.data)
        batch, show = global_batch.examples, self._epoch_collate(global_batch.epoch, self.data)
        micro_batch_ids = split_into_micro_batches(
            batch,
            self.data.lengths,
            data_parallel_size=self.parallel_dims.data_parallel_size,
            micro_batch=self.micro_batch,
            max_padded_size=self.max_padded_size,
        )
        return StepBatches(
            step,
            global_batch.epoch,
            tuple(
                load_batch(self.data, turn[self.parallel_dims.data_parallel_rank], show)
                for turn in micro_batch_ids
            ),
            global_ids=batch,
            global_targets=self.data.count_targets(batch),
            global_length=int(self.data.lengths[batch].sum()),
        )

    def _load_streamed_step(
        self, step: int, global_batch: GlobalBatch, data: StreamedData
    ) -> StepBatches:
        """As above, of the rows that this rank reads; it makes as many calls as the others, however
        many rows are left out. A rank that is alone runs the very same micro-batches."""
        dims = self.parallel_dims
        examples = data.read_examples(
            global_batch.examples[dims.data_parallel_rank :: dims.data_parallel_size]
        )
        show = self._epoch_collate(global_batch.epoch, examples)
        steps = accumulation_steps(
            len(global_batch.examples),
            data_parallel_size=self.parallel_dims.data_parallel_size,
            micro_batch=self.micro_batch,
        )
        return StepBatches(
            step,
            global_batch.epoch,
            tuple(load_batch(examples, ids, show) for ids in np.array_split(examples.ids, steps)),
            global_ids=global_batch.examples,
            global_targets=examples.count_targets(examples.ids),
            global_length=examples.total_length,
            skipped_rows=examples.skipped_rows,
            counts_are_local=True,
        )

    def _epoch_collate(self, epoch: int, data: EncodedData | StreamedExamples) -> CollateIds:
        """Examples of an epoch as a batch; views are drawn by example, so that the layout does not
        matter and a resumed run draws the same."""

        def show(ids: Sequence[int]) -> dict[str, Tensor]:
            draws = [
                np.random.Generator(np.random.Philox(key=[self.seed << 32 | epoch, number]))
                for number in ids
            ]
            return self.collate(
                [
                    self.transform(data[number], rng=draw)
                    for number, draw in zip(ids, draws, strict=True)
                ]
            )

        return show


def iter_evaluation_batches(
    data: EncodedData,
    collate: Collate,
    *,
    batch: int,
    parallel_dims: ParallelDims,
    transform: ExampleTransform = identity_transform,
) -> Iterator[Batch]:
    """This rank's share of the evaluation; every rank yields equally many batches."""
    batches = form_evaluation_batches(data.lengths, batch=batch)

    def show(ids: Sequence[int]) -> dict[str, Tensor]:
        return collate([transform(data[number], rng=None) for number in ids])

    for round_index in range(-(-len(batches) // parallel_dims.data_parallel_size)):
        batch_index = (
            round_index * parallel_dims.data_parallel_size + parallel_dims.data_parallel_rank
        )
        ids = batches[batch_index] if batch_index < len(batches) else np.empty(0, dtype=np.int64)
        yield load_batch(data, ids, show)


def load_batch(
    data: EncodedData | StreamedExamples, ids: np.ndarray, collate_ids: CollateIds
) -> Batch:
    """Show these examples, or the shortest one at weight 0 when there are none."""
    has_examples = len(ids) > 0
    loaded_ids = ids.tolist() if has_examples else [data.shortest_example]
    return Batch(
        ids=tuple(int(i) for i in ids),
        tensors=collate_ids(loaded_ids),
        targets=data.count_targets(ids) if has_examples else 0,
        weight=1.0 if has_examples else 0.0,
    )
