"""Computes the results of a comparison from its run folders and writes them."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from dtl.compare.differences import held_out_differences, source_differences
from dtl.compare.formatting import format_label_count
from dtl.compare.grid import PlannedRun
from dtl.compare.measure import (
    CONFIDENCE_LEVEL,
    MeasuredCell,
    confidence_interval,
    measure_cell,
    read_sample,
    read_score,
    score_name,
)
from dtl.compare.recommend import Evidence, recommend
from dtl.compare.records import (
    COMPARISON_FILE,
    BaseScores,
    Comparison,
    FeatureProbe,
    LearningRateTrial,
    MissingRuns,
)
from dtl.compare.state import ComparisonState
from dtl.compare.summaries import summarize_cells
from dtl.core.cache_folder import read_cache_record
from dtl.core.files import open_atomic, write_record
from dtl.core.statistics import ScoreSample


def write_comparison(state: ComparisonState) -> Comparison:
    """Write comparison.json and comparison.csv of all finished runs."""
    comparison = build_comparison(state)
    write_record(state.folder / COMPARISON_FILE, comparison.to_dict())
    _write_csv(comparison, state.folder / "comparison.csv")
    return comparison


def build_comparison(state: ComparisonState) -> Comparison:
    """Return the results of all finished runs, computed from their stored predictions."""
    grid, task = state.grid, state.task
    sign = task.metric.sign
    measured = [_measure(state, one) for one in grid.cell_runs if state.is_finished(one)]
    summaries = summarize_cells(measured, task, sign=sign)
    pairs = held_out_differences(measured, sign=sign)
    base_on_source = _base_source_sample(state)
    base = _base_scores(state, measured, base_on_source)
    source_pairs = source_differences(measured, base_on_source, sign=sign)
    evidence = Evidence(summaries, pairs, source_pairs, base, sign, grid.classes)
    probe, no_probe = _read_feature_probe(state)
    compare = grid.config.compare
    return Comparison(
        name=state.folder.name,
        task=grid.config.task.name,
        score_name=score_name(task),
        higher_is_better=sign > 0,
        classes=grid.classes,
        confidence_level=CONFIDENCE_LEVEL,
        strategies=grid.strategies,
        labels=tuple(labels.number for labels in grid.labels),
        all_labels=next((each.number for each in grid.labels if each.requested is None), None),
        seeds=grid.seeds,
        source=compare.source_data.path if compare.source_data else None,
        base=base,
        ood=compare.ood_data.path if compare.ood_data else None,
        cells=tuple(one.cell for one in measured),
        summaries=tuple(summaries),
        differences=tuple(pairs),
        source_differences=tuple(source_pairs),
        recommendations=tuple(recommend(evidence)),
        learning_rate_trials=tuple(_learning_rate_trials(state, sign)),
        feature_probe=probe,
        no_feature_probe=no_probe,
        notes=(*state.notes, *_edge_rate_notes(state)),
        missing_runs=(*state.missing_runs, *_list_missing_runs(state)),
    )


def _measure(state: ComparisonState, planned: PlannedRun) -> MeasuredCell:
    scores = state.scores_folder(planned, "")
    return measure_cell(planned, state.run_folder(planned), state.task, scores=scores)


def _format_labels(state: ComparisonState, labels: int) -> str:
    return format_label_count(labels, classes=state.grid.classes)


def _read_feature_probe(state: ComparisonState) -> tuple[FeatureProbe | None, str | None]:
    stored = read_cache_record(state.probe_file)
    if stored is None:
        return None, "not computed yet"
    if "reason" in stored:
        return None, str(stored["reason"])
    return FeatureProbe(labels=state.grid.labels[0].number, **stored), None


def _base_scores(
    state: ComparisonState, measured: Sequence[MeasuredCell], on_source: ScoreSample | None
) -> BaseScores:
    task = state.task
    held_out = next((one.base for one in measured if one.base is not None), None)
    return BaseScores(
        score=None if held_out is None else float(held_out.values_S[0]),
        interval=None if held_out is None else confidence_interval(held_out, task),
        source_score=read_score(state.base_scores_folder, score_name(task)),
        source_interval=None if on_source is None else confidence_interval(on_source, task),
    )


def _base_source_sample(state: ComparisonState) -> ScoreSample | None:
    """Return the sample of the unadapted base on the source data; None without a finished run."""
    runs = (state.run_folder(one) for one in state.grid.cell_runs if state.is_finished(one))
    dataset_stats = next((run.dataset_stats for run in runs), None)
    if dataset_stats is None:
        return None
    return read_sample(state.base_scores_folder, state.task, dataset_stats)


def _learning_rate_trials(state: ComparisonState, sign: int) -> list[LearningRateTrial]:
    return [
        LearningRateTrial(
            one.planned_run.strategy,
            one.planned_run.labels.number,
            one.learning_rate,
            one.planned_run.step_share,
            sign * one.score,
        )
        for one in state.trial_results
        if one.score is not None
    ]


def _edge_rate_notes(state: ComparisonState) -> list[str]:
    """Return a note for each strategy whose best rate is its lowest or highest candidate."""
    notes, grid = [], state.grid
    searches = {(cell.strategy, grid.search_labels(cell.labels)): cell for cell in grid.cell_runs}
    for (strategy, labels), cell in searches.items():
        rates, chosen = grid.candidate_rates(strategy), state.choose_rate(cell)
        if len(rates) > 1 and chosen in (rates[0], rates[-1]):
            end = "lowest" if chosen == rates[0] else "highest"
            notes.append(
                f"the best learning rate of {strategy} is the {end} candidate with "
                f"{_format_labels(state, labels.number)} ({chosen:.3g}): add candidates "
                f"beyond it to compare.learning_rates.{strategy}"
            )
    return notes


def _list_missing_runs(state: ComparisonState) -> list[MissingRuns]:
    """Return the runs that are possible and not finished."""
    return [*_missing_search_runs(state), *_missing_cells(state)]


def _missing_search_runs(state: ComparisonState) -> Iterator[MissingRuns]:
    """Yield the strategies whose learning-rate search the time budget has ended."""
    if state.budget_seconds is None:
        return
    tried = {one.planned_run.name for one in state.trial_results}
    for strategy in state.grid.strategies:
        searches = [one for one in state.grid.search_runs if one.strategy == strategy]
        missing = sum(one.name not in tried for one in searches)
        if missing:
            description = f"{strategy}: {missing} of {len(searches)} learning-rate search runs"
            yield MissingRuns(description, "a third of the time budget is spent")


def _missing_cells(state: ComparisonState) -> Iterator[MissingRuns]:
    """Yield the failed and the pending seeds of each strategy and number of labels."""
    pending_reason = "not run yet" if state.budget_seconds is None else "time budget spent"
    for strategy in state.grid.strategies:
        for labels in state.grid.labels:
            cells = [
                one
                for one in state.grid.cell_runs
                if (one.strategy, one.labels) == (strategy, labels) and not state.is_finished(one)
            ]
            failed = [one for one in cells if one.name in state.failures]
            pending = [one for one in cells if one.name not in state.failures]
            name = f"{strategy} with {_format_labels(state, labels.number)}"
            if failed:
                reason = state.failures[failed[0].name]
                yield MissingRuns(f"{name}, seeds {_format_seeds(failed)}", reason)
            if pending:
                yield MissingRuns(f"{name}, seeds {_format_seeds(pending)}", pending_reason)


def _format_seeds(cells: Sequence[PlannedRun]) -> str:
    return ", ".join(str(one.seed) for one in cells)


def _write_csv(comparison: Comparison, path: Path) -> None:
    """Write one line per cell."""
    rows = []
    for cell in comparison.cells:
        row = asdict(cell)
        interval = row.pop("interval")
        scores = row.pop("scores")
        row.pop("curve")
        row |= {"low": interval["low"], "high": interval["high"]}
        rows.append(row | {f"scores/{name}": value for name, value in scores.items()})
    names = list(dict.fromkeys(name for row in rows for name in row))
    with open_atomic(path, sync=False, newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
