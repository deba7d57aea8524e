"""Prove from the log of a run that each example was read exactly once an epoch, in the planned
order, and that two runs read the same examples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dtl.data.batching import chain_order_digest
from dtl.run.creation import LENGTHS
from dtl.run.folder import RunFolder


@dataclass(frozen=True)
class AuditResult:
    """What the log of a run proves.

    `steps`: steps that are proven. `epochs`: complete epochs among them. `fault`: the first fault;
    None if there is none.
    """

    steps: int
    epochs: int
    fault: str | None

    def format_line(self, name: str) -> str:
        """Return the result in one line."""
        if self.fault:
            return f"{name}: {self.fault}"
        return (
            f"{name}: {self.steps} steps in the planned order; {self.epochs} complete epochs, each "
            "with every example exactly once"
        )


def audit_run(run: RunFolder) -> AuditResult:
    """Compute the batches of all steps again, and compare their digests with the logged ones."""
    batching = run.batching
    if batching is None:
        return AuditResult(0, 0, f"there is no {LENGTHS}, which the batches depend on")
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
            fault = f"epoch {batch.epoch} does not have every example exactly once"
            return AuditResult(step, batch.epoch, fault)
        digest, epoch = chain_order_digest(digest, batch.examples), batch.epoch
        if line["digest"] != digest:
            fault = f"step {step + 1} read other examples than planned"
            return AuditResult(step, epoch, fault)
        step += 1
    return AuditResult(step, batching.batch_for_step(step + 1).epoch, None)


def find_data_difference(first: RunFolder, second: RunFolder) -> str | None:
    """Return from which step on two runs read different examples; None if there is none."""
    pairs = zip(_logged_digests(first), _logged_digests(second), strict=False)
    for step, (first_digest, second_digest) in enumerate(pairs, start=1):
        if first_digest != second_digest:
            return f"the runs read different examples from step {step} on"
    return None


def _logged_digests(run: RunFolder) -> list[str]:
    return [line["digest"] for line in run.read_metrics() if line["kind"] == "train"]


def _is_permutation(batches: list[np.ndarray], examples: int) -> bool:
    return bool(np.array_equal(np.sort(np.concatenate(batches)), np.arange(examples)))
