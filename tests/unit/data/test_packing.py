"""Micro-batches of packed examples: each example once, within the limit, evenly over ranks."""

from __future__ import annotations

import numpy as np
import pytest

from dtl.data.packing import split_packed


def draw(seed: int, examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Return lengths of 300 examples, some much longer, and a batch of some of them."""
    rng = np.random.default_rng(seed)
    lengths = np.minimum(rng.lognormal(4, 1, 300).astype(int) + 1, 1000)
    return lengths, rng.permutation(300)[:examples]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("examples", [1, 5, 16, 200])
@pytest.mark.parametrize("ranks", [1, 2, 8])
@pytest.mark.parametrize("limit", [1000, 1500, 8000])
def test_each_example_is_in_one_micro_batch_within_the_limit(
    seed: int, examples: int, ranks: int, limit: int
) -> None:
    lengths, batch = draw(seed, examples)
    steps = split_packed(batch, lengths, data_parallel_size=ranks, max_positions=limit)
    assert {len(step) for step in steps} == {ranks}
    assert sorted(np.concatenate([ids for step in steps for ids in step])) == sorted(batch)
    assert max(int(lengths[ids].sum()) for step in steps for ids in step) <= limit
    # No two micro-batches of a rank would fit into one, or a rank would wait in vain.
    assert len(steps) <= 2 * max(1, -(-int(lengths[batch].sum()) // (ranks * limit)))


@pytest.mark.parametrize("seed", range(3))
def test_ranks_have_similar_numbers_of_positions(seed: int) -> None:
    lengths, batch = draw(seed, 128)
    for step in split_packed(batch, lengths, data_parallel_size=4, max_positions=2000):
        sums = [int(lengths[ids].sum()) for ids in step]
        assert max(sums) - min(sums) <= int(lengths.max()) / 4


def test_micro_batches_do_not_depend_on_the_order_of_equal_calls() -> None:
    lengths, batch = draw(0, 64)
    first, second = (
        split_packed(batch, lengths, data_parallel_size=2, max_positions=1000) for _ in range(2)
    )
    assert [ids.tolist() for step in first for ids in step] == [
        ids.tolist() for step in second for ids in step
    ]


def test_hand_worked_micro_batches() -> None:
    lengths = np.array([7, 3, 5, 1, 4])  # 20 positions: two micro-batches of 10
    steps = split_packed(np.arange(5), lengths, data_parallel_size=1, max_positions=10)
    assert [ids.tolist() for step in steps for ids in step] == [[0, 1], [2, 4, 3]]


def test_few_examples_leave_some_ranks_without() -> None:
    steps = split_packed(
        np.array([2, 0]), np.array([4, 9, 6]), data_parallel_size=4, max_positions=9
    )
    assert [[ids.tolist() for ids in step] for step in steps] == [[[2], [0], [], []]]
