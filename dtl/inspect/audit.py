"""Proof from the log: every example once an epoch, and two runs that read the same sequence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dtl.data.order import chain_order_digest
from dtl.run.folder import LENGTHS, RunFolder


@dataclass(frozen=True)
class AuditResult:
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


def audit_run(run: RunFolder) -> AuditResult:
    """Form the batches once more and hold each logged digest to them."""
    batching = run.batching
    if batching is None:
        return AuditResult(0, 0, f"there is no {LENGTHS} to form its batches from")
    digest, step, epoch = str(run.data["key"]), 0, -1
    for line in run.read_metrics():
        if line["kind"] != "train":
            continue
        if line["step"] != step + 1:
            return AuditResult(step, max(epoch, 0), f"step {line['step']} follows step {step}")
        batch = batching.batch_for_step(step + 1)
        if batch.epoch > epoch and not _is_permutation(
            batching.form_epoch(batch.epoch), batching.examples
        ):
            told = f"epoch {batch.epoch} does not hold every example exactly once"
            return AuditResult(step, batch.epoch, told)
        digest, epoch = chain_order_digest(digest, batch.examples), batch.epoch
        if line["digest"] != digest:
            return AuditResult(
                step, epoch, f"step {step + 1} read other examples than its order says"
            )
        step += 1
    return AuditResult(step, batching.batch_for_step(step + 1).epoch, None)


def find_data_difference(one: RunFolder, other: RunFolder) -> str | None:
    """The first step at which two runs read different examples; None when there is none."""
    pairs = zip(_logged_digests(one), _logged_digests(other), strict=False)
    for step, (mine, yours) in enumerate(pairs, start=1):
        if mine != yours:
            return f"from step {step} on they read different examples"
    return None


def _logged_digests(run: RunFolder) -> list[str]:
    return [line["digest"] for line in run.read_metrics() if line["kind"] == "train"]


def _is_permutation(batches: list[np.ndarray], examples: int) -> bool:
    return bool(np.array_equal(np.sort(np.concatenate(batches)), np.arange(examples)))
