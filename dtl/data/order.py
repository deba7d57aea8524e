"""Who reads what, and when: pure functions of (lengths, seed, epoch), blind to the layout."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from dtl.data.example import MULTIPLE


def draws(*, seed: int, epoch: int) -> np.random.Generator:
    """What the order of an epoch is drawn from.

    Philox is counter-based and specified, so the same numbers come out on every machine.
    """
    return np.random.Generator(np.random.Philox(key=[seed, epoch]))


def chain(digest: str, batch: np.ndarray) -> str:
    """The digest of all batches so far: of the one before and the numbers of this one, in order.

    Two runs with equal digests have read the same examples in the same order.
    """
    numbers = np.ascontiguousarray(batch, dtype="<i8").tobytes()
    return hashlib.sha256(digest.encode() + numbers).hexdigest()[:32]


def accumulation(examples: int, *, data_parallel_size: int, micro_batch: int) -> int:
    """Micro-batches that each rank runs for a global batch of so many examples."""
    return max(1, -(-examples // (data_parallel_size * micro_batch)))


def micro_batches(
    batch: np.ndarray,
    lengths: Sequence[int] | np.ndarray,
    *,
    data_parallel_size: int,
    micro_batch: int,
    room: int | None = None,
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
    if room is None:
        turns = accumulation(
            len(batch), data_parallel_size=data_parallel_size, micro_batch=micro_batch
        )
        runs = np.array_split(longest_first, turns * data_parallel_size)
        return [
            runs[turn * data_parallel_size : (turn + 1) * data_parallel_size]
            for turn in range(turns)
        ]
    return _within(
        longest_first,
        padded(lengths[longest_first]),
        data_parallel_size=data_parallel_size,
        room=room,
    )


def _within(
    longest_first: np.ndarray, widths: np.ndarray, *, data_parallel_size: int, room: int
) -> list[list[np.ndarray]]:
    """As few turns as the room allows, and in each of them as little as possible on the rank that
    has most, since the others wait for it."""
    assert room >= widths[0], "a micro-batch must hold the longest example"
    found, start = [], 0
    for left in range(-(-len(_runs(widths, room)) // data_parallel_size), 0, -1):
        rest, slots = widths[start:], left * data_parallel_size
        least = bisect_left(
            range(room),
            True,
            lo=max(int(rest[0]), -(-int(rest.sum()) // slots)),
            key=lambda held: len(_runs(rest, held)) <= slots,
        )
        ends = start + np.cumsum(_runs(rest, least)[:data_parallel_size])
        runs = np.split(longest_first[start : ends[-1]], ends[:-1] - start)
        found.append(runs + [longest_first[:0]] * (data_parallel_size - len(runs)))
        start = int(ends[-1])
    return found


def _runs(widths: np.ndarray, room: int) -> list[int]:
    """How many neighbours, longest first, each run takes if none is to take more room."""
    runs, start = [], 0
    while start < len(widths):
        runs.append(min(len(widths) - start, room // int(widths[start])))
        start += runs[-1]
    return runs


def padded(lengths: np.ndarray) -> np.ndarray:
    """Lengths up to the next multiple to which tasks pad."""
    return -(-lengths // MULTIPLE) * MULTIPLE


def room_for(examples: int, lengths: np.ndarray) -> int:
    """What so many of the longest examples take, padded."""
    return examples * int(padded(lengths).max())


def padding(turns: Sequence[Sequence[np.ndarray]], lengths: np.ndarray) -> tuple[int, int]:
    """Positions in these micro-batches, and how many of them stand beside shorter examples."""
    held = [lengths[one] for turn in turns for one in turn if len(one)]
    positions = sum(len(one) * int(one.max()) for one in held)
    return positions, positions - sum(int(one.sum()) for one in held)


def evaluation_batches(lengths: Sequence[int] | np.ndarray, *, batch: int) -> list[np.ndarray]:
    """Every held-out example once, longest first, in batches that no layout changes."""
    longest_first = np.argsort(-np.asarray(lengths), kind="stable")
    return [longest_first[start : start + batch] for start in range(0, len(longest_first), batch)]
