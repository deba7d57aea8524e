"""Estimate the disk space that a run needs, and warn where there is less."""

from __future__ import annotations

from dtl.core.units import format_bytes
from dtl.plan.memory import BYTES_PER_NUMBER, FP32_BYTES
from dtl.plan.records import DecisionLog, ParameterCounts
from dtl.plan.request import PlanRequest


def estimate_disk(
    request: PlanRequest, counts: ParameterCounts, *, dtype: str, log: DecisionLog
) -> None:
    """Add what the run will write to the log; nothing where the free space is unknown."""
    free = request.free_disk_bytes
    if free is None:
        return
    checkpoints = _count_checkpoints(request)
    needed = estimate_disk_bytes(
        counts,
        dtype=dtype,
        checkpoints=checkpoints,
        exports_full_model=request.parts.strategies[-1].export_kind == "model",
    )
    reason = (
        f"{checkpoints} checkpoints, one being written, and the export; {format_bytes(free)} free"
    )
    if needed > free:
        folder = request.config.run.dir
        reason = f"warning: more than the {format_bytes(free)} that are free in {folder}"
    log.add("disk", format_bytes(needed), reason)


def _count_checkpoints(request: PlanRequest) -> int:
    """Return how many checkpoints are on disk at once, apart from one that is being written."""
    options = request.config.train
    has_best = options.keep_best and options.evaluate_every is not None
    checkpoints = options.keep_last + has_best
    if options.loss_spike is not None:  # a spike may roll the run back to any of these
        every = options.save_every or options.loss_spike.rollback_steps
        checkpoints += -(-options.loss_spike.rollback_steps // every) + 1
    return checkpoints


def estimate_disk_bytes(
    counts: ParameterCounts, *, dtype: str, checkpoints: int, exports_full_model: bool
) -> int:
    """Return the most that a run writes.

    That is its checkpoints, one more that is being written, and the export twice: it is written
    next to the former one before it replaces it.
    """
    export = (
        counts.total * BYTES_PER_NUMBER[dtype]
        if exports_full_model
        else counts.trainable * FP32_BYTES
    )
    return checkpoint_bytes(counts) * (checkpoints + 1) + 2 * export


def checkpoint_bytes(counts: ParameterCounts) -> int:
    """Return the bytes of a checkpoint: fp32 master weights and moments of what is trained."""
    return counts.trainable * FP32_BYTES + counts.optimizer_state_bytes
