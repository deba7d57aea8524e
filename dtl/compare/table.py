"""Computes the results of a comparison from its run folders and writes them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from dtl.compare.advice import differences, points, recommendations, source_differences
from dtl.compare.grid import PlannedRun
from dtl.compare.measure import (
    LEVEL,
    Measured,
    best_score,
    interval_of,
    measure,
    sample_of,
    score_of,
)
from dtl.compare.records import (
    COMPARISON_FILE,
    BaseScores,
    Comparison,
    FeatureProbe,
    LearningRateTrial,
    MissingRuns,
    format_label_count,
)
from dtl.compare.state import State
from dtl.core.files import open_atomic, write_json
from dtl.core.statistics import Sample


def write_table(state: State) -> Comparison:
    """Write comparison.json and comparison.csv of all finished runs."""
    found = table(state)
    write_json(state.folder / COMPARISON_FILE, found.to_dict())
    _write_csv(found, state.folder / "comparison.csv")
    return found


def table(state: State) -> Comparison:
    """Return the results of all finished runs, computed from their stored predictions."""
    grid, task = state.grid, state.task
    sign = task.metric.sign
    measured = [_measure(state, one) for one in grid.cell_runs if state.finished(one)]
    mean_points = points(measured, task, sign=sign)
    pairs = differences(measured, sign=sign)
    hint, no_hint = _hint(state)
    base_on_source = _base_on_source(state)
    base = _base(state, measured, base_on_source)
    source_pairs = source_differences(measured, base_on_source, sign=sign)
    compare = grid.config.compare
    return Comparison(
        name=state.folder.name,
        task=grid.config.task.name,
        score_name=best_score(task),
        higher_is_better=sign > 0,
        classes=grid.classes,
        confidence_level=LEVEL,
        strategies=grid.strategies,
        labels=tuple(labels.number for labels in grid.labels),
        all_labels=next((each.number for each in grid.labels if each.requested is None), None),
        seeds=grid.seeds,
        source=compare.source_data.path if compare.source_data else None,
        base=base,
        ood=compare.ood_data.path if compare.ood_data else None,
        cells=tuple(one.cell for one in measured),
        summaries=tuple(mean_points),
        differences=tuple(pairs),
        source_differences=tuple(source_pairs),
        recommendations=tuple(
            recommendations(
                mean_points,
                pairs,
                source_pairs,
                base,
                sign=sign,
                unit=partial(format_label_count, classes=grid.classes),
            )
        ),
        learning_rate_trials=tuple(_rates(state, sign)),
        feature_probe=hint,
        no_feature_probe=no_hint,
        notes=(*state.notes, *_edges(state)),
        missing_runs=(*state.left_out, *_missing(state)),
    )


def _measure(state: State, planned: PlannedRun) -> Measured:
    scores = state.scores_of(planned, "")
    return measure(planned, state.folder_of(planned), state.task, scores=scores)


def _unit(state: State, labels: int) -> str:
    return format_label_count(labels, classes=state.grid.classes)


def _hint(state: State) -> tuple[FeatureProbe | None, str | None]:
    if not state.hint_file.is_file():
        return None, "not computed yet"
    stored: dict[str, Any] = json.loads(state.hint_file.read_text(encoding="utf-8"))
    if "why" in stored:
        return None, str(stored["why"])
    return FeatureProbe(labels=state.grid.labels[0].number, **stored), None


def _base(state: State, measured: Sequence[Measured], on_source: Sample | None) -> BaseScores:
    task = state.task
    held_out = next((one.unadapted for one in measured if one.unadapted is not None), None)
    return BaseScores(
        score=None if held_out is None else float(held_out.values_S[0]),
        interval=None if held_out is None else interval_of(held_out, task),
        source_score=score_of(state.scores_of_base, best_score(task)),
        source_interval=None if on_source is None else interval_of(on_source, task),
    )


def _base_on_source(state: State) -> Sample | None:
    runs = (state.folder_of(one) for one in state.grid.cell_runs if state.finished(one))
    dataset_stats = next((run.dataset_stats for run in runs), None)
    return (
        None
        if dataset_stats is None
        else sample_of(state.scores_of_base, state.task, dataset_stats)
    )


def _rates(state: State, sign: int) -> list[LearningRateTrial]:
    return [
        LearningRateTrial(
            one.planned_run.strategy,
            one.planned_run.labels.number,
            one.learning_rate,
            one.planned_run.step_share,
            sign * one.score,
        )
        for one in state.tried
        if one.score is not None
    ]


def _edges(state: State) -> list[str]:
    """Return a note for each strategy whose best rate is its lowest or highest candidate."""
    notes, grid = [], state.grid
    searches = {(cell.strategy, grid.search_labels(cell.labels)): cell for cell in grid.cell_runs}
    for (strategy, labels), cell in searches.items():
        rates, chosen = grid.candidate_rates(strategy), state.rate_of(cell)
        if len(rates) > 1 and chosen in (rates[0], rates[-1]):
            end = "lowest" if chosen == rates[0] else "highest"
            notes.append(
                f"the best learning rate of {strategy} is the {end} candidate with "
                f"{_unit(state, labels.number)} ({chosen:.3g}): give compare.learning_rates.{strategy} "
                "others beyond"
            )
    return notes


def _missing(state: State) -> list[MissingRuns]:
    """Return the runs that are possible and not finished."""
    tried = {one.planned_run.name for one in state.tried}
    spent = state.budget is not None
    missing = []
    for strategy in state.grid.strategies:
        searches = [one for one in state.grid.search_runs if one.strategy == strategy]
        left = sum(one.name not in tried for one in searches)
        if left and spent:
            what = f"{strategy}: {left} of {len(searches)} learning-rate search runs"
            missing.append(MissingRuns(what, "a third of the time budget is spent"))
    for strategy in state.grid.strategies:
        for labels in state.grid.labels:
            cells = [
                one
                for one in state.grid.cell_runs
                if (one.strategy, one.labels) == (strategy, labels) and not state.finished(one)
            ]
            failed = [one for one in cells if one.name in state.failed]
            waiting = [one for one in cells if one.name not in state.failed]
            for group, why in (
                (failed, failed and state.failed[failed[0].name]),
                (waiting, "time budget spent" if spent else "not run yet"),
            ):
                if group:
                    seeds = ", ".join(str(one.seed) for one in group)
                    what = f"{strategy} with {_unit(state, labels.number)}, seeds {seeds}"
                    missing.append(MissingRuns(what, str(why)))
    return missing


def _write_csv(found: Comparison, path: Path) -> None:
    """Write one line per cell."""
    rows = []
    for cell in found.cells:
        row = asdict(cell)
        low_high = row.pop("interval")
        scores = row.pop("scores")
        row.pop("curve")
        row |= {"low": low_high["low"], "high": low_high["high"]}
        rows.append(row | {f"scores/{name}": value for name, value in scores.items()})
    names = list(dict.fromkeys(name for row in rows for name in row))
    with open_atomic(path, sync=False, newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
