"""Global batches of every epoch: a pure function of the seed, independent of the layout."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property

import numpy as np

LENGTH_NOISE = 0.25  # grouping by length treats an example as longer by up to this fraction


def epoch_rng(*, seed: int, epoch: int) -> np.random.Generator:
    """Return the random generator of an epoch's order.

    Philox is counter-based and specified, so that it gives the same numbers on every machine.
    """
    return np.random.Generator(np.random.Philox(key=[seed, epoch]))


@dataclass(frozen=True)
class GlobalBatch:
    """The examples of one optimizer step: their ids, shape (N,), and the epoch, from 0."""

    epoch: int
    examples: np.ndarray


@dataclass(frozen=True)
class Batching:
    """Batches in which every example occurs exactly once per epoch, of size `max_size` at most.

    `sizes`: the size of each example, shape (N,), none above `max_size`; None: 1 each. `lengths`:
    the lengths by which examples are grouped, shape (N,); None: no grouping.

    If sizes differ, the number of batches may differ between epochs. Each epoch is batched again,
    so that the same examples do not always share a batch, and its batches are counted.
    """

    examples: int
    max_size: int
    seed: int
    sizes: np.ndarray | None = None
    lengths: np.ndarray | None = None

    def form_epoch(self, epoch: int) -> list[np.ndarray]:
        """Return the global batches of an epoch, in order."""
        if epoch not in self._cached_epoch:
            self._cached_epoch.clear()
            self._cached_epoch[epoch] = self._compute_epoch(epoch)
        return self._cached_epoch[epoch]

    def count_steps_in_epoch(self, epoch: int) -> int:
        """Return the optimizer steps in an epoch; the last batch may be smaller."""
        if self.sizes is None:
            return -(-self.examples // self.max_size)
        return len(self.form_epoch(epoch))

    def count_steps(self, epochs: float) -> int:
        """Return the optimizer steps in this many epochs, which may be a fraction; at least 1."""
        if self.sizes is None:
            return max(1, round(epochs * self.count_steps_in_epoch(0)))
        full_epochs = int(epochs)
        steps = float(self._count_steps_before(full_epochs))
        if epochs > full_epochs:
            steps += (epochs - full_epochs) * self.count_steps_in_epoch(full_epochs)
        return max(1, round(steps))

    def batch_for_step(self, step: int) -> GlobalBatch:
        """Return the global batch of an optimizer step, which counts from 1."""
        totals = self._steps_before_epoch
        while totals[-1] < step:
            self._count_steps_before(len(totals))
        epoch = bisect_left(totals, step) - 1
        return GlobalBatch(epoch, self.form_epoch(epoch)[step - 1 - totals[epoch]])

    @property
    def stored_arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays with one value per example, by name."""
        arrays = {"sizes": self.sizes, "lengths": self.lengths}
        return {name: numbers for name, numbers in arrays.items() if numbers is not None}

    @property
    def examples_per_step(self) -> int:
        """Return the examples of a full batch, or their average in the first epoch."""
        if self.sizes is None:
            return self.max_size
        return self.examples // self.count_steps_in_epoch(0)

    def _compute_epoch(self, epoch: int) -> list[np.ndarray]:
        rng = epoch_rng(seed=self.seed, epoch=epoch)
        shuffled = rng.permutation(self.examples)
        if self.lengths is None:
            return self._split(shuffled)
        noisy_lengths = self.lengths[shuffled] * (1 + LENGTH_NOISE * rng.random(self.examples))
        by_length = shuffled[np.argsort(noisy_lengths, kind="stable")]
        # So that the last, smaller batch has examples of any length, not always the longest.
        batches = self._split(np.roll(by_length, rng.integers(self.examples)))
        return [batches[index] for index in rng.permutation(len(batches))]

    def _split(self, sequence: np.ndarray) -> list[np.ndarray]:
        """Split a sequence of ids into batches, each as large as possible."""
        if self.sizes is None:
            starts = range(0, len(sequence), self.max_size)
            return [sequence[start : start + self.max_size] for start in starts]
        ends, start, batches = np.cumsum(self.sizes[sequence]), 0, list[np.ndarray]()
        while start < len(sequence):
            size_before = int(ends[start - 1]) if start else 0
            end = int(np.searchsorted(ends, size_before + self.max_size, side="right"))
            assert end > start, "an example is larger than a batch"
            batches.append(sequence[start:end])
            start = end
        return batches

    def _count_steps_before(self, epoch: int) -> int:
        """Return the steps in all epochs before this one."""
        totals = self._steps_before_epoch
        while len(totals) <= epoch:
            totals.append(totals[-1] + self.count_steps_in_epoch(len(totals) - 1))
        return totals[epoch]

    @cached_property
    def _cached_epoch(self) -> dict[int, list[np.ndarray]]:
        """Cache the last requested epoch."""
        return {}

    @cached_property
    def _steps_before_epoch(self) -> list[int]:
        return [0]


def chain_order_digest(digest: str, batch: np.ndarray) -> str:
    """Return the digest of all batches so far, from the previous digest and this batch's ids (N,).

    Two runs with equal digests have read the same examples in the same order.
    """
    ids = np.ascontiguousarray(batch, dtype="<i8").tobytes()
    return hashlib.sha256(digest.encode() + ids).hexdigest()[:32]
