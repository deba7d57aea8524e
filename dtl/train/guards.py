"""What must not go unseen: steps that are not finite, and parameters that do not learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dtl.errors import RunFailed

if TYPE_CHECKING:
    from dtl.data.loader import Window
    from dtl.engine import Engine, Step
    from dtl.train.log import RunLog
    from dtl.train.loop import Progress

LEARNING_CHECKED_AT = 5  # steps: an adapter's first matrix has no gradient in the first one
NAMES_SHOWN = 5


@dataclass
class Guard:
    """Called after every step, on every rank, with the same numbers."""

    engine: Engine
    log: RunLog
    skip_limit: int
    skipped_in_a_row: int = 0
    skipped: int = 0

    def __call__(self, progress: Progress, step: Step, window: Window) -> None:
        """Raises RunFailed where going on would only burn time."""
        if step.taken:
            self.skipped_in_a_row = 0
        else:
            self._count_skip(progress, window)
        if progress.updates == LEARNING_CHECKED_AT and step.taken:
            self._check_learning()

    def _count_skip(self, progress: Progress, window: Window) -> None:
        self.skipped += 1
        self.skipped_in_a_row += 1
        examples = [int(number) for number in window.all_ids]
        self.log.skip(progress.step, examples)
        if self.skipped_in_a_row >= self.skip_limit:
            raise RunFailed.of(
                f"step {progress.step}",
                f"{self.skipped_in_a_row} steps in a row had a gradient that is not finite",
                "lower optim.learning_rate, or take model.dtype bf16 or fp32; metrics.jsonl lists "
                "the examples, and the newest checkpoint is from before",
            )

    def _check_learning(self) -> None:
        """A few tensors without gradient may be meant so (a pooler that the head does not use);
        most of them are a model that only seems to train."""
        names = self.engine.without_gradient()
        if not names:
            return
        total = len(self.engine.learning())
        shown = ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
        found = f"{len(names)} of {total} learning tensors have had no gradient ({shown})"
        if len(names) > total // 2:
            raise RunFailed.of(
                "strategy", found, "look at the frozen parts and at activation checkpointing"
            )
        self.log.say(f"warning: {found}")
