"""The training job of one rank, from the checkpoint it resumes to the export."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

from dtl.engine.base import Engine
from dtl.evaluation.final_weights import choose_final_weights
from dtl.evaluation.run_warnings import find_run_warnings, read_training_record
from dtl.evaluation.scoring import Scorer
from dtl.export.finished_run import export_finished_run
from dtl.prepare.prepared_data import PreparedData
from dtl.run.folder import RunFolder
from dtl.train.checkpoint import size_on_disk
from dtl.train.find_checkpoint import find_checkpoint
from dtl.train.guards import LossSpike, StepGuard
from dtl.train.log import format_scores
from dtl.train.loop import Hooks, Phase, train
from dtl.train.phases import (
    cache_features,
    make_limits,
    make_state,
    open_phase,
    open_router_losses,
)
from dtl.train.process import ProcessContext
from dtl.train.progress import End, Progress, RunResult
from dtl.train.restore import init_optimizer_state
from dtl.train.rollback import read_losses, read_skipped_steps, roll_back
from dtl.train.safe_points import StopRequested
from dtl.train.setup import open_context
from dtl.train.state import RunContext, TrainState, make_loader


def run(
    folder: RunFolder, engine: Engine, data: PreparedData, process: ProcessContext
) -> RunResult:
    """Run the job on one rank. Every rank must call."""
    end: End
    # 1. What stays the same during the run.
    context = open_context(folder, engine, data, process)
    scorer = Scorer.from_context(context)
    state = make_state(context, None)
    try:
        # 2. Find the newest checkpoint.
        context.safe_points.long_heartbeat("looking for a checkpoint")
        saved = find_checkpoint(folder, context.store, engine, context.log)
        state = make_state(context, saved)
        # 3. Build the model of its phase, and restore it.
        state = scorer.restore_best(context, open_phase(context, state, saved))
        state = cache_features(context, state)
        # 4. Score the base model, and the evaluation that an interruption has prevented.
        state = score_at_start(context, scorer, state)
        # 5. Save step 0, so that a rollback always finds a checkpoint.
        if context.config.train.loss_spike is not None and saved is None:
            init_optimizer_state(engine, state.parts, make_loader(context, state))
            save(context, state.progress)
        # 6. Train phase by phase; roll back after a spike of the loss.
        state, end = train_phases(context, scorer, state)
        # 7. Score, export, and write the result.
        if end == "done":
            state = finish(context, scorer, state)
    except StopRequested:
        end = "stopped"
    finally:
        context.log.close()
    return RunResult(end, state.progress)


def score_at_start(context: RunContext, scorer: Scorer, state: TrainState) -> TrainState:
    """Score the base, and the model of a checkpoint whose evaluation was interrupted."""
    if not scorer.has_held_out(state):
        return state
    scorer.score_base(state)
    step = state.progress.step
    if step > 0 and make_limits(context, state).is_evaluation_step(step):
        return replace(state, progress=scorer.score_adapted(state, state.progress))
    return state


def train_phases(context: RunContext, scorer: Scorer, state: TrainState) -> tuple[TrainState, End]:
    """Train to the last step of the run, or until it is requested to stop."""
    context.log.start_timer()
    while True:
        try:
            result = train_phase(context, scorer, state)
            state = replace(state, progress=result.progress)
            if result.end == "stopped" or state.progress.step == context.plan.steps:
                return state, result.end
            saved, is_rollback = context.store.step_path(state.progress.step), False
        except LossSpike as spike:
            context.safe_points.long_heartbeat(f"rolling back from step {spike.step}")
            saved, is_rollback = roll_back(context, spike), True
        context.engine.free_memory()
        state = make_state(context, saved)
        try:
            state = scorer.restore_best(context, open_phase(context, state, saved))
            state = cache_features(context, state)
        except StopRequested:
            return state, "stopped"
        context.log.start_timer()
        if not is_rollback:
            phase, phases = state.parts.phase + 1, len(context.plan.phases)
            name = state.phase(context.plan).strategy
            context.log.print_line(f"phase {phase} of {phases}: {name}")


def train_phase(context: RunContext, scorer: Scorer, state: TrainState) -> RunResult:
    """Train from the state's progress to the end of its phase. Raises LossSpike."""
    folder, engine, options = context.folder, context.engine, context.config.train
    skip_steps = read_skipped_steps(folder, engine)
    guard = StepGuard(
        engine,
        context.log,
        options,
        expects_all_gradients=state.parts.strategy.export_kind == "adapter",
        has_loss_scaler=context.plan.layout.dtype == "fp16",
        skip_steps=skip_steps,
        previous_losses=read_losses(folder, engine) if options.loss_spike else [],
    )
    hooks = Hooks(
        evaluate=partial(scorer.score_adapted, state),
        save=partial(save, context),
        heartbeat=context.safe_points.heartbeat,
        is_stop_requested=context.safe_points.is_stop_requested,
        check_step=guard,
    )
    phase = Phase(
        engine,
        state.parts,
        make_loader(context, state),
        make_limits(context, state, skip_steps=skip_steps),
        context.config.optim,
        context.log,
        open_router_losses(context, state),
    )
    return train(phase, hooks, state.progress)


def save(context: RunContext, progress: Progress) -> None:
    """Save a checkpoint, and measure how long it takes. Every rank must call."""
    if not context.process.saves_checkpoints:
        return
    context.safe_points.long_heartbeat(f"saving step {progress.step}")
    start = time.monotonic()
    path = context.store.save(context.engine, progress)
    seconds = time.monotonic() - start
    context.meter.write()
    context.safe_points.deadline.record_save(seconds)
    context.log.save(progress.step, seconds=seconds, size=size_on_disk(path))


def finish(context: RunContext, scorer: Scorer, state: TrainState) -> TrainState:
    """Score, export, and write the result, after which the run is finished."""
    folder, engine, log = context.folder, context.engine, context.log
    if scorer.has_held_out(state):
        state = replace(state, progress=scorer.score_adapted(state, state.progress))
    context.meter.write()
    final, progress = choose_final_weights(context, state, scorer), state.progress
    if context.process.exports_model:
        export_finished_run(context, state, final, scorer.scores)
    warnings: list[str] = []
    if engine.is_main_process:
        warnings = find_run_warnings(read_training_record(context, state, scorer))
        folder.finish(
            {
                "steps": progress.step,
                "scores": scorer.scores,
                "best": {"step": progress.best_step, "score": progress.best_score},
                "weights": final.name,
                "export": str(folder.export),
                "warnings": warnings,
            }
        )
    engine.barrier()
    if context.config.data.train.streaming and engine.is_main_process and log.listed_rows:
        log.print_line(f"   skipped: {len(log.listed_rows)} rows, in skipped_rows.jsonl")
    for name, scores in scorer.scores.items():
        log.print_line(f"{name:>10}: {format_scores(scores)}")
    log.print_line(f"    export: {folder.export}")
    for warning in warnings:
        log.print_line(f"warning: {warning}")
    return state
