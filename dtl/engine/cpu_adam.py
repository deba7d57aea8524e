"""Build the optimizer with which DeepSpeed updates master weights in main memory."""

from __future__ import annotations

import os
from typing import Any

from dtl.core.errors import DtlError, shorten_message
from dtl.core.process_env import get_local_rank
from dtl.engine.base import Engine

LOCATION = "layout.offload"
FIX = "install g++, ninja and the CUDA toolkit (see `dtl doctor`), or set layout.offload to none"


def build_on_every_node(engine: Engine) -> None:
    """Build the optimizer where it is not built yet: one process of each node, while the others
    wait. Call it before weights are read, because a build takes minutes and may fail.

    Every rank must call. Raises DtlError on all ranks where one node cannot build it.
    """
    problem = None
    if get_local_rank(os.environ) == 0:
        try:
            build()
        except DtlError as fault:
            problem = fault.faults[0].problem
    for each in engine.all_gather_object([problem]):
        if each is not None:
            raise DtlError.of(LOCATION, each, FIX)


def build() -> None:
    """Build the optimizer, or load what an earlier run has built. Raises DtlError."""
    try:
        _create_builder().load(verbose=False)
    except Exception as fault:
        reason = shorten_message(fault) or type(fault).__name__
        problem = f"DeepSpeed cannot build its CPU optimizer ({reason})"
        raise DtlError.of(LOCATION, problem, FIX) from fault


def _create_builder() -> Any:
    from deepspeed.accelerator import get_accelerator

    return get_accelerator().create_op_builder("CPUAdamBuilder")
