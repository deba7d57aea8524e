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
from dtl.data.cache.streamed import LeftOut, Share, StreamedData
from dtl.data.order import accumulation, evaluation_batches, micro_batches, room_for

if TYPE_CHECKING:
    from torch import Tensor

Values = dict[str, Any]
Collate = Callable[[list[Values]], dict[str, "Tensor"]]
Show = Callable[[Sequence[int]], dict[str, "Tensor"]]


class Present(Protocol):
    """An example as it is shown this time; `draw`: what a varied view is drawn from."""

    def __call__(self, values: Values, *, draw: np.random.Generator | None) -> Values: ...


def as_stored(values: Values, *, draw: np.random.Generator | None) -> Values:
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
    all_ids: np.ndarray
    all_targets: int
    all_length: int
    left_out: tuple[LeftOut, ...] = ()
    shared: bool = False

    @property
    def all_examples(self) -> int:
        return len(self.all_ids)


@dataclass(frozen=True)
class Loader:
    """Windows of one rank. Jumping to a step costs nothing: the order is a function."""

    data: EncodedData | StreamedData
    collate: Collate
    batching: Batching
    micro_batch: int
    parallel_dims: ParallelDims
    present: Present = as_stored

    @property
    def seed(self) -> int:
        return self.batching.seed

    @cached_property
    def room(self) -> int | None:
        """Where batches differ in examples: what `micro_batch` of the longest ones take, padded."""
        if self.batching.sizes is None:
            return None
        return room_for(self.micro_batch, self.data.lengths)

    def windows(self, *, after_step: int, last_step: int) -> Iterator[StepBatches]:
        """Windows after_step + 1 ... last_step; the next one is collated while this one trains."""
        with ThreadPoolExecutor(max_workers=1) as reader:
            ahead: Future[StepBatches] | None = None
            for step in range(after_step + 1, last_step + 1):
                window = ahead.result() if ahead else self.window(step)
                ahead = reader.submit(self.window, step + 1) if step < last_step else None
                yield window

    def window(self, step: int) -> StepBatches:
        """The window of optimizer step `step`, which counts from 1."""
        found = self.batching.of_step(step)
        if isinstance(self.data, StreamedData):
            return self._streamed(step, found, self.data)
        batch, show = found.examples, self._shown(found.epoch, self.data)
        turns = micro_batches(
            batch,
            self.data.lengths,
            data_parallel_size=self.parallel_dims.data_parallel_size,
            micro_batch=self.micro_batch,
            room=self.room,
        )
        return StepBatches(
            step,
            found.epoch,
            tuple(
                make_batch(self.data, turn[self.parallel_dims.data_parallel_rank], show)
                for turn in turns
            ),
            all_ids=batch,
            all_targets=self.data.targets_of(batch),
            all_length=int(self.data.lengths[batch].sum()),
        )

    def _streamed(self, step: int, found: GlobalBatch, data: StreamedData) -> StepBatches:
        """As above, of the rows that this rank reads; it makes as many calls as the others, however
        many rows are left out. A rank that is alone runs the very same micro-batches."""
        dims = self.parallel_dims
        share = data.take(found.examples[dims.data_parallel_rank :: dims.data_parallel_size])
        show = self._shown(found.epoch, share)
        turns = accumulation(
            len(found.examples),
            data_parallel_size=self.parallel_dims.data_parallel_size,
            micro_batch=self.micro_batch,
        )
        return StepBatches(
            step,
            found.epoch,
            tuple(make_batch(share, ids, show) for ids in np.array_split(share.ids, turns)),
            all_ids=found.examples,
            all_targets=share.targets_of(share.ids),
            all_length=share.length,
            left_out=share.left_out,
            shared=True,
        )

    def _shown(self, epoch: int, data: EncodedData | Share) -> Show:
        """Examples of an epoch as a batch; views are drawn by example, so that the layout does not
        matter and a resumed run draws the same."""

        def show(ids: Sequence[int]) -> dict[str, Tensor]:
            draws = [
                np.random.Generator(np.random.Philox(key=[self.seed << 32 | epoch, number]))
                for number in ids
            ]
            return self.collate(
                [
                    self.present(data[number], draw=draw)
                    for number, draw in zip(ids, draws, strict=True)
                ]
            )

        return show


def held_out(
    data: EncodedData,
    collate: Collate,
    *,
    batch: int,
    parallel_dims: ParallelDims,
    present: Present = as_stored,
) -> Iterator[Batch]:
    """This rank's share of the evaluation; every rank yields equally many batches."""
    batches = evaluation_batches(data.lengths, batch=batch)

    def show(ids: Sequence[int]) -> dict[str, Tensor]:
        return collate([present(data[number], draw=None) for number in ids])

    for turn in range(-(-len(batches) // parallel_dims.data_parallel_size)):
        place = turn * parallel_dims.data_parallel_size + parallel_dims.data_parallel_rank
        ids = batches[place] if place < len(batches) else np.empty(0, dtype=np.int64)
        yield make_batch(data, ids, show)


def make_batch(data: EncodedData | Share, ids: np.ndarray, show: Show) -> Batch:
    """Show these examples, or the shortest one at weight 0 when there are none."""
    present = len(ids) > 0
    chosen = ids.tolist() if present else [data.shortest]
    return Batch(
        ids=tuple(int(i) for i in ids),
        tensors=show(chosen),
        targets=data.targets_of(ids) if present else 0,
        weight=1.0 if present else 0.0,
    )
