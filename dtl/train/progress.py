"""How far a run is, and the steps at which it evaluates, saves and ends."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from dtl.data.batching import chain_order_digest

if TYPE_CHECKING:
    from dtl.data.loader import StepBatches

End = Literal["done", "stopped"]


@dataclass(frozen=True)
class Progress:
    """Optimizer steps done, and what they consumed.

    `digest`: of the order of the examples. `updates`: steps of this phase whose update was applied.
    `best_score`, `best_step`: of the best held-out evaluation so far; a higher score is better.
    """

    step: int = 0
    digest: str = ""
    updates: int = 0
    examples: int = 0
    targets: int = 0
    best_score: float | None = None
    best_step: int | None = None

    def advance(self, step_batches: StepBatches, *, was_applied: bool) -> Progress:
        """Return the progress after an optimizer step."""
        return replace(
            self,
            step=step_batches.step,
            digest=chain_order_digest(self.digest, step_batches.global_ids),
            updates=self.updates + int(was_applied),
            examples=self.examples + step_batches.global_examples,
            targets=self.targets + step_batches.global_targets,
        )


@dataclass(frozen=True)
class RunResult:
    """How a run, or one phase of it, ended, and how far it is."""

    end: End
    progress: Progress


@dataclass(frozen=True)
class Limits:
    """The steps at which the loop evaluates, saves and ends.

    `total_steps`: of the run. The phase has the steps after `phase_start`, to `phase_end`.
    `skip_steps`: steps whose batch is read and not trained on.
    """

    total_steps: int
    phase_start: int
    phase_end: int
    evaluate_every: int | None
    save_every: int | None
    saves_best: bool = True
    skip_steps: frozenset[int] = frozenset()

    @property
    def phase_steps(self) -> int:
        """Number of steps of the phase."""
        return self.phase_end - self.phase_start

    def is_evaluation_step(self, step: int) -> bool:
        """Return whether to evaluate after this step. The evaluation after the last step of the run
        does not belong to the loop."""
        if not self.evaluate_every:
            return False
        return step % self.evaluate_every == 0 and step < self.total_steps

    def is_save_step(self, progress: Progress) -> bool:
        """Return whether to save after this step."""
        step = progress.step
        is_regular = bool(self.save_every and step % self.save_every == 0)
        is_best = self.saves_best and progress.best_step == step
        return step == self.phase_end or is_regular or is_best
