"""The training loop, and only that."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from dtl.config.optim import Optim
from dtl.data.loader import Loader, StepBatches
from dtl.data.order import chain
from dtl.engine.base import Step
from dtl.train.optim import schedule

if TYPE_CHECKING:
    from torch import Tensor

    from dtl.assembly.parts import Parts
    from dtl.engine.base import Engine
    from dtl.tasks.base import Task
    from dtl.train.log import RunLog


@dataclass(frozen=True)
class Progress:
    """How far a run is: optimizer steps done, what it learnt from, a digest of the order, and the
    best held-out score so far with its step."""

    step: int = 0
    digest: str = ""
    updates: int = 0  # steps of this phase that were taken, not skipped
    examples: int = 0
    targets: int = 0
    best: float | None = None
    best_step: int | None = None

    def after(self, window: StepBatches, *, taken: bool) -> Progress:
        return replace(
            self,
            step=window.step,
            digest=chain(self.digest, window.all_ids),
            updates=self.updates + int(taken),
            examples=self.examples + window.all_examples,
            targets=self.targets + window.all_targets,
        )


@dataclass(frozen=True)
class Limits:
    """When the loop scores, saves and ends, in optimizer steps: of the run, and after `before` to
    `last` of the phase. `leave_out`: steps whose batch is read but not learnt from."""

    steps: int
    before: int
    last: int
    evaluate_every: int | None
    save_every: int | None
    keep_best: bool = True
    leave_out: frozenset[int] = frozenset()

    def evaluate_at(self, step: int) -> bool:
        """In between; the scoring at the end is not the loop's."""
        return (
            bool(self.evaluate_every) and step % (self.evaluate_every or 1) == 0 < self.steps - step
        )

    def save_at(self, progress: Progress) -> bool:
        step = progress.step
        rhythm = bool(self.save_every and step % self.save_every == 0)
        return step == self.last or rhythm or (self.keep_best and progress.best_step == step)


class StopAgreed(Exception):
    """All ranks have agreed, at the same point, to save and end."""


@dataclass(frozen=True)
class Hooks:
    """What the loop calls but does not know. `evaluate` may raise StopAgreed."""

    evaluate: Callable[[Progress], Progress]
    save: Callable[[Progress], None]
    beat: Callable[[str], None]
    asked_to_stop: Callable[[], bool]
    guard: Callable[[Progress, Step, StepBatches, float], None]


End = Literal["done", "stopped"]


def train(
    engine: Engine,
    parts: Parts,
    loader: Loader,
    log: RunLog,
    *,
    progress: Progress,
    limits: Limits,
    hooks: Hooks,
    optim: Optim,
) -> tuple[Progress, End]:
    """From `progress` to the last step of the phase, or to where the run is asked to stop; saved
    either way."""
    parts.training_mode(engine.plain_model)
    for window in loader.windows(after_step=progress.step, last_step=limits.last):
        rate = schedule(
            window.step - limits.before, steps=limits.last - limits.before, options=optim
        )
        engine.set_learning_rate(rate)
        window = _added_up(window, engine)
        if window.step in limits.leave_out or not window.all_targets:
            step, total = Step(math.nan, taken=False), torch.tensor(math.nan)
        else:
            step, total = _learn_from(window, engine, parts.task, loader.seed, hooks)
        progress = progress.after(window, taken=step.taken)
        loss_sum, stops = engine.all_reduce_sum(total, float(hooks.asked_to_stop()))
        loss = loss_sum / (window.all_targets or 1)
        log.step(progress, window, loss=loss, norm=step.norm, rate=rate)
        hooks.guard(progress, step, window, loss)
        stopping = stops > 0
        if limits.evaluate_at(progress.step) and not stopping:
            try:
                progress = hooks.evaluate(progress)
            except StopAgreed:
                stopping = True
            parts.training_mode(engine.plain_model)
        if limits.save_at(progress) or stopping:
            hooks.save(progress)
        if stopping and progress.step < limits.steps:
            return progress, "stopped"
    return progress, "done"


def _added_up(window: StepBatches, engine: Engine) -> StepBatches:
    """The window with what all ranks have read, where none knows what the others have."""
    if not window.shared:
        return window
    targets, length, left_out = engine.all_reduce_sum(
        window.all_targets, window.all_length, len(window.left_out)
    )
    return replace(
        window,
        all_targets=int(targets),
        all_length=int(length),
        left_out=tuple(engine.all_gather_object(list(window.left_out))) if left_out else (),
        shared=False,
    )


def _learn_from(
    window: StepBatches, engine: Engine, task: Task, seed: int, hooks: Hooks
) -> tuple[Step, Tensor]:
    """One optimizer step; also the sum of this rank's losses, shape (), in float64."""
    total = torch.zeros((), dtype=torch.float64, device=engine.device)
    for place, batch in enumerate(window.batches):
        hooks.beat(f"step {window.step}, micro-batch {place + 1}")
        draw_from(seed, window.step, place, engine.rank)
        with engine.micro_batch(last=place == len(window.batches) - 1):
            with engine.forward():
                loss = task.loss(engine.model, engine.to_device(batch.tensors)) * batch.weight
            engine.backward(loss, targets=window.all_targets)
        total += loss.detach().double()
    engine.sync_batch_norm_statistics()
    return engine.step(), total


def draw_from(seed: int, *position: int) -> None:
    """Seed what is drawn in a forward pass by its position in the run, so that a resumed run draws
    the same and there is nothing to save."""
    text = ":".join(str(number) for number in (seed, *position))
    digest = hashlib.blake2b(text.encode(), digest_size=7).digest()
    number = int.from_bytes(digest, "big")
    torch.manual_seed(number)
    np.random.seed(number % 2**32)  # SpecAugment draws from it
