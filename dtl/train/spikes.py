"""A jump of the loss: to which checkpoint a run goes back, and which batches it leaves out."""

from __future__ import annotations

from pathlib import Path

from dtl.config.schema import Train
from dtl.core.errors import RunFailed
from dtl.engine.base import Engine
from dtl.run.folder import RunFolder
from dtl.train import checkpoint
from dtl.train.checkpoint import CheckpointStore
from dtl.train.guards import SpikeFound
from dtl.train.log import RunLog


def losses_before(folder: RunFolder, engine: Engine) -> list[float]:
    """Of all steps in the log, oldest first; the same on every rank."""
    lines = folder.metrics() if engine.is_first else ()
    found = [line["loss"] for line in lines if line["kind"] == "train"]
    losses: list[float] = engine.broadcast_object([loss for loss in found if loss is not None])
    return losses


def left_out(folder: RunFolder, engine: Engine) -> frozenset[int]:
    """Steps whose batch is not learnt from; the same on every rank."""
    spikes = engine.broadcast_object(folder.spikes)
    return frozenset(step for spike in spikes for step in spike["left_out"])


def go_back(
    spike: SpikeFound,
    options: Train,
    folder: RunFolder,
    store: CheckpointStore,
    engine: Engine,
    log: RunLog,
) -> Path:
    """The checkpoint to go on from; every rank must call. The run folder forgets what came after.

    The checkpoints after it are removed first and the jump is noted last: a run that is killed in
    between finds the jump again. Raises RunFailed after too many jumps.
    """
    assert options.spike is not None
    if engine.broadcast_object(len(folder.spikes)) >= options.skip_limit:
        raise RunFailed.of(
            f"step {spike.step}",
            f"the loss has jumped {options.skip_limit + 1} times, now to {spike.loss:.4g}",
            "lower optim.learning_rate or optim.gradient_clip; spikes.json lists the steps",
        )
    first = max(1, spike.step - options.spike.back + 1)
    path = engine.broadcast_object(
        store.newest_whole(at_most=first - 1)[0] if engine.is_first else None
    )
    if path is None:
        raise RunFailed.of(
            str(store.folder), "no whole checkpoint to go back to", "check the disk, and resume"
        )
    step = checkpoint.read_progress(path).step
    if engine.is_first:
        store.remove_after(step)
        folder.forget_after(step)
        folder.note_spike(
            {
                "step": spike.step,
                "loss": spike.loss,
                "score": spike.score,
                "examples": spike.examples,
                "back_to": step,
                "left_out": list(range(first, spike.step + 1)),
            }
        )
    log.say(
        f"step {spike.step:>5}  the loss jumped to {spike.loss:.4g}, {spike.score:.1f} spreads "
        f"above those before; back to step {step}, without the batches of {first} to {spike.step}"
    )
    engine.barrier()
    return Path(path)
