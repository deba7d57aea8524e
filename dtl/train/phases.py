"""The phases of a run: each begins with its own model and optimizer, or is restored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dtl.core.parallel_dims import ParallelDims
from dtl.models.dtypes import torch_dtype
from dtl.models.router_outputs import RouterRecorder, find_router_losses
from dtl.models.vocabulary import find_vocab_size
from dtl.train.causality import CAUSAL_CLASS, check_causality
from dtl.train.checkpoint import read_progress
from dtl.train.checkpoint_tensors import CheckpointTensors, restore_weights
from dtl.train.features.cache import use_cached_features
from dtl.train.features.extraction import FeatureExtractor
from dtl.train.isolation import check_isolation
from dtl.train.model import AdaptedModel, build_model, is_phase_transition
from dtl.train.optim import L2SPPenalty, build_optimizer
from dtl.train.progress import Limits, Progress
from dtl.train.restore import restore_checkpoint
from dtl.train.router_losses import RouterLosses
from dtl.train.state import RunContext, TrainState, make_loader
from dtl.train.weight_averages import MovingAverageHook

if TYPE_CHECKING:
    from torch import Tensor, nn

CALIBRATION_BATCH = 8  # examples, on every layout


def make_state(context: RunContext, saved: Path | None) -> TrainState:
    """Return the state at a checkpoint, or at the start of the run."""
    start = Progress(digest=context.data.train.key)
    progress = start if saved is None else read_progress(saved)
    parts = context.parts.for_phase(context.plan.phase_index(progress.step))
    return TrainState(parts, context.data, progress)


def open_phase(context: RunContext, state: TrainState, saved: Path | None) -> TrainState:
    """Build the model and the optimizer of the state's phase, and restore them from `saved`.

    `saved`: a checkpoint of this phase, or the last one of the phase before; None: the run starts.
    """
    engine, plan, parts = context.engine, context.plan, state.parts
    phase, progress = state.phase(plan), state.progress
    is_start = saved is None or is_phase_transition(plan, parts, saved)
    context.safe_points.long_heartbeat("loading the model")
    adapted = build_model(context.config, plan, parts, state.data, engine, saved=saved)
    parts.set_training_mode(adapted.model)
    if is_start:
        _init_strategy(context, state, adapted)
    optimizer = build_optimizer(
        adapted.model,
        context.config.optim,
        learning_rate=phase.learning_rate,
        head_learning_rate=phase.head_learning_rate,
        new_parameters=adapted.new_parameters,
        rate_factor=parts.strategy.learning_rate_factor,
    )
    context.safe_points.long_heartbeat("preparing the model")
    engine.barrier()  # a rank may have read the weights much faster than another
    engine.prepare(adapted.model, optimizer)
    _register_optimizer_hooks(context, state, completed_steps=0 if is_start else progress.updates)
    context.log.peak_learning_rate = phase.learning_rate
    context.log.head_learning_rate = phase.head_learning_rate
    if saved is None:
        _check_model_fits_task(context, state)
        return state
    if not is_start:
        restore_checkpoint(saved, engine, parts, make_loader(context, state))
        return state
    if parts.strategies[parts.phase - 1].export_kind == "model":  # else the names are other ones
        restore_weights(CheckpointTensors(saved), engine, allow_missing=True)
    return replace(state, progress=replace(progress, updates=0, best_score=None, best_step=None))


def _check_model_fits_task(context: RunContext, state: TrainState) -> None:
    """Raise DtlError if the model sees the tokens that the task predicts, or other examples of its
    micro-batch."""
    rows = find_vocab_size(state.data.model_config)
    if state.parts.task.auto_class == CAUSAL_CLASS and rows is not None:
        check_causality(context.engine, vocab_size=rows)
        if context.plan.layout.packed_positions is not None:
            check_isolation(context.engine, vocab_size=rows)
        state.parts.set_training_mode(context.engine.unwrapped_model)


def cache_features(context: RunContext, state: TrainState) -> TrainState:
    """Return the state with the features of the base, where the phase caches them."""
    if not state.phase(context.plan).caches_features:
        return state
    context.safe_points.long_heartbeat("finding what the head reads")
    extractor = FeatureExtractor(
        context.config,
        context.plan,
        state.parts,
        state.data,
        context.engine,
        state.collate,
        check_stop=context.safe_points.check_stop,
        print_line=context.log.print_line,
    )
    parts, data = use_cached_features(extractor)
    return replace(state, parts=parts, data=data)


def open_router_losses(context: RunContext, state: TrainState) -> RouterLosses | None:
    """Return the losses of the model's routers, where the phase runs them; None: it adds none."""
    coefficient = context.config.train.router_aux_loss_coef
    settings = find_router_losses(state.data.model_config, coefficient)
    if settings is None or state.phase(context.plan).caches_features:
        return None
    recorder = RouterRecorder(
        context.engine.unwrapped_model,
        top_k=settings.top_k,
        skips_evaluation=state.parts.task.compares_with_base,
    )
    return RouterLosses(settings, recorder, context.engine)


