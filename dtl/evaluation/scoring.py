"""Held-out scores of a run, each taken once, also after an interruption; and which is best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from dtl.assembly.parts import Parts
from dtl.data.loader import Collate
from dtl.engine.base import Engine
from dtl.evaluation.evaluate import evaluate
from dtl.prepare.dataset import Examples
from dtl.run.folder import RunFolder
from dtl.train.log import RunLog
from dtl.train.loop import Progress


@dataclass
class Scoring:
    """`pause`: a safe point, called before each batch. `scores`: of the unadapted and the adapted
    model."""

    folder: RunFolder
    engine: Engine
    parts: Parts
    examples: Examples
    collate: Collate
    log: RunLog
    batch: int
    pause: Callable[[str], None]
    group_by: str | None = None
    scores: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def wanted(self) -> bool:
        """Whether there is anything to score on."""
        return self.examples.held_out is not None

    def unadapted(self, at: Progress) -> None:
        """The untouched base: before the first step, or as the log has it."""
        found = self.logged("unadapted", 0)
        untouched = why_unscored(self.parts, self.examples) is None
        untouched &= not self.parts.strategies[0].needs_base_weights
        if found is None and at.step == 0 and untouched:
            found = self.score(at, "unadapted")
        if found is not None:
            self.scores["unadapted"] = found

    def adapted(self, at: Progress) -> Progress:
        """The model as it is now, and whether it is the best so far."""
        found = self.logged("adapted", at.step)
        if found is None:
            found = self.score(at, "adapted")
        self.scores["adapted"] = found
        value = self._value(found)
        if at.best is not None and value <= at.best:
            return at
        return replace(at, best=value, best_step=at.step)

    def with_best(self, progress: Progress, *, after: int) -> Progress:
        """The best scoring after a step that the log knows of: an interrupted one may come after
        its save."""
        best: tuple[float, int] | None = None
        for line in self.folder.metrics() if self.engine.is_first else ():
            if line["kind"] == "eval" and line["model"] == "adapted" and line["step"] > after:
                value = self._value(line)
                if best is None or value > best[0]:
                    best = value, line["step"]
        best = self.engine.broadcast_object(best)
        return progress if best is None else replace(progress, best=best[0], best_step=best[1])

    def logged(self, model: str, step: int) -> dict[str, float] | None:
        """Scores that the log has already; the same on every rank."""
        lines = self.folder.metrics() if self.engine.is_first else ()
        found = [
            {key: value for key, value in line.items() if key not in ("kind", "step", "model")}
            for line in lines
            if (line["kind"], line["step"]) == ("eval", step) and line["model"] == model
        ]
        scores: dict[str, float] | None = self.engine.broadcast_object(found[-1] if found else None)
        return scores

    def score(self, at: Progress, model: str) -> dict[str, float]:
        """Score the model as it is now, under that name."""
        assert self.examples.held_out is not None
        found = evaluate(
            self.engine,
            self.parts.task,
            self.examples.held_out,
            self.collate,
            self.examples.facts,
            batch=self.batch,
            processor=self.examples.processor,
            group_by=self.group_by,
            pause=self.pause,
        )
        if self.engine.is_first:
            found.write(self.folder.outcomes_file(at.step, of=model))
        self.log.scores(at.step, found.scores, model=model)
        return found.scores

    def beats(self, scores: dict[str, float], others: dict[str, float]) -> bool:
        """Whether the first ones are better."""
        return self._value(scores) > self._value(others)

    def _value(self, scores: dict[str, float]) -> float:
        """The score that tells which model is best, so that more is better."""
        best = self.parts.task.best
        return -scores[best[1:]] if best.startswith("-") else scores[best]


def why_unscored(parts: Parts, examples: Examples) -> str | None:
    """Why scores of the model before the first step would not be those of the base; None: they
    are."""
    if parts.from_random:
        return "the strategy starts from random weights"
    if parts.strategies[0].virtual_tokens:
        return "the strategy begins with tokens that have not learnt"
    if parts.strategies[0].continues is not None:
        return "the strategy goes on with an adapter that has learnt"
    if examples.facts.get("new_head"):
        return "the base has no head for this task"
    labels = examples.facts.get("labels")
    names = [str(name) for _, name in sorted((examples.settings.id2label or {}).items())]
    if labels is None or names == labels:
        return None
    return "the base has no head for these labels"
