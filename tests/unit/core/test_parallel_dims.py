"""The parallel dimensions of a run."""

from __future__ import annotations

import pytest

from dtl.core.parallel_dims import ParallelDims


def test_without_sequence_parallelism_every_rank_is_a_data_parallel_rank() -> None:
    dims = [ParallelDims(world_size=4, rank=rank) for rank in range(4)]
    assert [each.data_parallel_rank for each in dims] == [0, 1, 2, 3]
    assert {each.data_parallel_size for each in dims} == {4}


def test_neighboring_ranks_share_a_sequence() -> None:
    dims = [ParallelDims(world_size=6, rank=rank, sequence_parallel_size=2) for rank in range(6)]
    assert [each.data_parallel_rank for each in dims] == [0, 0, 1, 1, 2, 2]
    assert {each.data_parallel_size for each in dims} == {3}


@pytest.mark.parametrize("sizes", [(2, 2, 1), (3, 0, 2)])
def test_impossible_sizes_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(AssertionError):
        ParallelDims(*sizes)