def make_limits(
    context: RunContext, state: TrainState, *, skip_steps: frozenset[int] = frozenset()
) -> Limits:
    """Return the steps at which the state's phase evaluates, saves and ends."""
    options, phase = context.config.train, state.phase(context.plan)
    return Limits(
        context.plan.steps,
        phase.start_step,
        phase.last_step,
        options.evaluate_every if state.data.held_out is not None else None,
        options.save_every,
        saves_best=options.keep_best,
        skip_steps=skip_steps,
    )


def _init_strategy(context: RunContext, state: TrainState, adapted: AdaptedModel) -> None:
    """Initialize what the strategy adds, where it needs training examples or the base's weights."""
    strategy, model = state.parts.strategy, adapted.model
    heartbeat = context.safe_points.long_heartbeat
    if strategy.needs_calibration:
        _calibrate(context, state, model)
    if strategy.needs_base_weights:
        strategy.init_from_base_weights(
            model,
            original_weights=adapted.original_weights,
            device=context.engine.device,
            heartbeat=partial(heartbeat, "initializing from the weights of the base"),
        )


def _calibrate(context: RunContext, state: TrainState, model: nn.Module) -> None:
    """Initialize the strategy from training examples, the same ones on every layout."""
    engine, task, activity = context.engine, state.parts.task, "reading training examples"
    dtype = torch_dtype(context.plan.layout.dtype)  # of what is frozen; adapters are fp32
    context.safe_points.long_heartbeat(activity)

    def forward(model: nn.Module, batch: dict[str, Tensor]) -> None:
        context.safe_points.long_heartbeat(activity)
        with torch.autocast(engine.device.type, dtype, enabled=dtype != torch.float32):
            task.loss(model, engine.to_device(batch))

    state.parts.strategy.init_from_data(
        model.to(engine.device), batches=_calibration_batches(context, state), forward=forward
    )
    state.parts.set_training_mode(model)


def _calibration_batches(context: RunContext, state: TrainState) -> Iterator[dict[str, Tensor]]:
    loader = replace(
        make_loader(context, state),
        parallel_dims=ParallelDims(),
        micro_batch=CALIBRATION_BATCH,
        packed_positions=None,
    )
    for step in count(1):
        for batch in loader.load_step(step).batches:
            if batch.targets:
                yield batch.tensors


def _register_optimizer_hooks(
    context: RunContext, state: TrainState, *, completed_steps: int
) -> None:
    """Register what changes weights or gradients at each step. The hooks remember the start values,
    so a checkpoint is restored after this. `completed_steps`: updates of this phase."""
    engine, phase = context.engine, state.phase(context.plan)
    master_weights, optimizer = engine.fp32_master_weights(), engine.inner_optimizer
    if context.config.optim.l2_sp is not None:
        optimizer.register_step_pre_hook(L2SPPenalty(master_weights))
    state.parts.strategy.register_optimizer_hooks(
        engine.unwrapped_model,
        optimizer,
        total_steps=phase.last_step - phase.start_step,
        completed_steps=completed_steps,
    )
    if (decay := context.config.train.ema_decay) is not None:
        optimizer.register_step_post_hook(MovingAverageHook(master_weights, decay=decay))
