"""Loads the micro-batches of each optimizer step in the background."""

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
from dtl.data.evaluation_batch import EvaluationBatchSize
from dtl.data.micro_batches import (
    accumulation_steps,
    form_evaluation_batches,
    largest_padded_size,
    split_into_micro_batches,
)
from dtl.data.packing import split_packed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ExampleValues = dict[str, Any]
Collate = Callable[[list[ExampleValues]], dict[str, "Tensor"]]
CollateIds = Callable[[Sequence[int]], dict[str, "Tensor"]]


class ExampleTransform(Protocol):
    """Transforms the values of an example; `rng`: for random augmentation, None in evaluation."""

    def __call__(
        self, values: ExampleValues, *, rng: np.random.Generator | None
    ) -> ExampleValues: ...


def identity_transform(values: ExampleValues, *, rng: np.random.Generator | None) -> ExampleValues:
    """Return the values as they were encoded."""
    return values


@dataclass(frozen=True)
class Batch:
    """One micro-batch. An empty one holds the shortest example with weight 0, so that every rank
    makes the same calls; its loss and gradient do not count."""

    ids: tuple[int, ...]
    tensors: dict[str, Tensor]
    targets: int
    weight: float


@dataclass(frozen=True)
class StepBatches:
    """The micro-batches of one rank for one optimizer step. `global_...`: of the global batch,
    which every rank knows without communication.

    `counts_are_local`: rows are streamed, so that `global_targets`, `global_length` and
    `skipped_rows` are those of this rank until they are summed over the ranks.
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
        """Return the number of examples in the global batch."""
        return len(self.global_ids)


@dataclass(frozen=True)
class Loader:
    """Loads the step batches of one rank.

    Resuming at any step needs no replay, because the order is a pure function of seed and epoch.
    `device`: if it is a GPU, batches are in pinned memory, from which they are copied to it while
    the host goes on. `packed_positions`: the most of a micro-batch whose examples are packed; None:
    they are padded.
    """

    data: EncodedData | StreamedData
    collate: Collate
    batching: Batching
    micro_batch: int
    parallel_dims: ParallelDims
    transform: ExampleTransform = identity_transform
    device: torch.device | None = None
    packed_positions: int | None = None

    @property
    def seed(self) -> int:
        """Return the seed of the order and of augmentation."""
        return self.batching.seed

    @cached_property
    def max_padded_size(self) -> int | None:
        """Return the padded size of `micro_batch` of the longest examples; None if all batches have
        equally many examples."""
        if self.batching.sizes is None:
            return None
        return largest_padded_size(self.micro_batch, self.data.lengths)

    def iter_steps(self, *, after_step: int, last_step: int) -> Iterator[StepBatches]:
        """Iterate over the batches of steps after_step + 1 ... last_step; the next step is loaded
        while the current one trains."""
        with ThreadPoolExecutor(
            max_workers=1, initializer=_use_device, initargs=(self.device,)
        ) as reader:
            prefetched: Future[StepBatches] | None = None
            for step in range(after_step + 1, last_step + 1):
                batches = prefetched.result() if prefetched else self.load_step(step)
                prefetched = reader.submit(self.load_step, step + 1) if step < last_step else None
                yield batches

    def load_step(self, step: int) -> StepBatches:
        """Load the batches of optimizer step `step`, which counts from 1."""
        global_batch = self.batching.batch_for_step(step)
        if isinstance(self.data, StreamedData):
            return self._load_streamed_step(step, global_batch, self.data)
        ids = global_batch.examples
        collate_ids = self._epoch_collate(global_batch.epoch, self.data)
        micro_batches = self._split(ids, self.data.lengths)
        return StepBatches(
            step,
            global_batch.epoch,
            tuple(
                load_batch(self.data, ranks[self.parallel_dims.data_parallel_rank], collate_ids)
                for ranks in micro_batches
            ),
            global_ids=ids,
            global_targets=self.data.count_targets(ids),
            global_length=int(self.data.lengths[ids].sum()),
        )

    def _split(self, ids: np.ndarray, lengths: np.ndarray) -> list[list[np.ndarray]]:
        """Return the micro-batches of a global batch: for each accumulation step, one per rank."""
        ranks = self.parallel_dims.data_parallel_size
        if self.packed_positions is not None:
            return split_packed(
                ids, lengths, data_parallel_size=ranks, max_positions=self.packed_positions
            )
        return split_into_micro_batches(
            ids,
            lengths,
            data_parallel_size=ranks,
            micro_batch=self.micro_batch,
            max_padded_size=self.max_padded_size,
        )

    def _load_streamed_step(
        self, step: int, global_batch: GlobalBatch, data: StreamedData
    ) -> StepBatches:
        """Load the batches of a step from the rows that this rank reads. Every rank makes equally
        many calls, however many rows are skipped. The micro-batches are the same as those of
        encoded data if there is one rank."""
        dims = self.parallel_dims
        examples = data.read_examples(
            global_batch.examples[dims.data_parallel_rank :: dims.data_parallel_size]
        )
        collate_ids = self._epoch_collate(global_batch.epoch, examples)
        steps = accumulation_steps(
            len(global_batch.examples),
            data_parallel_size=dims.data_parallel_size,
            micro_batch=self.micro_batch,
        )
        return StepBatches(
            step,
            global_batch.epoch,
            tuple(
                load_batch(examples, ids, collate_ids)
                for ids in np.array_split(examples.ids, steps)
            ),
            global_ids=global_batch.examples,
            global_targets=examples.count_targets(examples.ids),
            global_length=examples.total_length,
            skipped_rows=examples.skipped_rows,
            counts_are_local=True,
        )

    def _epoch_collate(self, epoch: int, data: EncodedData | StreamedExamples) -> CollateIds:
        """Return a function that collates examples of an epoch. Each example has its own random
        generator, so that augmentation depends neither on the layout nor on a resume."""

        def load_example(number: int) -> ExampleValues:
            rng = np.random.Generator(np.random.Philox(key=[self.seed << 32 | epoch, number]))
            return self.transform(data[number], rng=rng)

        return lambda ids: pin_batch(
            self.collate([load_example(number) for number in ids]), device=self.device
        )


def iter_evaluation_batches(
    data: EncodedData,
    collate: Collate,
    *,
    size: EvaluationBatchSize,
    parallel_dims: ParallelDims,
    transform: ExampleTransform = identity_transform,
    device: torch.device | None = None,
) -> Iterator[Batch]:
    """Iterate over this rank's evaluation batches; every rank has equally many. `device`: as of a
    Loader."""
    batches = form_evaluation_batches(data.lengths, size=size)

    def collate_ids(ids: Sequence[int]) -> dict[str, Tensor]:
        examples = [transform(data[number], rng=None) for number in ids]
        return pin_batch(collate(examples), device=device)

    for round_index in range(-(-len(batches) // parallel_dims.data_parallel_size)):
        batch_index = (
            round_index * parallel_dims.data_parallel_size + parallel_dims.data_parallel_rank
        )
        ids = batches[batch_index] if batch_index < len(batches) else np.empty(0, dtype=np.int64)
        yield load_batch(data, ids, collate_ids)


def pin_batch(tensors: dict[str, Tensor], *, device: torch.device | None) -> dict[str, Tensor]:
    """Return the tensors in pinned memory where `device` is a GPU; otherwise unchanged."""
    if device is None or device.type != "cuda":
        return tensors
    return {name: tensor.pin_memory() for name, tensor in tensors.items()}


def _use_device(device: torch.device | None) -> None:
    """Make this thread use a GPU: pinning in a new thread would take memory of GPU 0 as well."""
    if device is not None and device.type == "cuda":
        import torch

        torch.cuda.set_device(device)


def load_batch(
    data: EncodedData | StreamedExamples, ids: np.ndarray, collate_ids: CollateIds
) -> Batch:
    """Collate these examples (ids, shape (N,)), or the shortest one with weight 0 if there are
    none."""
    has_examples = len(ids) > 0
    loaded_ids = ids.tolist() if has_examples else [data.shortest_example]
    return Batch(
        ids=tuple(int(i) for i in ids),
        tensors=collate_ids(loaded_ids),
        targets=data.count_targets(ids) if has_examples else 0,
        weight=1.0 if has_examples else 0.0,
    )
