"""What a finished run of a comparison has come to, read from what it stored."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from dtl.compare.grid import Planned
from dtl.compare.records import Cell, Interval, Reached
from dtl.core.statistics import Sample, spread
from dtl.run.folder import RunFolder
from dtl.tasks.base import Classification, DatasetStats, Task
from dtl.train.usage import read_usage

LEVEL = 0.95  # of all intervals
SHARES = ("accuracy", "macro_f1", "f1")  # scores that are at most 1
EVALUATION = "evaluation"  # .json has the scores, .jsonl the outcomes


@dataclass(frozen=True)
class Measured:
    """A cell, and its score on resamples of the held-out examples, of those of --source, and of
    those of --ood; `unadapted`: that of the base as it is on the held-out examples."""

    cell: Cell
    held_out: Sample
    source: Sample | None
    ood: Sample | None
    unadapted: Sample | None = None


def measure(planned: Planned, run: RunFolder, task: Task, *, scores: Path) -> Measured:
    """`scores`: the folder of what was scored beside, a folder each."""
    facts = run.facts
    name = best_score(task)
    result = run.result
    lines = list(run.metrics())
    trained = [line for line in lines if line["kind"] == "train"]
    held_out = Sample.of(
        task.metric_from_counts, task.metric_counts(run.outcomes(result["steps"]), facts)
    )
    source, ood = (sample_of(scores / kind, task, facts) for kind in ("source", "ood"))
    found = result["scores"]["adapted"]
    before = run.outcomes(0) if "unadapted" in result["scores"] else []
    usage = read_usage(run.usage)
    cell = Cell(
        strategy=planned.strategy,
        labels=planned.labels.number,
        rows=planned.labels.rows,
        seed=planned.seed,
        learning_rate=float(run.config.optim.learning_rate or 0.0),
        score=float(held_out.values_S[0]),
        interval=interval_of(held_out, task),
        scores={key: value for key, value in found.items() if not key.startswith("confusion/")},
        steps=result["steps"],
        seconds=sum(line["seconds"] for line in trained),
        wall_seconds=usage.seconds if usage is not None else 0.0,
        peak_memory_bytes=max(line["memory_bytes"] for line in trained),
        stored_bytes=_bytes(run.export),
        curve=tuple(_curve(lines, name)),
        source_score=score_of(scores / "source", name),
        ood_score=score_of(scores / "ood", name),
        worst_group=next((found[key] for key in found if _is_worst(key)), None),
        run=f"cells/{planned.name}",
    )
    unadapted = (
        Sample.of(task.metric_from_counts, task.metric_counts(before, facts)) if before else None
    )
    return Measured(cell, held_out, source, ood, unadapted)


def best_score(task: Task) -> str:
    """The name of the score that tells which model is best."""
    return task.best.removeprefix("-")


def interval_of(sample: Sample, task: Task) -> Interval:
    """Of a mean score, inside what such a score can be."""
    low, high = spread(sample).interval(LEVEL)
    most = 1.0 if best_score(task) in SHARES else inf
    return Interval(max(low, 0.0), min(high, most))


def worth(task: Task, run: RunFolder) -> float:
    """The score of a finished run, so that more is better."""
    value = float(run.result["scores"]["adapted"][best_score(task)])
    return -value if task.best.startswith("-") else value


def _bytes(export: Path) -> int:
    """Without the card, which tells how long a run took."""
    files = (file for file in export.rglob("*") if file.is_file() and file.name != "README.md")
    return sum(file.stat().st_size for file in files)


def _curve(lines: list[dict[str, Any]], name: str) -> list[Reached]:
    """The held-out score over the seconds that were learnt until then."""
    seconds, curve = 0.0, []
    for line in lines:
        if line["kind"] == "train":
            seconds += line["seconds"]
        elif line["kind"] == "eval" and line["model"] in ("unadapted", "adapted"):
            curve.append(Reached(seconds, line["step"], line[name]))
    return curve


def _is_worst(key: str) -> bool:
    return key.startswith("group/") and key.endswith("/worst")


def score_of(folder: Path, name: str) -> float | None:
    """What was scored beside a run, or of the base; None where it was not."""
    path = folder / f"{EVALUATION}.json"
    if not path.is_file():
        return None
    return float(json.loads(path.read_text(encoding="utf-8"))["scores"][name])


def sample_of(folder: Path, task: Task, facts: DatasetStats) -> Sample | None:
    """None where nothing was scored, or what labels stand for there is not known here."""
    path = folder / f"{EVALUATION}.jsonl"
    if not path.is_file():
        return None
    outcomes = _read(path)
    if isinstance(task, Classification):  # of classes that may be others than the run's
        classes = 1 + max(max(one["label"], one["predicted"]) for one in outcomes)
        facts = {**facts, "labels": list(range(max(classes, len(facts["labels"]))))}
    elif "labels" in facts:
        return None
    return Sample.of(task.metric_from_counts, task.metric_counts(outcomes, facts))


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
