"""The parallel dimensions of a run: how its processes divide the batch and the sequence."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ParallelDims:
    """Sizes of the parallel dimensions, and the rank of one process in them.

    `sequence_parallel_size` neighboring ranks share one sequence; they are one data-parallel rank.
    Without a rank, as in a plan, it describes rank 0.
    """

    world_size: int = 1
    rank: int = 0
    sequence_parallel_size: int = 1

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.world_size, f"rank {self.rank} of {self.world_size}"
        assert self.world_size % self.sequence_parallel_size == 0

    @property
    def data_parallel_size(self) -> int:
        """Number of parts that a global batch is divided into."""
        return self.world_size // self.sequence_parallel_size

    @property
    def data_parallel_rank(self) -> int:
        """The part of the global batch that this process reads."""
        return self.rank // self.sequence_parallel_size
