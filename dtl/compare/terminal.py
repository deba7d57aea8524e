"""Formats a comparison for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

from dtl.compare.records import (
    COMPARISON_FILE,
    Comparison,
    StrategySummary,
    format_label_count,
    load_comparison,
)
from dtl.core.units import format_bytes, format_seconds

PLOT_WIDTH = 32  # characters
TEXT_WIDTH = 100


def load_if_finished(folder: Path) -> Comparison | None:
    """Return the comparison of a folder if all of it is finished."""
    if not (folder / COMPARISON_FILE).is_file():
        return None
    found = load_comparison(folder)
    return found if found.is_finished else None


def format_comparison(found: Comparison) -> list[str]:
    """Return the lines of the terminal output."""
    return [
        *_format_table(found),
        "",
        *_format_feature_probe(found),
        *(line for one in found.recommendations for line in [*_wrap(one.text), ""]),
        *_format_notes(found),
        *_format_missing_runs(found),
    ]


def _format_table(found: Comparison) -> list[str]:
    """Return a line per number of labels and strategy."""
    better = "higher" if found.higher_is_better else "lower"
    low, high = _score_range(found)
    heads = [
        "",
        found.score_name,
        f"{found.confidence_level:.0%}",
        f"{low:.3g}".ljust(PLOT_WIDTH - 6) + f"{high:>6.3g}",
    ]
    columns = [
        column
        for column, tell in _COLUMNS.items()
        if any(tell(found, one) for one in found.summaries)
    ]
    rows = [[*heads, *columns]]
    for labels in found.labels:
        here = [point for name in found.strategies if (point := found.find_summary(name, labels))]
        if here:
            everything = ", all data" if labels == found.all_labels else ""
            rows.append([f"{format_label_count(labels, classes=found.classes)}{everything}"])
        for one in here:
            interval = f"{one.interval.low:.3f}-{one.interval.high:.3f}"
            plot = _draw_interval(one, low, high)
            rest = [_COLUMNS[column](found, one) for column in columns]
            rows.append([f"  {one.strategy}", f"{one.score:.3f}", interval, plot, *rest])
    seeds = f"{len(found.seeds)} seed{'s' if len(found.seeds) > 1 else ''}"
    about = f"{found.name}: {found.task}, {found.score_name} ({better} is better), {seeds}"
    before = []
    base = found.base
    if base.score is not None and base.interval is not None:
        between = f"{base.interval.low:.3f}-{base.interval.high:.3f}"
        before.append(f"unadapted base: {found.score_name} {base.score:.3f} ({between})")
    if base.source_score is not None:
        before.append(f"source: {found.source}, score of the base {base.source_score:.3f}")
    return [about, *before, "", *_align_columns(rows)]


def format_label_efficiency(point: StrategySummary) -> str:
    """Return the number of labels that scratch needs for the same score."""
    if point.label_efficiency is None:
        return ""
    return f"{_BOUNDS[point.label_efficiency.bound]}{point.label_efficiency.scratch_labels:.3g}"


def format_time_to_scratch(point: StrategySummary) -> str:
    """Return the training time until the final score of scratch."""
    if point.time_to_scratch_score is None:
        return ""
    if point.time_to_scratch_score.steps == 0:
        return "at once"
    return f"{_BOUNDS[point.time_to_scratch_score.bound]}{format_seconds(point.time_to_scratch_score.seconds)}"


def format_forgetting(found: Comparison, point: StrategySummary) -> str:
    """Return how much lower the source score is than that of the base, with a question mark if the
    two are not significantly different."""
    lost = found.find_forgetting(point.strategy, point.labels)
    if lost is None:
        return ""
    sure = lost.is_significant or lost.difference == 0
    return f"{lost.difference:.3f}{'' if sure else '?'}"


def _format_score(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


_BOUNDS = {"more than": ">", "at most": "<=", None: ""}
_COLUMNS: dict[str, Callable[[Comparison, StrategySummary], str]] = {
    "scratch labels": lambda _, point: format_label_efficiency(point),
    "time to scratch score": lambda _, point: format_time_to_scratch(point),
    "train time": lambda _, point: format_seconds(point.train_seconds),
    "peak memory": lambda _, point: format_bytes(point.peak_memory_bytes),
    "export size": lambda _, point: format_bytes(point.export_bytes),
    "source score": lambda _, point: _format_score(point.source_score),
    "forgetting": format_forgetting,
    "OOD": lambda _, point: _format_score(point.ood_score),
    "worst group": lambda _, point: _format_score(point.worst_group_score),
}


def _score_range(found: Comparison) -> tuple[float, float]:
    ends = [end for one in found.summaries for end in (one.interval.low, one.interval.high)]
    return (min(ends), max(ends)) if ends else (0.0, 1.0)


def _draw_interval(point: StrategySummary, low: float, high: float) -> str:
    """Return the confidence interval and the score as text, on an axis from `low` to `high`."""

    def place(value: float) -> int:
        return round((PLOT_WIDTH - 1) * (value - low) / (high - low)) if high > low else 0

    start, end = place(point.interval.low), place(point.interval.high)
    drawn = ["-" if start <= at <= end else " " for at in range(PLOT_WIDTH)]
    drawn[place(point.score)] = "o"
    return "".join(drawn)


def _align_columns(rows: list[list[str]]) -> list[str]:
    """Return lines with aligned columns; a row with one text is a line of its own."""
    whole = [row for row in rows if len(row) > 1]
    widths = [max(len(row[at]) for row in whole) for at in range(len(whole[0]))]
    drawn = []
    for row in rows:
        if len(row) == 1:
            drawn.append(row[0])
            continue
        cells = [
            text.ljust(width) if at in (0, 3) else text.rjust(width)
            for at, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        drawn.append("  ".join(cells).rstrip())
    return drawn


def _format_feature_probe(found: Comparison) -> list[str]:
    hint = found.feature_probe
    if hint is None:
        return [*_wrap(f"no feature probe: {found.no_feature_probe}"), ""]
    told = (
        f"feature probe, before any training: accuracy on features of the base, with "
        f"{format_label_count(hint.labels, classes=found.classes)}, linear probe "
        f"{hint.linear_probe:.3f}, nearest neighbors {hint.nearest_neighbors:.3f}, majority class "
        f"{hint.majority_class:.3f} (validation rows)"
    )
    return [*_wrap(told), ""]


def _format_notes(found: Comparison) -> list[str]:
    pairs = f"significance level {1 - found.confidence_level:.0%}, Holm-adjusted p-values"
    return [line for note in (*found.notes, pairs) for line in _wrap(f"note: {note}")]


def _format_missing_runs(found: Comparison) -> list[str]:
    return [
        line
        for one in found.missing_runs
        for line in _wrap(f"not run: {one.description} ({one.reason})")
    ]


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, width=TEXT_WIDTH, subsequent_indent="  ")
