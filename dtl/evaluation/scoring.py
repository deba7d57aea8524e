"""The held-out scores of a run: each computed once, also after an interruption."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Self

from dtl.assembly.parts import Parts
from dtl.data.evaluation_batch import EvaluationBatchSize
from dtl.engine.base import Engine
from dtl.evaluation.evaluate import EvaluationSetup, evaluate
from dtl.prepare.prepared_data import PreparedData
from dtl.run.evaluations import LoggedEvaluation, read_evaluations
from dtl.run.folder import RunFolder
from dtl.train.log import RunLog
from dtl.train.progress import Progress
from dtl.train.state import RunContext, TrainState


@dataclass
class Scorer:
    """Scores the model of a run. `check_stop`: a safe point, called before each batch. `scores`: of
    the unadapted and the adapted model."""

    folder: RunFolder
    engine: Engine
    log: RunLog
    check_stop: Callable[[str], None]
    batch_size: EvaluationBatchSize
    group_by: str | None = None
    scores: dict[str, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def from_context(cls, context: RunContext) -> Self:
        """Return the scorer of a run."""
        return cls(
            context.folder,
            context.engine,
            context.log,
            context.safe_points.check_stop,
            batch_size=context.plan.layout.evaluation_batch,
            group_by=context.config.task.group_by,
        )

    def has_held_out(self, state: TrainState) -> bool:
        """Return whether there are held-out examples to score on."""
        return state.data.held_out is not None

    def score_base(self, state: TrainState) -> None:
        """Score the unchanged base: before the first step, or from the log."""
        scores = self.read_logged("unadapted", 0)
        is_unchanged = (
            why_unscored(state.parts, state.data) is None
            and not state.parts.strategies[0].needs_base_weights
        )
        if scores is None and state.progress.step == 0 and is_unchanged:
            scores = self.score(state, "unadapted")
        if scores is not None:
            self.scores["unadapted"] = scores

    def score_adapted(self, state: TrainState, progress: Progress) -> Progress:
        """Score the current model, which is at `progress`; return it with the best score so far."""
        scores = self.read_logged("adapted", progress.step)
        if scores is None:
            scores = self.score(replace(state, progress=progress), "adapted")
        self.scores["adapted"] = scores
        value = state.parts.task.metric.to_maximize(scores)
        if progress.best_score is not None and value <= progress.best_score:
            return progress
        return replace(progress, best_score=value, best_step=progress.step)

    def restore_best(self, context: RunContext, state: TrainState) -> TrainState:
        """Return the state with the best score of its phase in the log: an interrupted run may have
        evaluated after its last save. Every rank must call."""
        best: tuple[float, int] | None = None
        for line in self._evaluations():
            if line.model == "adapted" and line.step > state.phase(context.plan).start_step:
                value = state.parts.task.metric.to_maximize(line.scores)
                if best is None or value > best[0]:
                    best = value, line.step
        best = self.engine.broadcast_object(best)
        if best is None:
            return state
        return replace(
            state, progress=replace(state.progress, best_score=best[0], best_step=best[1])
        )

    def read_logged(self, model: str, step: int) -> dict[str, float] | None:
        """Return the scores that the log already has, the same on every rank."""
        logged = [
            line.scores for line in self._evaluations() if (line.model, line.step) == (model, step)
        ]
        scores: dict[str, float] | None = self.engine.broadcast_object(
            logged[-1] if logged else None
        )
        return scores

    def score(self, state: TrainState, model: str) -> dict[str, float]:
        """Score the current model, and log it under the name `model`. Every rank must call."""
        assert state.data.held_out is not None
        setup = EvaluationSetup(
            task=state.parts.task,
            data=state.data.held_out,
            collate=state.collate,
            dataset_stats=state.data.dataset_stats,
            processor=state.data.processor,
            batch_size=self.batch_size,
            group_by=self.group_by,
        )
        evaluation = evaluate(self.engine, setup, check_stop=self.check_stop)
        step = state.progress.step
        if self.engine.is_main_process:
            evaluation.write(self.folder.eval_records_file(step, weights=model))
        self.log.scores(step, evaluation.scores, model=model)
        return evaluation.scores

    def _evaluations(self) -> Iterator[LoggedEvaluation]:
        """Yield what the log has; nothing on other ranks than 0."""
        return read_evaluations(self.folder.read_metrics() if self.engine.is_main_process else ())


def why_unscored(parts: Parts, data: PreparedData) -> str | None:
    """Return why the model before the first step is not the base that can be scored; None: it
    is."""
    if parts.is_from_random:
        return "the strategy starts from random weights"
    if parts.strategies[0].num_virtual_tokens:
        return "the strategy starts with virtual tokens that are not trained"
    if parts.strategies[0].continue_from is not None:
        return "the strategy continues a trained adapter"
    if data.dataset_stats.get("new_head"):
        return "the base has no head for this task"
    labels = data.dataset_stats.get("labels")
    names = [str(name) for _, name in sorted((data.model_config.id2label or {}).items())]
    if labels is None or names == labels:
        return None
    return "the base has no head for these labels"
