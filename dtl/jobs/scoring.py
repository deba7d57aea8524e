"""Held-out scores of a run, each taken once, also after an interruption; and which is best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from dtl.assemble import Parts
from dtl.data.loader import Collate
from dtl.engine import Engine
from dtl.examples import Examples
from dtl.run_folder import RunFolder
from dtl.train.evaluate import evaluate, outcomes_file
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
        if found is None and at.step == 0 and self._base_can_be_scored():
            found = self._score(at, "unadapted")
        if found is not None:
            self.scores["unadapted"] = found

    def adapted(self, at: Progress) -> Progress:
        """The model as it is now, and whether it is the best so far."""
        found = self.logged("adapted", at.step)
        if found is None:
            found = self._score(at, "adapted")
        self.scores["adapted"] = found
        value = self._value(found)
        if at.best is not None and value <= at.best:
            return at
        return replace(at, best=value, best_step=at.step)

    def with_best(self, progress: Progress) -> Progress:
        """The best scoring that the log knows of: an interrupted one may come after its save."""
        best: tuple[float, int] | None = None
        for line in self.folder.metrics() if self.engine.is_first else ():
            if line["kind"] == "eval" and line["model"] == "adapted":
                value = self._value(line)
                if best is None or value > best[0]:
                    best = value, line["step"]
        best = self.engine.agree(best)
        return progress if best is None else replace(progress, best=best[0], best_step=best[1])

    def logged(self, model: str, step: int) -> dict[str, float] | None:
        """Scores that the log has already; the same on every rank."""
        lines = self.folder.metrics() if self.engine.is_first else ()
        found = [
            {key: value for key, value in line.items() if key not in ("kind", "step", "model")}
            for line in lines
            if (line["kind"], line["step"]) == ("eval", step) and line["model"] == model
        ]
        scores: dict[str, float] | None = self.engine.agree(found[-1] if found else None)
        return scores

    def _score(self, at: Progress, model: str) -> dict[str, float]:
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
            found.write(outcomes_file(self.folder.path, at.step))
        self.log.scores(at.step, found.scores, model=model)
        return found.scores

    def _value(self, scores: dict[str, float]) -> float:
        """The score that tells which model is best, so that more is better."""
        best = self.parts.task.best
        return -scores[best[1:]] if best.startswith("-") else scores[best]

    def _base_can_be_scored(self) -> bool:
        """Before the first step the model is the unadapted base, unless weights or head are new."""
        if self.parts.strategy.starts_from == "random":
            return False
        if self.examples.facts.get("new_head"):
            return False
        labels = self.examples.facts.get("labels")
        names = self.examples.settings.id2label or {}
        return labels is None or [str(name) for _, name in sorted(names.items())] == labels
