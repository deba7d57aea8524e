"""The planner's input: one frozen record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dtl.assembly.parts import Parts
from dtl.config.schema import RunConfig
from dtl.data.batching import Batching
from dtl.models.padding_dependence import explain_padding_dependence
from dtl.plan.records import ExternalLaunch, Hardware
from dtl.tasks.base import DatasetStats

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class CacheableExamples:
    """The examples whose features would be cached.

    `varied_reason`: why the base gives other features for an example each time, None where it does
    not. `lengths`: of these examples, in the task's unit. `free_bytes`: free space on the disk of
    the cache, None where it is unknown.
    """

    varied_reason: str | None
    lengths: np.ndarray
    free_bytes: int | None


@dataclass(frozen=True)
class PlanRequest:
    """A run to plan.

    `model_config`: the base's transformers config, None where it is unknown. `lengths`: of the
    training examples, in the task's unit. `external`: the layout that an external launcher has
    fixed. `free_disk_bytes`: free space where the run folder will be, None where it is unknown.
    `cacheable`: None where nothing prevents a feature cache. `held_out_lengths`: of the held-out
    examples; None where nothing is evaluated. `longest_batch`: makes a batch of so many examples as
    long as the longest one; None where the examples are not known yet.
    """

    config: RunConfig
    parts: Parts
    dataset_stats: DatasetStats
    model_config: Any
    batching: Batching
    lengths: np.ndarray
    hardware: Hardware
    external: ExternalLaunch | None = None
    free_disk_bytes: int | None = None
    cacheable: CacheableExamples | None = None
    held_out_lengths: np.ndarray | None = None
    longest_batch: Callable[[int], dict[str, Tensor]] | None = None

    @property
    def padding_dependence(self) -> str | None:
        """Why the base's output for an example depends on the others in its batch, else None."""
        held_out = self.held_out_lengths
        every = [self.lengths] if held_out is None else [self.lengths, held_out]
        return explain_padding_dependence(self.model_config, np.concatenate(every))

    @property
    def longest_example(self) -> int:
        """The length of the longest training example, in the task's unit."""
        return int(self.lengths.max())
