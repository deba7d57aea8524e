"""Measures a finished cell from the files in its run folder."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from dtl.compare.grid import PlannedRun
from dtl.compare.records import CellResult, ConfidenceInterval, CurvePoint
from dtl.core.files import read_record
from dtl.core.json_lines import read_lines
from dtl.core.statistics import ScoreSample, bootstrap_mean
from dtl.run.evaluations import EVALUATION_KIND
from dtl.run.folder import RunFolder
from dtl.tasks.base import DatasetStats, Task
from dtl.train.usage import read_usage

CONFIDENCE_LEVEL = 0.95  # of all confidence intervals
BOUNDED_SCORES = ("accuracy", "macro_f1", "micro_f1", "f1", "pearson")  # scores with maximum 1
SIGNED_SCORES = ("pearson",)  # scores with minimum -1; that of the others is 0
EVALUATION_STEM = "evaluation"  # .json: scores; .jsonl: prediction records


@dataclass(frozen=True)
class MeasuredCell:
    """A cell and its bootstrap samples of the score on the held-out, source and OOD examples.
    `base`: of the unadapted base on the held-out examples."""

    cell: CellResult
    held_out: ScoreSample
    source: ScoreSample | None
    ood: ScoreSample | None
    base: ScoreSample | None = None


def measure_cell(planned: PlannedRun, run: RunFolder, task: Task, *, scores: Path) -> MeasuredCell:
    """Return the results of a finished run. `scores`: its folder of source and OOD evaluations."""
    dataset_stats = run.dataset_stats
    name = score_name(task)
    result = run.result
    lines = list(run.read_metrics())
    train_lines = [line for line in lines if line["kind"] == "train"]
    held_out = ScoreSample.from_counts(
        task.metric_from_counts,
        task.metric_counts(run.read_eval_records(result["steps"]), dataset_stats),
    )
    source, ood = (read_sample(scores / kind, task, dataset_stats) for kind in ("source", "ood"))
    adapted = result["scores"]["adapted"]
    base_records = run.read_eval_records(0) if "unadapted" in result["scores"] else []
    usage = read_usage(run.usage)
    cell = CellResult(
        strategy=planned.strategy,
        labels=planned.labels.number,
        rows=planned.labels.rows,
        seed=planned.seed,
        learning_rate=float(run.config.optim.learning_rate or 0.0),
        score=float(held_out.values_S[0]),
        interval=confidence_interval(held_out, task),
        scores={key: value for key, value in adapted.items() if not key.startswith("confusion/")},
        steps=result["steps"],
        train_seconds=sum(line["seconds"] for line in train_lines),
        wall_seconds=usage.seconds if usage is not None else 0.0,
        peak_memory_bytes=max(line["memory_bytes"] for line in train_lines),
        export_bytes=_export_bytes(run.export),
        curve=tuple(_learning_curve(lines, name)),
        source_score=read_score(scores / "source", name),
        ood_score=read_score(scores / "ood", name),
        worst_group_score=next(
            (value for key, value in adapted.items() if _is_worst_group_score(key)), None
        ),
        run=f"cells/{planned.name}",
    )
    base = (
        ScoreSample.from_counts(
            task.metric_from_counts, task.metric_counts(base_records, dataset_stats)
        )
        if base_records
        else None
    )
    return MeasuredCell(cell, held_out, source, ood, base)


def score_name(task: Task) -> str:
    """Return the name of the task's main score."""
    return task.metric.name


def confidence_interval(sample: ScoreSample, task: Task) -> ConfidenceInterval:
    """Return the confidence interval of a mean score, clipped to the range of the score."""
    low, high = bootstrap_mean(sample).interval(CONFIDENCE_LEVEL)
    name = score_name(task)
    minimum = -1.0 if name in SIGNED_SCORES else 0.0
    maximum = 1.0 if name in BOUNDED_SCORES else inf
    return ConfidenceInterval(max(low, minimum), min(high, maximum))


def oriented_score(task: Task, run: RunFolder) -> float:
    """Return the score of a finished run, negated if lower is better."""
    value = float(run.result["scores"]["adapted"][score_name(task)])
    return task.metric.sign * value


def _export_bytes(export: Path) -> int:
    """Return the size of an export without README.md, which contains the run time."""
    files = (file for file in export.rglob("*") if file.is_file() and file.name != "README.md")
    return sum(file.stat().st_size for file in files)


def _learning_curve(lines: list[dict[str, Any]], name: str) -> list[CurvePoint]:
    """Return the held-out score over training steps and seconds."""
    seconds, curve = 0.0, []
    for line in lines:
        if line["kind"] == "train":
            seconds += line["seconds"]
        elif line["kind"] == EVALUATION_KIND and line["model"] in ("unadapted", "adapted"):
            curve.append(CurvePoint(seconds, line["step"], line[name]))
    return curve


def _is_worst_group_score(key: str) -> bool:
    return key.startswith("group/") and key.endswith("/worst")


def read_score(folder: Path, name: str) -> float | None:
    """Return the score of an evaluation folder; None if there is none."""
    path = folder / f"{EVALUATION_STEM}.json"
    if not path.is_file():
        return None
    return float(read_record(path)["scores"][name])


def read_sample(folder: Path, task: Task, dataset_stats: DatasetStats) -> ScoreSample | None:
    """Return the bootstrap sample of an evaluation folder; None if there is none, or if its labels
    cannot be mapped to the run's."""
    path = folder / f"{EVALUATION_STEM}.jsonl"
    if not path.is_file():
        return None
    records = read_lines(path)
    if task.has_classes:  # the source may have other classes than the run
        classes = 1 + max(max(one["label"], one["predicted"]) for one in records)
        dataset_stats = {
            **dataset_stats,
            "labels": list(range(max(classes, len(dataset_stats["labels"])))),
        }
    elif "labels" in dataset_stats:
        return None
    return ScoreSample.from_counts(
        task.metric_from_counts, task.metric_counts(records, dataset_stats)
    )
