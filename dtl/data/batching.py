"""How examples become the global batches of every epoch: a pure function, blind to the layout."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dtl.data.order import draws

NOISE = 0.25  # an example is grouped as if it were longer by up to this share of its length


@dataclass(frozen=True)
class GlobalBatch:
    """What one optimizer step learns from: numbers of examples, and the epoch, from 0."""

    epoch: int
    examples: np.ndarray


@dataclass(frozen=True)
class Batching:
    """Every example exactly once an epoch, in batches of `most` at most.

    `sizes`: what each example adds to a batch, none more than `most`; None: 1 each. `lengths`: by
    which like ones are grouped; None: any examples share a batch.

    Where sizes differ, the number of batches may differ from epoch to epoch. Each epoch is formed
    anew, so that it is not always the same examples that meet, and its batches are counted.
    """

    examples: int
    most: int
    seed: int
    sizes: np.ndarray | None = None
    lengths: np.ndarray | None = None

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """The global batches of an epoch, in order."""
        if epoch not in self._formed:
            self._formed.clear()
            self._formed[epoch] = self._form(epoch)
        return self._formed[epoch]

    def steps_of(self, epoch: int) -> int:
        """Optimizer steps in an epoch; the last one may be smaller than the others."""
        return -(-self.examples // self.most) if self.sizes is None else len(self.epoch(epoch))

    def steps_in(self, epochs: float) -> int:
        """Optimizer steps in so many epochs, the last of which may be a part of one; 1 at least."""
        if self.sizes is None:
            return max(1, round(epochs * self.steps_of(0)))
        whole = int(epochs)
        part = (epochs - whole) * self.steps_of(whole) if epochs > whole else 0.0
        return max(1, round(self._steps_before(whole) + part))

    def of_step(self, step: int) -> GlobalBatch:
        """The global batch of an optimizer step, which counts from 1."""
        known = self._before
        while known[-1] < step:
            self._steps_before(len(known))
        epoch = bisect_left(known, step) - 1
        return GlobalBatch(epoch, self.epoch(epoch)[step - 1 - known[epoch]])

    @property
    def kept(self) -> dict[str, np.ndarray]:
        """What it knows of each example."""
        known = {"sizes": self.sizes, "lengths": self.lengths}
        return {name: numbers for name, numbers in known.items() if numbers is not None}

    @property
    def examples_a_step(self) -> int:
        """In a full batch, or on average in the first epoch."""
        return self.most if self.sizes is None else self.examples // self.steps_of(0)

    def _form(self, epoch: int) -> list[np.ndarray]:
        generator = draws(seed=self.seed, epoch=epoch)
        shuffled = generator.permutation(self.examples)
        if self.lengths is None:
            return self._cut(shuffled)
        stretched = self.lengths[shuffled] * (1 + NOISE * generator.random(self.examples))
        by_length = shuffled[np.argsort(stretched, kind="stable")]
        # What is left for the last, smaller batch is of any length, not always of the longest.
        batches = self._cut(np.roll(by_length, generator.integers(self.examples)))
        return [batches[place] for place in generator.permutation(len(batches))]

    def _cut(self, sequence: np.ndarray) -> list[np.ndarray]:
        """Batches of neighbours, each as large as it may be."""
        if self.sizes is None:
            return [sequence[at : at + self.most] for at in range(0, len(sequence), self.most)]
        ends, start, cut = np.cumsum(self.sizes[sequence]), 0, []
        while start < len(sequence):
            before = int(ends[start - 1]) if start else 0
            end = int(np.searchsorted(ends, before + self.most, side="right"))
            assert end > start, "an example that is larger than a batch"
            cut.append(sequence[start:end])
            start = end
        return cut

    def _steps_before(self, epoch: int) -> int:
        """Steps in all epochs before this one."""
        known = self._before
        while len(known) <= epoch:
            known.append(known[-1] + self.steps_of(len(known) - 1))
        return known[epoch]

    @cached_property
    def _formed(self) -> dict[int, list[np.ndarray]]:
        """The epoch that was asked for last."""
        return {}

    @cached_property
    def _before(self) -> list[int]:
        return [0]
