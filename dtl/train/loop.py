"""The training loop."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from dtl.config.schema.optim import Optim
from dtl.data.loader import Loader, StepBatches
from dtl.engine.base import Step
from dtl.models.packing import packing_texts
from dtl.train.global_batch import gather_global_values
from dtl.train.optim import learning_rate_factor
from dtl.train.progress import Limits, Progress, RunResult
from dtl.train.safe_points import StopRequested

if TYPE_CHECKING:
    from torch import Tensor

    from dtl.assembly.parts import Parts
    from dtl.engine.base import Engine
    from dtl.train.log import RunLog
    from dtl.train.router_losses import RouterLosses


@dataclass(frozen=True)
class Hooks:
    """Callbacks of the training loop. `evaluate` may raise StopRequested."""

    evaluate: Callable[[Progress], Progress]
    save: Callable[[Progress], None]
    heartbeat: Callable[[str], None]
    is_stop_requested: Callable[[], bool]
    check_step: Callable[[Progress, Step, StepBatches, float], None]


@dataclass(frozen=True)
class Phase:
    """What the loop trains in one phase, and on which batches. `router_losses`: of experts."""

    engine: Engine
    parts: Parts
    loader: Loader
    limits: Limits
    optim: Optim
    log: RunLog
    router_losses: RouterLosses | None = None


def train(phase: Phase, hooks: Hooks, progress: Progress) -> RunResult:
    """Train from `progress` to the last step of the phase, or until a stop is requested. A
    checkpoint is saved in both cases."""
    engine, limits, parts = phase.engine, phase.limits, phase.parts
    parts.set_training_mode(engine.unwrapped_model)
    for batches in phase.loader.iter_steps(after_step=progress.step, last_step=limits.phase_end):
        batches = sum_over_ranks(batches, engine)
        lr_factor = learning_rate_factor(
            batches.step - limits.phase_start, steps=limits.phase_steps, options=phase.optim
        )
        engine.set_learning_rate(lr_factor)
        if batches.step in limits.skip_steps or not batches.global_targets:
            done = StepResult(Step(math.nan, was_applied=False), math.nan)
            (stop_requests,) = engine.all_reduce_sum(float(hooks.is_stop_requested()))
        else:
            with packing_texts(is_on=phase.loader.packed_positions is not None):
                done, stop_requests = train_step(phase, hooks, batches)
        step = done.step
        progress = progress.advance(batches, was_applied=step.was_applied)
        loss = done.loss_sum / (batches.global_targets or 1)
        phase.log.step(
            progress,
            batches,
            loss=loss,
            router_loss=done.router_loss if phase.router_losses else None,
            gradient_norm=step.gradient_norm,
            lr_factor=lr_factor,
        )
        hooks.check_step(progress, step, batches, loss)
        must_stop = stop_requests > 0
        if limits.is_evaluation_step(progress.step) and not must_stop:
            try:
                progress = hooks.evaluate(progress)
            except StopRequested:
                must_stop = True
            parts.set_training_mode(engine.unwrapped_model)
        if limits.is_save_step(progress) or must_stop:
            hooks.save(progress)
        if must_stop and progress.step < limits.total_steps:
            return RunResult("stopped", progress)
    return RunResult("done", progress)


@dataclass(frozen=True)
class StepResult:
    """An optimizer step, and the sums over all ranks of the losses and of the losses of routers."""

    step: Step
    loss_sum: float
    router_loss: float = 0.0


def train_step(phase: Phase, hooks: Hooks, batches: StepBatches) -> tuple[StepResult, float]:
    """Take one optimizer step. Also return the votes to stop, summed over all ranks."""
    engine, task, routers = phase.engine, phase.parts.task, phase.router_losses

    def start_forward(index: int) -> None:
        position = (batches.step, index, engine.parallel_dims.data_parallel_rank)
        hooks.heartbeat(f"step {batches.step}, micro-batch {index + 1}")
        seed_generators(phase.loader.seed, *position)

    shared: list[dict[str, Tensor]] | None = None
    if task.reads_global_batch:
        shared = gather_global_values(engine, task, batches, start_forward=start_forward)

    def forward(index: int) -> Tensor:
        start_forward(index)
        with engine.autocast():
            tensors = engine.to_device(batches.batches[index].tensors)
            if shared is not None:
                tensors |= shared[index]
            return task.loss(engine.model, tensors)

    if routers is not None:
        routers.begin_step([batch.weight for batch in batches.batches], forward)
    loss_sum = torch.zeros((), dtype=torch.float64, device=engine.device)
    router_sum = torch.zeros_like(loss_sum)
    for index, batch in enumerate(batches.batches):
        with engine.accumulate(is_last=index == len(batches.batches) - 1):
            if routers is None:
                loss = forward(index) * batch.weight
            else:
                with routers.recorder.recording() as routings:
                    loss = forward(index) * batch.weight
                share = routers.loss_share(routings, batch.weight)
                loss = loss + share * batches.global_targets
                router_sum += share.detach().double()
            engine.backward(loss, targets=batches.global_targets)
        loss_sum += loss.detach().double()
    engine.sync_batch_norm_statistics()
    step, (losses, router_loss, votes) = engine.step_and_sum(
        loss_sum, router_sum, float(hooks.is_stop_requested())
    )
    return StepResult(step, losses, router_loss), votes


def sum_over_ranks(batches: StepBatches, engine: Engine) -> StepBatches:
    """Return the batches with the global counts, where each rank knows only its own rows."""
    if not batches.counts_are_local:
        return batches
    targets, length, skipped = engine.all_reduce_sum(
        batches.global_targets, batches.global_length, len(batches.skipped_rows)
    )
    return replace(
        batches,
        global_targets=int(targets),
        global_length=int(length),
        skipped_rows=tuple(engine.all_gather_object(list(batches.skipped_rows))) if skipped else (),
        counts_are_local=False,
    )


def seed_generators(seed: int, *position: int) -> None:
    """Seed the random generators of a forward pass by its position in the run. A resumed run then
    draws the same numbers, and no generator state has to be saved."""
    text = ":".join(str(number) for number in (seed, *position))
    digest = hashlib.blake2b(text.encode(), digest_size=7).digest()
    number = int.from_bytes(digest, "big")
    torch.manual_seed(number)
    np.random.seed(number % 2**32)  # SpecAugment uses NumPy's
