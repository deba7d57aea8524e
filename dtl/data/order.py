"""Who reads what, and when: pure functions of (lengths, seed, epoch), blind to the layout."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from dtl.data.example import PAD_TO_MULTIPLE


def epoch_rng(*, seed: int, epoch: int) -> np.random.Generator:
    """What the order of an epoch is drawn from.

    Philox is counter-based and specified, so the same numbers come out on every machine.
    """
    return np.random.Generator(np.random.Philox(key=[seed, epoch]))


def chain_order_digest(digest: str, batch: np.ndarray) -> str:
    """The digest of all batches so far: of the one before and the numbers of this one, in order.

    Two runs with equal digests have read the same examples in the same order.
    """
    numbers = np.ascontiguousarray(batch, dtype="<i8").tobytes()
    return hashlib.sha256(digest.encode() + numbers).hexdigest()[:32]


def accumulation_steps(examples: int, *, data_parallel_size: int, micro_batch: int) -> int:
    """Micro-batches that each rank runs for a global batch of so many examples."""
    return max(1, -(-examples // (data_parallel_size * micro_batch)))


def split_into_micro_batches(
    batch: np.ndarray,
    lengths: Sequence[int] | np.ndarray,
    *,
    data_parallel_size: int,
    micro_batch: int,
    max_padded_size: int | None = None,
) -> list[list[np.ndarray]]:
    """The micro-batches of a global batch: for each turn, that of each rank.

    The batch is sorted by length and cut into equal runs, so that little is padded; neighbours in
    length go to different ranks at the same moment, so that no rank waits long for another. Every
    rank gets the same number of micro-batches; some are empty when examples are few.

    `room`: the most that a micro-batch may hold, padded, instead of `micro_batch` examples; no less
    than the longest one takes.
    """
    lengths = np.asarray(lengths)
    longest_first = batch[np.argsort(-lengths[batch], kind="stable")]
    if max_padded_size is None:
        steps = accumulation_steps(
            len(batch), data_parallel_size=data_parallel_size, micro_batch=micro_batch
        )
        runs = np.array_split(longest_first, steps * data_parallel_size)
        return [
            runs[turn * data_parallel_size : (turn + 1) * data_parallel_size]
            for turn in range(steps)
        ]
    return _split_within_size(
        longest_first,
        pad_lengths(lengths[longest_first]),
        data_parallel_size=data_parallel_size,
        max_padded_size=max_padded_size,
    )


def _split_within_size(
    longest_first: np.ndarray, widths: np.ndarray, *, data_parallel_size: int, max_padded_size: int
) -> list[list[np.ndarray]]:
    """As few turns as the room allows, and in each of them as little as possible on the rank that
    has most, since the others wait for it."""
    assert max_padded_size >= widths[0], "a micro-batch must hold the longest example"
    micro_batches, start = [], 0
    for steps_left in range(
        -(-len(_run_lengths(widths, max_padded_size)) // data_parallel_size), 0, -1
    ):
        rest, slots = widths[start:], steps_left * data_parallel_size
        smallest_size = bisect_left(
            range(max_padded_size),
            True,
            lo=max(int(rest[0]), -(-int(rest.sum()) // slots)),
            key=lambda held: len(_run_lengths(rest, held)) <= slots,
        )
        ends = start + np.cumsum(_run_lengths(rest, smallest_size)[:data_parallel_size])
        runs = np.split(longest_first[start : ends[-1]], ends[:-1] - start)
        micro_batches.append(runs + [longest_first[:0]] * (data_parallel_size - len(runs)))
        start = int(ends[-1])
    return micro_batches


def _run_lengths(widths: np.ndarray, max_padded_size: int) -> list[int]:
    """How many neighbours, longest first, each run takes if none is to take more room."""
    runs, start = [], 0
    while start < len(widths):
        runs.append(min(len(widths) - start, max_padded_size // int(widths[start])))
        start += runs[-1]
    return runs


def pad_lengths(lengths: np.ndarray) -> np.ndarray:
    """Lengths up to the next multiple to which tasks pad."""
    return -(-lengths // PAD_TO_MULTIPLE) * PAD_TO_MULTIPLE


def largest_padded_size(examples: int, lengths: np.ndarray) -> int:
    """What so many of the longest examples take, padded."""
    return examples * int(pad_lengths(lengths).max())


def count_padding(
    micro_batches: Sequence[Sequence[np.ndarray]], lengths: np.ndarray
) -> tuple[int, int]:
    """Positions in these micro-batches, and how many of them stand beside shorter examples."""
    batch_lengths = [lengths[one] for turn in micro_batches for one in turn if len(one)]
    positions = sum(len(one) * int(one.max()) for one in batch_lengths)
    return positions, positions - sum(int(one.sum()) for one in batch_lengths)


def form_evaluation_batches(lengths: Sequence[int] | np.ndarray, *, batch: int) -> list[np.ndarray]:
    """Every held-out example once, longest first, in batches that no layout changes."""
    longest_first = np.argsort(-np.asarray(lengths), kind="stable")
    return [longest_first[start : start + batch] for start in range(0, len(longest_first), batch)]
