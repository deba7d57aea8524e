"""What must not go unseen: steps that are not finite, parameters that do not learn, loss spikes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from dtl.config.schema import Spike, Train
from dtl.core.errors import RunFailed

if TYPE_CHECKING:
    from dtl.data.loader import StepBatches
    from dtl.engine.base import Engine, Step
    from dtl.train.log import RunLog
    from dtl.train.loop import Progress

LEARNING_CHECKED_AT = 5  # steps: an adapter's first matrix has no gradient in the first one
NAMES_SHOWN = 5
SCALE_SEARCH = 20  # steps in a row in which fp16 may still be looking for its loss scale
FEWEST_LOSSES = 20  # of which a spike is told
SPREAD = 1.4826  # a normal spread, in median absolute deviations


class SpikeFound(Exception):
    """All ranks have seen the loss of this step jump."""

    def __init__(self, *, step: int, loss: float, score: float, examples: list[int]) -> None:
        super().__init__(step)
        self.step, self.loss, self.score, self.examples = step, loss, score, examples


@dataclass
class Guard:
    """Called after every step, on every rank, with the same numbers.

    `every_tensor_learns`: whether a single learning tensor without gradient is a fault, as it is
    where only adapters and a head learn. `losses`: those of the steps before, oldest first.
    """

    engine: Engine
    log: RunLog
    options: Train
    every_tensor_learns: bool = False
    finds_loss_scale: bool = False
    leave_out: frozenset[int] = frozenset()
    losses: list[float] = field(default_factory=list)
    skipped_in_a_row: int = 0

    def __call__(self, progress: Progress, step: Step, window: StepBatches, loss: float) -> None:
        """Raises RunFailed where going on would only burn time, and SpikeFound."""
        if progress.step in self.leave_out:
            self.log.skip(progress.step, _examples(window), reason="its loss jumped before")
            return
        if not window.all_targets:
            reason = "none of its rows has anything to learn from"
            self.log.skip(progress.step, _examples(window), reason=reason)
            return
        if step.taken:
            self.skipped_in_a_row = 0
        else:
            self._count_skip(progress, window, loss)
        if progress.updates == LEARNING_CHECKED_AT and step.taken:
            self._check_learning()
        if self.options.spike is not None and math.isfinite(loss):
            self._look_for_spike(self.options.spike, progress, window, loss)

    def _count_skip(self, progress: Progress, window: StepBatches, loss: float) -> None:
        self.skipped_in_a_row += 1
        self.log.skip(progress.step, _examples(window), reason="its gradient is not finite")
        searching = self.finds_loss_scale and math.isfinite(loss)
        if self.skipped_in_a_row >= self.options.skip_limit + SCALE_SEARCH * searching:
            raise RunFailed.of(
                f"step {progress.step}",
                f"{self.skipped_in_a_row} steps in a row had a gradient that is not finite",
                "lower optim.learning_rate, or take model.dtype bf16 or fp32; metrics.jsonl lists "
                "the examples, and the newest checkpoint is from before",
            )

    def _check_learning(self) -> None:
        """Of a whole model a few tensors without gradient may be meant so (a pooler that the head
        does not use); most of them are a model that only seems to train."""
        names = self.engine.parameters_without_gradient()
        if not names:
            return
        total = len(self.engine.trainable_parameters())
        shown = ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
        found = f"{len(names)} of {total} learning tensors have had no gradient ({shown})"
        if self.options.no_gradient == "fail" and (
            self.every_tensor_learns or len(names) > total // 2
        ):
            raise RunFailed.of(
                "strategy",
                found,
                "look at the frozen parts and at activation checkpointing; if this is meant so, "
                "set train.no_gradient to warn",
            )
        self.log.say(f"warning: {found}")

    def _look_for_spike(
        self, options: Spike, progress: Progress, window: StepBatches, loss: float
    ) -> None:
        score = spike_score(self.losses[-options.window :], loss)
        if score > options.score:
            raise SpikeFound(step=progress.step, loss=loss, score=score, examples=_examples(window))
        self.losses.append(loss)


def spike_score(before: Sequence[float], loss: float) -> float:
    """How many normal spreads a loss lies above the median of those before it; the spread is the
    median absolute deviation, which a few odd losses do not move. 0 with too few to tell."""
    if len(before) < FEWEST_LOSSES:
        return 0.0
    middle = float(np.median(before))
    spread = SPREAD * float(np.median(np.abs(np.asarray(before) - middle)))
    return (loss - middle) / max(spread, 1e-3 * abs(middle), 1e-12)


def _examples(window: StepBatches) -> list[int]:
    return [int(number) for number in window.all_ids]
