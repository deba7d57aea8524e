"""Proof from the log: every example once an epoch, and two runs that read the same sequence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dtl.data.order import chain, order, steps_per_epoch
from dtl.run_folder import RunFolder


@dataclass(frozen=True)
class Audit:
    """What the log of a run proves. `fault` is None when every step read what it had to read."""

    steps: int
    epochs: int
    fault: str | None

    def line(self, name: str) -> str:
        if self.fault:
            return f"{name}: {self.fault}"
        return (
            f"{name}: {self.steps} steps in their order, {self.epochs} whole epochs, each with "
            "every example exactly once"
        )


def audit(run: RunFolder) -> Audit:
    """Recompute the order from (examples, seed, global batch) and hold each logged digest to it."""
    config, data = run.config, run.data
    batch = config.train.global_batch
    per_epoch = steps_per_epoch(data["examples"], global_batch=batch)
    digest, step = str(data["key"]), 0
    batches: list[np.ndarray] = []
    for line in run.metrics():
        if line["kind"] != "train":
            continue
        if line["step"] != step + 1:
            return Audit(step, step // per_epoch, f"step {line['step']} follows step {step}")
        epoch, place = divmod(step, per_epoch)
        if place == 0:
            batches = order(
                data["examples"], seed=config.train.seed, epoch=epoch, global_batch=batch
            )
        if place == 0 and not _each_once(batches, data["examples"]):
            return Audit(step, epoch, f"epoch {epoch} does not hold every example exactly once")
        digest, step = chain(digest, batches[place]), step + 1
        if line["digest"] != digest:
            return Audit(step - 1, epoch, f"step {step} read other examples than its order says")
    return Audit(step, step // per_epoch, None)


def difference(one: RunFolder, other: RunFolder) -> str | None:
    """The first step at which two runs read different examples; None when there is none."""
    pairs = zip(_digests(one), _digests(other), strict=False)
    for step, (mine, yours) in enumerate(pairs, start=1):
        if mine != yours:
            return f"from step {step} on they read different examples"
    return None


def _digests(run: RunFolder) -> list[str]:
    return [line["digest"] for line in run.metrics() if line["kind"] == "train"]


def _each_once(batches: list[np.ndarray], examples: int) -> bool:
    return bool(np.array_equal(np.sort(np.concatenate(batches)), np.arange(examples)))
