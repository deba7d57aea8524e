"""Micro-batches of packed examples: cut by the sum of their lengths, because nothing is padded."""

from __future__ import annotations

import heapq

import numpy as np


def split_packed(
    batch: np.ndarray, lengths: np.ndarray, *, data_parallel_size: int, max_positions: int
) -> list[list[np.ndarray]]:
    """Return the micro-batches of a global batch: for each accumulation step, one per rank.

    `batch`: ids (N,). `lengths`: of all examples, by id. No micro-batch has more positions than
    `max_positions`, and there are as few steps as the assignment allows. Every rank gets the same
    number of micro-batches; some are empty if there are few examples. In a step the ranks have
    similar numbers of positions, so that no rank waits long for another.
    """
    lengths = np.asarray(lengths)
    longest_first = batch[np.argsort(-lengths[batch], kind="stable")]
    sizes = lengths[longest_first].tolist()
    assert sizes[0] <= max_positions, "a micro-batch must hold the longest example"
    steps = max(1, -(-sum(sizes) // (data_parallel_size * max_positions)))
    while (bins := _balance(sizes, steps * data_parallel_size, max_positions)) is None:
        steps += 1
    bins.sort(key=lambda numbers: -sum(sizes[number] for number in numbers))
    runs = [longest_first[np.asarray(numbers, dtype=np.int64)] for numbers in bins]
    return [
        runs[step * data_parallel_size : (step + 1) * data_parallel_size] for step in range(steps)
    ]


def _balance(sizes: list[int], count: int, max_size: int) -> list[list[int]] | None:
    """Return the numbers of the sizes in each of `count` bins; None if one exceeds `max_size`.

    Each size, largest first, goes to the emptiest bin (LPT; Graham 1969, doi:10.1137/0117039).
    """
    bins: list[list[int]] = [[] for _ in range(count)]
    loads = [(0, index) for index in range(count)]
    for number, size in enumerate(sizes):
        load, index = loads[0]
        if load + size > max_size:
            return None
        heapq.heapreplace(loads, (load + size, index))
        bins[index].append(number)
    return bins
