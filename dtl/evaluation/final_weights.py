"""The weights that a finished run exports: the last, the best, or an average."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dtl.core.errors import RunFailed
from dtl.evaluation.scoring import Scorer
from dtl.train.checkpoint_tensors import CheckpointTensors, WeightSource
from dtl.train.restore import restore_weights_and_buffers
from dtl.train.state import RunContext, TrainState, make_loader
from dtl.train.weight_averages import MeanWeights, MovingAverageWeights


@dataclass(frozen=True)
class FinalWeights:
    """The weights to export. `name`: adapted, ema or average. `source`: None means the weights that
    the engine holds."""

    name: str = "adapted"
    source: WeightSource | None = None


def choose_final_weights(context: RunContext, state: TrainState, scorer: Scorer) -> FinalWeights:
    """Return the weights to export, as `train.export` says; their scores become the run's.

    Averages are scored, and exported where `train.export` names them or where they score better.
    Every rank must call.
    """
    best, averages = _find_best_checkpoint(context, state, scorer), _averages(context, state)
    if not averages:
        return FinalWeights(source=CheckpointTensors(best) if best else None)
    # Scoring an average replaces the weights in the engine; the last ones are in a checkpoint.
    last = best or context.store.step_path(state.progress.step)
    final = FinalWeights(source=CheckpointTensors(last))
    for name, average in averages.items():
        scores = _score_average(context, state, scorer, name, average)
        is_better = scores is not None and _is_better(state, scores, scorer.scores["adapted"])
        export = context.config.train.exported_weights
        if export == name or (is_better and export in ("last", "best")):
            final = FinalWeights(name, average)
            context.log.print_line(f"the averaged weights ({name}) are exported")
            if scores is not None:
                scorer.scores["adapted"] = scores
    return final


def _find_best_checkpoint(context: RunContext, state: TrainState, scorer: Scorer) -> Path | None:
    """Return the checkpoint of the best step, where it is exported and is not the last one."""
    progress, exported = state.progress, context.config.train.exported_weights
    if exported != "best" or progress.best_step in (None, progress.step):
        return None
    assert progress.best_step is not None
    path = _find_intact(context, progress.best_step)
    scores = scorer.read_logged("adapted", progress.best_step)
    assert scores is not None, "the best step comes from the log"
    scorer.scores["adapted"] = scores
    context.log.print_line(
        f"step {progress.best_step} has the best scores: its weights are exported"
    )
    return path


def _averages(context: RunContext, state: TrainState) -> dict[str, WeightSource]:
    """Return the averages of the weights, by their config key."""
    options, averages = context.config.train, dict[str, WeightSource]()
    if options.ema_decay is not None:
        last = CheckpointTensors(_find_intact(context, state.progress.step))
        averages["ema"] = MovingAverageWeights(last)
    if options.average_checkpoints is not None:
        steps = context.engine.broadcast_object(context.store.steps)[-options.average_checkpoints :]
        context.log.print_line(f"the weights of steps {', '.join(map(str, steps))} are averaged")
        averages["average"] = MeanWeights(
            [CheckpointTensors(_find_intact(context, step)) for step in steps]
        )
    return averages


def _score_average(
    context: RunContext, state: TrainState, scorer: Scorer, name: str, average: WeightSource
) -> dict[str, float] | None:
    """Return the scores of averaged weights, from the log where it has them; None: no held-out
    rows."""
    if not scorer.has_held_out(state):
        return None
    scores = scorer.read_logged(name, state.progress.step)
    if scores is None:
        context.safe_points.long_heartbeat(f"evaluation, averaged weights ({name})")
        loader = make_loader(context, state)
        restore_weights_and_buffers(average, context.engine, state.parts, loader)
        scores = scorer.score(state, name)
    return scores


def _is_better(state: TrainState, scores: dict[str, float], others: dict[str, float]) -> bool:
    metric = state.parts.task.metric
    return metric.to_maximize(scores) > metric.to_maximize(others)


def _find_intact(context: RunContext, step: int) -> Path:
    """Return the checkpoint of a step after its files were verified. Raises RunFailed."""
    path, engine = context.store.step_path(step), context.engine
    damage = context.store.find_damage(path) if engine.is_main_process else None
    damage = engine.broadcast_object(damage)
    if damage is not None:
        raise RunFailed.of(str(path), damage, "resume with train.export=last")
    return path
