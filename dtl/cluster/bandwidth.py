"""Measure the bandwidth of an all-reduce over all ranks."""

from __future__ import annotations

import statistics
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from dtl.cluster.rank_group import RankGroup

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

NUMBERS = {"cuda": 2**25, "cpu": 2**20}  # fp32 numbers in one all-reduce
REPEATS = 5


def measure_bandwidth(store: Store, group: RankGroup, device_type: str) -> float:
    """Return the bandwidth in GB/s: bytes that a ring moves per rank, by the median time."""
    import torch
    from torch import distributed

    is_cuda = device_type == "cuda"
    device = torch.device("cpu")
    if is_cuda:
        device = torch.device("cuda", group.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    distributed.init_process_group(
        "nccl" if is_cuda else "gloo",
        store=distributed.PrefixStore("bandwidth", store),  # type: ignore[attr-defined]
        rank=group.rank,
        world_size=group.world_size,
        timeout=timedelta(seconds=group.timeout_seconds),
    )
    try:
        values, seconds = torch.ones(NUMBERS[device_type], device=device), []
        for _ in range(REPEATS + 1):
            start = time.perf_counter()
            distributed.all_reduce(values)
            values.div_(group.world_size)
            if is_cuda:
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
    finally:
        distributed.destroy_process_group()
    moved = 2 * (group.world_size - 1) / group.world_size * values.nbytes
    return moved / statistics.median(seconds[1:]) / 1e9
