"""What the sections of a run's report read from its folder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dtl.config import registry
from dtl.evaluation.run_results import RunResults, collect_results
from dtl.metrics.base import EvalRecord
from dtl.plan.records import Plan
from dtl.run.evaluations import EVALUATION_KIND, LoggedEvaluation, read_evaluations
from dtl.run.folder import EvaluatedStep, RunFolder
from dtl.tasks.base import Task

MAX_LISTED_ROWS = 30  # of a table


@dataclass(frozen=True)
class RunRecord:
    """A run folder with its task. `lines`: of metrics.jsonl. Everything is read once."""

    folder: RunFolder
    task: Task
    lines: tuple[dict[str, Any], ...]

    @classmethod
    def from_folder(cls, folder: RunFolder) -> RunRecord:
        """Read the log of a run."""
        options = folder.config.task
        task = registry.load("tasks", options.name).Plugin(options.options)
        return cls(folder, task, tuple(folder.read_metrics()))

    def lines_of_kind(self, kind: str) -> list[dict[str, Any]]:
        """Return the lines of the log of one kind."""
        return [line for line in self.lines if line["kind"] == kind]

    @cached_property
    def steps(self) -> list[dict[str, Any]]:
        """The lines of the training steps."""
        return self.lines_of_kind("train")

    @cached_property
    def plan(self) -> Plan:
        return self.folder.plan

    @cached_property
    def reported_step(self) -> EvaluatedStep | None:
        return self.folder.reported_step

    @cached_property
    def eval_records(self) -> list[EvalRecord]:
        """The records of the held-out examples, of the weights whose scores are the run's."""
        reported = self.reported_step
        if reported is None:
            return []
        return self.folder.read_eval_records(reported.step, weights=reported.weights)

    @cached_property
    def evaluations(self) -> list[LoggedEvaluation]:
        """The evaluations in the log, in their order."""
        return list(read_evaluations(self.lines_of_kind(EVALUATION_KIND)))

    @cached_property
    def scores(self) -> dict[str, dict[str, float]]:
        """The scores by model: the final ones of a finished run, else the latest."""
        if self.folder.state == "finished":
            return dict(self.folder.result["scores"])
        return {evaluation.model: evaluation.scores for evaluation in self.evaluations}

    @cached_property
    def results(self) -> RunResults:
        reported = self.reported_step or EvaluatedStep(0, "unadapted")
        return collect_results(
            self.folder,
            self.task,
            self.folder.dataset_stats,
            step=reported.step,
            weights=reported.weights,
        )

    @property
    def score_name(self) -> str:
        """The name of the task's main score."""
        return self.task.metric.name

    @property
    def higher_is_better(self) -> bool:
        """The direction of the task's main score."""
        return self.task.metric.higher_is_better

    @property
    def last_step(self) -> int:
        return self.steps[-1]["step"] if self.steps else 0

    @property
    def peak_memory_bytes(self) -> int:
        """The maximum over all training steps."""
        return int(max(line["memory_bytes"] for line in self.steps))

    @property
    def memory_owner(self) -> str:
        """What `peak_memory_bytes` is measured of."""
        return "the first GPU" if self.plan.layout.device == "cuda" else "the first process"

    def format_interval(self, model: str) -> str:
        """Return the confidence interval of the main score of a model; empty if unknown."""
        interval = self.results.intervals.get("unadapted" if model == "unadapted" else "adapted")
        return "" if interval is None else f"{interval[0]:.4g} to {interval[1]:.4g}"
