"""Rollback after a spike of the loss: to which checkpoint, and which steps are then skipped."""

from __future__ import annotations

from pathlib import Path

from dtl.core.errors import RunFailed
from dtl.engine.base import Engine
from dtl.run.folder import RunFolder
from dtl.train.checkpoint import read_progress
from dtl.train.guards import LossSpike
from dtl.train.state import RunContext


def read_losses(folder: RunFolder, engine: Engine) -> list[float]:
    """Return the losses of all steps in the log, oldest first; the same on every rank."""
    lines = folder.read_metrics() if engine.is_main_process else ()
    logged = [line["loss"] for line in lines if line["kind"] == "train"]
    losses: list[float] = engine.broadcast_object([loss for loss in logged if loss is not None])
    return losses


def read_skipped_steps(folder: RunFolder, engine: Engine) -> frozenset[int]:
    """Return the steps whose batch is not trained on; the same on every rank."""
    spikes = engine.broadcast_object(folder.spikes)
    return frozenset(step for spike in spikes for step in spike["skipped_steps"])


def roll_back(context: RunContext, spike: LossSpike) -> Path:
    """Return the checkpoint to resume from, and remove from the run folder what came after it.
    Every rank must call.

    Later checkpoints are removed first and the spike is recorded last: a run that is killed in
    between meets the spike again. Raises RunFailed after too many spikes.
    """
    folder, engine, options = context.folder, context.engine, context.config.train
    assert options.loss_spike is not None
    if engine.broadcast_object(len(folder.spikes)) >= options.max_skipped_steps:
        raise RunFailed.of(
            f"step {spike.step}",
            f"the loss has spiked {options.max_skipped_steps + 1} times, now to {spike.loss:.4g}",
            "lower optim.learning_rate or optim.gradient_clip; spikes.json lists the steps",
        )
    first = max(1, spike.step - options.loss_spike.rollback_steps + 1)
    path = _find_target(context, first - 1)
    step = read_progress(path).step
    if engine.is_main_process:
        context.store.remove_after(step)
        folder.remove_metrics_after(step)
        folder.add_spike(
            {
                "step": spike.step,
                "loss": spike.loss,
                "score": spike.score,
                "examples": spike.examples,
                "back_to": step,
                "skipped_steps": list(range(first, spike.step + 1)),
            }
        )
    context.log.print_line(
        f"step {spike.step:>5}  loss spike: {spike.loss:.4g}, {spike.score:.1f} robust standard "
        f"deviations above the median; rolled back to step {step}, steps {first} to {spike.step} "
        "will be skipped"
    )
    engine.barrier()
    return path


def _find_target(context: RunContext, last_step: int) -> Path:
    """Return the newest intact checkpoint up to a step, the same on every rank."""
    store, engine = context.store, context.engine
    path: Path | None = engine.broadcast_object(
        store.find_newest_intact(last_step=last_step)[0] if engine.is_main_process else None
    )
    if path is None:
        raise RunFailed.of(
            str(store.folder),
            f"there is no intact checkpoint up to step {last_step} to roll back to",
            "check the disk, and resume",
        )
    return path
