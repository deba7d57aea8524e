"""Micro-batches of a global batch for each rank, and how much of them is padding."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from dtl.data.evaluation_batch import EvaluationBatchSize
from dtl.data.padding import pad_lengths


def accumulation_steps(examples: int, *, data_parallel_size: int, micro_batch: int) -> int:
    """Return the number of micro-batches that each rank runs for a global batch."""
    return max(1, -(-examples // (data_parallel_size * micro_batch)))


def split_into_micro_batches(
    batch: np.ndarray,
    lengths: Sequence[int] | np.ndarray,
    *,
    data_parallel_size: int,
    micro_batch: int,
    max_padded_size: int | None = None,
) -> list[list[np.ndarray]]:
    """Return the micro-batches of a global batch: for each accumulation step, one per rank.

    The batch is sorted by length and split into equal runs, so that there is little padding.
    Examples of similar length go to different ranks in the same step, so that no rank waits long
    for another. Every rank gets the same number of micro-batches; some are empty if there are few
    examples.

    `max_padded_size`: the largest padded size of a micro-batch (examples x longest), instead of
    `micro_batch` examples; at least the padded length of the longest example.
    """
    lengths = np.asarray(lengths)
    longest_first = batch[np.argsort(-lengths[batch], kind="stable")]
    if max_padded_size is None:
        steps = accumulation_steps(
            len(batch), data_parallel_size=data_parallel_size, micro_batch=micro_batch
        )
        runs = np.array_split(longest_first, steps * data_parallel_size)
        return [
            runs[step * data_parallel_size : (step + 1) * data_parallel_size]
            for step in range(steps)
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
    """Use as few steps as the size allows, and in each of them minimize the largest padded size of
    a rank, because the other ranks wait for it."""
    assert max_padded_size >= widths[0], "a micro-batch must hold the longest example"
    micro_batches, start = [], 0
    steps = -(-len(_run_lengths(widths, max_padded_size)) // data_parallel_size)
    for steps_left in range(steps, 0, -1):
        rest, slots = widths[start:], steps_left * data_parallel_size
        smallest_size = bisect_left(
            range(max_padded_size),
            True,
            lo=max(int(rest[0]), -(-int(rest.sum()) // slots)),
            key=lambda size: len(_run_lengths(rest, size)) <= slots,
        )
        ends = start + np.cumsum(_run_lengths(rest, smallest_size)[:data_parallel_size])
        runs = np.split(longest_first[start : ends[-1]], ends[:-1] - start)
        micro_batches.append(runs + [longest_first[:0]] * (data_parallel_size - len(runs)))
        start = int(ends[-1])
    return micro_batches


def _run_lengths(widths: np.ndarray, max_padded_size: int) -> list[int]:
    """Return the number of examples of each run, longest first, if no run exceeds the size."""
    runs, start = [], 0
    while start < len(widths):
        runs.append(min(len(widths) - start, max_padded_size // int(widths[start])))
        start += runs[-1]
    return runs


def largest_padded_size(examples: int, lengths: np.ndarray) -> int:
    """Return the padded size of this many of the longest examples."""
    return examples * int(pad_lengths(lengths).max())


def count_padding(
    micro_batches: Sequence[Sequence[np.ndarray]], lengths: np.ndarray
) -> tuple[int, int]:
    """Return the positions in these micro-batches, and how many of them are padding."""
    batch_lengths = [lengths[ids] for step in micro_batches for ids in step if len(ids)]
    positions = sum(len(each) * int(each.max()) for each in batch_lengths)
    return positions, positions - sum(int(each.sum()) for each in batch_lengths)


def form_evaluation_batches(
    lengths: Sequence[int] | np.ndarray, *, size: EvaluationBatchSize
) -> list[np.ndarray]:
    """Return every held-out example once, longest first, in batches independent of the layout."""
    longest_first = np.argsort(-np.asarray(lengths), kind="stable")
    widths = pad_lengths(np.asarray(lengths)[longest_first])
    batches, start = [], 0
    while start < len(longest_first):
        end = start + size.limit_to(int(widths[start]))
        batches.append(longest_first[start:end])
        start = end
    return batches


def examples_of_longest(size: EvaluationBatchSize, lengths: Sequence[int] | np.ndarray) -> int:
    """Return the most examples of an evaluation batch of the longest of these examples."""
    return size.limit_to(int(pad_lengths(np.asarray(lengths)).max()))
