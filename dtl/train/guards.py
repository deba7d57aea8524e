"""Checks after every step: non-finite gradients, parameters without gradient, loss spikes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from dtl.config.schema import Train
from dtl.core.errors import RunFailed
from dtl.models.vocabulary import DELTA_NAME

if TYPE_CHECKING:
    from dtl.config.schema.train import LossSpikeOptions
    from dtl.data.loader import StepBatches
    from dtl.engine.base import Engine, Step
    from dtl.train.log import RunLog
    from dtl.train.progress import Progress

GRADIENT_CHECK_UPDATES = 5  # an adapter's first matrix has no gradient in the first update
MAX_LISTED_NAMES = 5
LOSS_SCALE_SEARCH_STEPS = 20  # consecutive steps in which fp16 may search for its loss scale
MIN_LOSSES = 20  # before a spike can be detected
MAD_TO_STANDARD_DEVIATION = 1.4826  # of a normal distribution, per median absolute deviation


class LossSpike(Exception):
    """All ranks have seen the loss spike in this step."""

    def __init__(self, *, step: int, loss: float, score: float, examples: list[int]) -> None:
        super().__init__(step)
        self.step, self.loss, self.score, self.examples = step, loss, score, examples


@dataclass
class StepGuard:
    """Called after every step, on every rank, with the same numbers.

    `expects_all_gradients`: whether one trainable tensor without gradient is a fault, as it is
    where only adapters and a head are trained. `has_loss_scaler`: whether fp16 searches for a loss
    scale. `skip_steps`: whose batch is skipped. `previous_losses`: oldest first.
    """

    engine: Engine
    log: RunLog
    options: Train
    expects_all_gradients: bool = False
    has_loss_scaler: bool = False
    skip_steps: frozenset[int] = frozenset()
    previous_losses: list[float] = field(default_factory=list)
    consecutive_skips: int = 0

    def __call__(self, progress: Progress, step: Step, batches: StepBatches, loss: float) -> None:
        """Raise RunFailed where continuing would waste time, and LossSpike."""
        if progress.step in self.skip_steps:
            reason = "the loss spiked here before"
            self.log.skip(progress.step, _example_ids(batches), reason=reason)
            return
        if not batches.global_targets:
            reason = "its rows have no targets"
            self.log.skip(progress.step, _example_ids(batches), reason=reason)
            return
        if step.was_applied:
            self.consecutive_skips = 0
        else:
            self._count_skip(progress, batches, loss)
        if progress.updates == GRADIENT_CHECK_UPDATES and step.was_applied:
            self._check_gradients()
        if self.options.loss_spike is not None and math.isfinite(loss):
            self._check_spike(self.options.loss_spike, progress, batches, loss)

    def _count_skip(self, progress: Progress, batches: StepBatches, loss: float) -> None:
        self.consecutive_skips += 1
        self.log.skip(progress.step, _example_ids(batches), reason="its gradient is not finite")
        is_searching = self.has_loss_scaler and math.isfinite(loss)
        limit = self.options.max_skipped_steps + LOSS_SCALE_SEARCH_STEPS * is_searching
        if self.consecutive_skips >= limit:
            raise RunFailed.of(
                f"step {progress.step}",
                f"{self.consecutive_skips} consecutive steps had a gradient that is not finite",
                "lower optim.learning_rate, or set model.dtype to bf16 or fp32; metrics.jsonl "
                "lists the examples, and the newest checkpoint is from before",
            )

    def _check_gradients(self) -> None:
        """Check that trainable tensors have had a gradient. In a full model a few without one may
        be intended (a pooler that the head does not use); most of them mean that the model does
        not train."""
        names = [
            name
            for name in self.engine.parameters_without_gradient()
            if DELTA_NAME not in name  # rows of tokens that no row of data has
        ]
        if not names:
            return
        total = len(self.engine.trainable_parameters())
        listed = ", ".join(names[:MAX_LISTED_NAMES])
        listed += ", ..." if len(names) > MAX_LISTED_NAMES else ""
        problem = f"{len(names)} of {total} trainable tensors have had no gradient ({listed})"
        if self.options.on_missing_gradient == "fail" and (
            self.expects_all_gradients or len(names) > total // 2
        ):
            raise RunFailed.of(
                "strategy",
                problem,
                "check what is frozen, and activation checkpointing; if it is intended, set "
                "train.on_missing_gradient to warn",
            )
        self.log.print_line(f"warning: {problem}")

    def _check_spike(
        self, options: LossSpikeOptions, progress: Progress, batches: StepBatches, loss: float
    ) -> None:
        score = spike_score(self.previous_losses[-options.window_steps :], loss)
        if score > options.threshold:
            raise LossSpike(
                step=progress.step, loss=loss, score=score, examples=_example_ids(batches)
            )
        self.previous_losses.append(loss)


def spike_score(previous: Sequence[float], loss: float) -> float:
    """Return how many robust standard deviations a loss is above the median of the previous ones; 0
    where they are too few. The median absolute deviation is robust against single outliers."""
    if len(previous) < MIN_LOSSES:
        return 0.0
    median = float(np.median(previous))
    deviation = MAD_TO_STANDARD_DEVIATION * float(np.median(np.abs(np.asarray(previous) - median)))
    return (loss - median) / max(deviation, 1e-3 * abs(median), 1e-12)


def _example_ids(batches: StepBatches) -> list[int]:
    return [int(number) for number in batches.global_ids]
