"""Set the environment of one rank: threads, compiler caches, and a group of one process."""

from __future__ import annotations

import atexit
import os
import shutil
from collections.abc import MutableMapping
from pathlib import Path

from dtl.core.process_env import get_local_rank, threads_per_process

NODE_LOCAL = "DTL_NODE_LOCAL"  # variable: a folder on the node's own disk; may name variables
ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
COMPILER_CACHES = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TORCH_EXTENSIONS_DIR")


def set_compiler_caches(environment: MutableMapping[str, str]) -> None:
    """Have compilers cache on the node's own disk, in a folder of this job.

    On a shared disk, a lock that a killed compiler has left would stop the next one. The first rank
    of the node removes the folder at exit.
    """
    path = os.path.expandvars(environment.get(NODE_LOCAL, ""))
    if not path or "$" in path:
        return
    folder = Path(path) / f"dtl-{os.getuid()}-{environment.get('SLURM_JOB_ID', os.getpid())}"
    for name in COMPILER_CACHES:
        environment.setdefault(name, str(folder / name.lower()))
    if get_local_rank(environment) == 0:
        atexit.register(shutil.rmtree, folder, ignore_errors=True)


def set_allocator(environment: MutableMapping[str, str]) -> None:
    """Have PyTorch's allocator of GPU memory extend its segments, so that batches of different
    lengths do not fragment it. A user's own setting is not changed. Call it before torch is used.
    """
    if not any(name in environment for name in ALLOCATOR_VARIABLES):
        environment[ALLOCATOR_VARIABLES[0]] = "expandable_segments:True"


def set_threads(*, processes: int, device: str) -> None:
    """Share the cores among the processes of this node, where they compute on the CPU."""
    import torch

    if device == "cpu":
        torch.set_num_threads(
            int(os.environ.get("OMP_NUM_THREADS") or threads_per_process(processes))
        )
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
