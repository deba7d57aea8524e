"""Extracting the features of examples: what a frozen base outputs for each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dtl.assembly.parts import Parts
from dtl.config.schema import RunConfig
from dtl.core.units import format_bytes
from dtl.data.cache.encoded import EncodedData
from dtl.data.cache.feature_cache import (
    CachedFeature,
    FeatureWriter,
    WrittenPart,
    batch_by_extent,
    feature_caches_folder,
)
from dtl.data.loader import Collate
from dtl.data.micro_batches import examples_of_longest
from dtl.engine.base import Engine
from dtl.models.structure.head_input import flatten_output, record_outputs
from dtl.models.structure.wrappers import unwrap
from dtl.plan.hardware import free_disk_bytes
from dtl.prepare.prepared_data import PreparedData
from dtl.train.features.task import SplitPoint, split_field

if TYPE_CHECKING:
    from torch import Tensor

    from dtl.plan.records import Plan

MAX_DISK_SHARE = 0.9  # of the free space that features may use


class FeaturesUnsupported(Exception):
    """Why the head cannot train on features; the same on every rank."""


@dataclass(frozen=True)
class FeatureExtractor:
    """What runs the base. `check_stop`: a safe point, called on all ranks before each batch.
    `print_line`: prints one line to the user."""

    config: RunConfig
    plan: Plan
    parts: Parts
    data: PreparedData
    engine: Engine
    collate: Collate
    check_stop: Callable[[str], None]
    print_line: Callable[[str], None]

    @property
    def train(self) -> EncodedData:
        """The training examples."""
        data = self.data.train
        assert isinstance(data, EncodedData), "the plan caches no features of streamed rows"
        return data

    def collate_examples(self, data: EncodedData, ids: Sequence[int]) -> dict[str, Tensor]:
        """Return these examples as a batch on the device."""
        task, processor = self.parts.task, self.data.processor
        batch = self.collate([task.transform(data[i], processor=processor, rng=None) for i in ids])
        return self.engine.to_device(batch)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss of a batch, shape ()."""
        with self.engine.autocast():
            return self.parts.task.loss(self.engine.model, batch)

    def extract(
        self, split: SplitPoint, batch: dict[str, Tensor]
    ) -> dict[str, list[CachedFeature]]:
        """Return the features of the examples of a batch, by field."""
        with record_outputs(unwrap(self.engine.model).get_submodule(split.base)) as outputs:
            self.loss(batch)
        leaves, mask_BT = flatten_output(outputs[0]), batch.get("attention_mask")
        return {
            field.name: split_field(leaves[field.name], field, mask_BT) for field in split.fields
        }


def select_example(
    by_field: dict[str, list[CachedFeature]], index: int
) -> dict[str, CachedFeature]:
    """Return the features of one example of a batch."""
    return {name: parts[index] for name, parts in by_field.items()}


def write_part(
    extractor: FeatureExtractor, split: SplitPoint, data: EncodedData, staged: Path
) -> WrittenPart:
    """Extract and write this rank's part of the features. Every rank must call.

    Batches are formed before they are distributed, so that the result is the same on any layout.
    Raises FeaturesUnsupported where the disk is too small.
    """
    dims = extractor.engine.parallel_dims
    batch = examples_of_longest(extractor.plan.layout.evaluation_batch, data.lengths)
    batches = batch_by_extent(extractor.parts.task.padded_lengths(data), batch=batch)
    rounds = -(-len(batches) // dims.data_parallel_size)
    with FeatureWriter(staged, split.fields, part=dims.data_parallel_rank) as writer:
        for number in range(rounds):
            extractor.check_stop(f"features, batch {number + 1} of {rounds}")
            index = number * dims.data_parallel_size + dims.data_parallel_rank
            ids = batches[min(index, len(batches) - 1)]
            by_field = extractor.extract(split, extractor.collate_examples(data, ids.tolist()))
            if number == 0:
                _check_disk_space(extractor, by_field, data, ids)
            for row, example in enumerate(ids.tolist() if index < len(batches) else []):
                writer.add(example, select_example(by_field, row))
    return writer.written


def _check_disk_space(
    extractor: FeatureExtractor,
    by_field: dict[str, list[CachedFeature]],
    data: EncodedData,
    ids: np.ndarray,
) -> None:
    """Raise FeaturesUnsupported where the features would not fit on the disk, estimated from the
    first batch, which has the longest examples."""
    size = sum(part.values.nbytes for parts in by_field.values() for part in parts)
    grows = any(len(part.values) > 1 for parts in by_field.values() for part in parts)
    ratio = data.lengths.sum() / data.lengths[ids].sum() if grows else len(data) / len(ids)
    required, free = extractor.engine.broadcast_object(
        (size * ratio, free_disk_bytes(str(feature_caches_folder())))
    )
    if required > MAX_DISK_SHARE * free:
        raise FeaturesUnsupported(
            f"features would take {format_bytes(int(required))}, of {format_bytes(free)} that are "
            f"free in {feature_caches_folder()}"
        )
