"""Who reads what, and when: pure functions of (lengths, seed, epoch), blind to the layout."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def steps_per_epoch(examples: int, *, global_batch: int) -> int:
    """Optimizer steps in one pass over the data; the last one may be smaller."""
    return -(-examples // global_batch)


def order(examples: int, *, seed: int, epoch: int, global_batch: int) -> list[np.ndarray]:
    """The global batches of one epoch: every example exactly once, shuffled by (seed, epoch).

    Philox is counter-based and specified, so the same numbers come out on every machine.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    shuffled = generator.permutation(examples)
    return [shuffled[start : start + global_batch] for start in range(0, examples, global_batch)]


def chain(digest: str, batch: np.ndarray) -> str:
    """The digest of all batches so far: of the one before and the numbers of this one, in order.

    Two runs with equal digests have read the same examples in the same order.
    """
    numbers = np.ascontiguousarray(batch, dtype="<i8").tobytes()
    return hashlib.sha256(digest.encode() + numbers).hexdigest()[:32]


def accumulation(examples: int, *, ranks: int, micro_batch: int) -> int:
    """Micro-batches that each rank runs for a global batch of so many examples."""
    return max(1, -(-examples // (ranks * micro_batch)))


def share(
    batch: np.ndarray,
    lengths: Sequence[int] | np.ndarray,
    *,
    rank: int,
    ranks: int,
    micro_batch: int,
) -> list[np.ndarray]:
    """The micro-batches that one rank runs for a global batch.

    The batch is sorted by length and cut into equal runs, so that little is padded; neighbours in
    length go to different ranks at the same moment, so that no rank waits long for another. Every
    rank gets the same number of micro-batches; some are empty when examples are few.
    """
    turns = accumulation(len(batch), ranks=ranks, micro_batch=micro_batch)
    longest_first = batch[np.argsort(-np.asarray(lengths)[batch], kind="stable")]
    runs = np.array_split(longest_first, turns * ranks)
    return [runs[turn * ranks + rank] for turn in range(turns)]


def evaluation_batches(lengths: Sequence[int] | np.ndarray, *, batch: int) -> list[np.ndarray]:
    """Every held-out example once, longest first, in batches that no layout changes."""
    longest_first = np.argsort(-np.asarray(lengths), kind="stable")
    return [longest_first[start : start + batch] for start in range(0, len(longest_first), batch)]
