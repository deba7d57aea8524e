"""Writes the folders of small runs and comparisons, without running any."""

import json

import numpy as np

from dtl.compare.records import (
    BaseScores,
    CellResult,
    Comparison,
    ConfidenceInterval,
    CurvePoint,
    Recommendation,
    StrategySummary,
)
from dtl.config import registry
from dtl.config.schema import RunConfig
from dtl.core.json_lines import encode_lines
from dtl.data.sources.rows import open_rows
from dtl.evaluation.groups import scores_by_group
from dtl.plan.records import Decision, Layout, ParameterCounts, PhasePlan, Plan
from dtl.run.folder import RunFolder

PLAN = Plan(
    layout=Layout(1, 2, 2, "none", 4, 2, False, "fp32", "cpu"),
    parameters=ParameterCounts(trainable=10, frozen=90),
    model_state={"weights": 400, "gradients": 40, "optimizer": 80},
    phases=(
        PhasePlan("frozen", 0, 40, 1e-2, ParameterCounts(10, 90)),
        PhasePlan("full", 40, 120, 1e-3, ParameterCounts(100, 0)),
    ),
    steps=120,
    steps_per_epoch=7,
    deepspeed=None,
    decisions=(Decision("processes", "2", "layout.processes_per_node"),),
)


def line(step):
    """Return a training step of the log; the loss of step 7 is not finite."""
    return {
        "kind": "train",
        "step": step,
        "epoch": 0,
        "loss": None if step == 7 else 3.0 / step,
        "learning_rate": 0.01,
        "gradient_norm": 1.0 + step % 3,
        "seconds": 0.5,
        "tokens_per_second": 900.0,
        "memory_bytes": 3 * 2**30 + step,
    }


def stopped_run(tmp_path, fields, *, labels, name="text_classification", why="too long"):
    """Write a run that was stopped at step 60 of 120. `fields`: of each row, without its label.
    Every fourth example is wrong; row 3 has the highest loss."""
    truth = np.random.default_rng(5).integers(len(labels), size=len(fields)).tolist()
    held = tmp_path / "held.jsonl"
    rows = [{**row, "label": labels[t]} for row, t in zip(fields, truth, strict=True)]
    held.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = RunConfig.model_validate(
        {
            "run": {"name": "first", "dir": str(tmp_path / "runs")},
            "model": {"path": "mini:text"},
            "task": {"name": name, "group_by": "label"},
            "strategy": ["frozen", "full"],
            "data": {"train": str(held), "eval": str(held)},
            "train": {"steps": PLAN.steps},
        }
    )
    module = registry.load("tasks", name)
    task, dataset_stats = module.Plugin(module.Options()), {"labels": labels}
    source = open_rows(
        config.data.eval,
        {},
        "data.eval",
        check=task.find_row_fault,
        skip_invalid=False,
        reads=task.row_input,
    )
    noted = {"sha256": source.fingerprint, "rows": len(rows)}
    data = {"base": "f" * 8, "sources": {"data.eval": noted}}
    skipped = [{"source": "data.train", "location": "held.jsonl:9", "reason": why}]
    folder = RunFolder.from_config(config)
    folder.create(config, PLAN, dataset_stats, data, skipped=skipped)
    for step in range(1, 61):
        folder.append_line(line(step))
    folder.append_line(
        {"kind": "skip", "step": 7, "examples": [1], "reason": "the gradient is inf"}
    )
    folder.append_line({"kind": "save", "step": 60, "seconds": 0.25, "bytes": 2048})
    folder.add_spike({"step": 50, "loss": 9.5, "back_to": 40, "score": 12.0})
    records = [
        {
            "row": number,
            "loss": 9.0 if number == 3 else 1.0 + number / 100,
            "label": t,
            "predicted": t if number % 4 else (t + 1) % len(labels),
            "group": labels[t],
        }
        for number, t in enumerate(truth)
    ]
    file = folder.eval_records_file(60)
    file.parent.mkdir()
    file.write_text(encode_lines(records))
    scores = {
        **task.score(records, dataset_stats),
        **scores_by_group(task, records, dataset_stats, "label"),
    }
    folder.append_line({"kind": "eval", "step": 60, "model": "adapted", **scores})
    return folder


def comparison(names):
    """Return a comparison with two seeds and 5 and 20 labels per class. `names`: of three
    strategies, the first the worst, the second the smallest and the third the best."""
    points, cells = [], []
    for labels, gain in ((5, 0.0), (20, 0.1)):
        for index, (name, score) in enumerate(zip(names, (0.3, 0.6, 0.7), strict=True)):
            value = round(score + gain, 3)
            interval = ConfidenceInterval(round(value - 0.05, 3), round(value + 0.05, 3))
            memory = (3, 1, 2)[index] * 2**30
            measured = {
                "label_efficiency": None,
                "time_to_scratch_score": None,
                "train_seconds": 4.0,
                "peak_memory_bytes": memory,
            }
            not_measured = dict.fromkeys(
                [
                    "source_score",
                    "source_interval",
                    "ood_score",
                    "ood_interval",
                    "worst_group_score",
                ]
            )
            points.append(
                StrategySummary(
                    name,
                    labels,
                    (0, 1),
                    value,
                    interval,
                    export_bytes=100,
                    **measured,
                    **not_measured,
                )
            )
            for seed in (0, 1):
                curve = (
                    CurvePoint(2.0 + seed, 10, (0.2, 0.4)[seed]),
                    CurvePoint(4.0 + seed, 20, value),
                )
                cells.append(
                    CellResult(
                        *(name, labels, 5 * labels, seed, 1e-3, value, interval, {}, 20, 4.0, 5.0),
                        *(memory, 100, curve, None, None, None, f"cells/{index}-{labels}-{seed}"),
                    )
                )
    return Comparison(
        name="few",
        task="image_classification",
        score_name="f1",
        higher_is_better=True,
        classes=5,
        confidence_level=0.95,
        strategies=names,
        labels=(5, 20),
        all_labels=20,
        seeds=(0, 1),
        source=None,
        base=BaseScores(),
        ood=None,
        cells=tuple(cells),
        summaries=tuple(points),
        differences=(),
        source_differences=(),
        recommendations=(Recommendation(20, "full", "best", "Take full. It is the best."),),
        learning_rate_trials=(),
        feature_probe=None,
        no_feature_probe="not computed",
        notes=(),
        missing_runs=(),
    )
