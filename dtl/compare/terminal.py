"""Formats a comparison for the terminal."""

from __future__ import annotations

import textwrap
from pathlib import Path

from dtl.compare.formatting import (
    format_label_count,
    format_score,
    format_seed_count,
    summary_columns,
)
from dtl.compare.records import (
    COMPARISON_FILE,
    Comparison,
    ConfidenceInterval,
    StrategySummary,
    load_comparison,
)

PLOT_WIDTH = 32  # characters
TEXT_WIDTH = 100
LEFT_ALIGNED = (0, 3)  # columns: strategy and plot

COLUMNS = summary_columns(format_score)


def load_if_finished(folder: Path) -> Comparison | None:
    """Return the comparison of a folder if all of it is finished."""
    if not (folder / COMPARISON_FILE).is_file():
        return None
    comparison = load_comparison(folder)
    return comparison if comparison.is_finished else None


def format_comparison(comparison: Comparison) -> list[str]:
    """Return the lines of the terminal output."""
    return [
        *_format_header(comparison),
        "",
        *_align_columns(_make_table(comparison)),
        "",
        *_format_feature_probe(comparison),
        *(line for one in comparison.recommendations for line in [*_wrap(one.text), ""]),
        *_format_notes(comparison),
        *_format_missing_runs(comparison),
    ]


def _format_header(comparison: Comparison) -> list[str]:
    """Return the lines above the table: task, score and the unadapted base."""
    name, base = comparison.score_name, comparison.base
    better = "higher" if comparison.higher_is_better else "lower"
    lines = [
        f"{comparison.name}: {comparison.task}, {name} ({better} is better), "
        f"{format_seed_count(comparison)}"
    ]
    if base.score is not None and base.interval is not None:
        interval = _format_interval(base.interval)
        lines.append(f"unadapted base: {name} {base.score:.3f} ({interval})")
    if base.source_score is not None:
        lines.append(f"source data: {comparison.source}, unadapted base {base.source_score:.3f}")
    return lines


def _make_table(comparison: Comparison) -> list[list[str]]:
    """Return a row per number of labels and one per strategy, without empty columns."""
    low, high = _score_range(comparison)
    columns = [
        column
        for column, read in COLUMNS.items()
        if any(read(comparison, one) for one in comparison.summaries)
    ]
    plot_header = f"{low:.3g}".ljust(PLOT_WIDTH - 6) + f"{high:>6.3g}"
    level = f"{comparison.confidence_level:.0%} CI"
    rows = [["", comparison.score_name, level, plot_header, *columns]]
    for labels in comparison.labels:
        summaries = [
            summary
            for name in comparison.strategies
            if (summary := comparison.find_summary(name, labels)) is not None
        ]
        if summaries:
            suffix = ", all data" if labels == comparison.all_labels else ""
            rows.append([f"{format_label_count(labels, classes=comparison.classes)}{suffix}"])
        for one in summaries:
            interval, plot = _format_interval(one.interval), _draw_interval(one, low, high)
            cells = [COLUMNS[column](comparison, one) for column in columns]
            rows.append([f"  {one.strategy}", f"{one.score:.3f}", interval, plot, *cells])
    return rows


def _format_interval(interval: ConfidenceInterval) -> str:
    return f"{interval.low:.3f}-{interval.high:.3f}"


def _score_range(comparison: Comparison) -> tuple[float, float]:
    """Return the lowest and highest end of all confidence intervals."""
    ends = [end for one in comparison.summaries for end in (one.interval.low, one.interval.high)]
    return (min(ends), max(ends)) if ends else (0.0, 1.0)


def _draw_interval(summary: StrategySummary, low: float, high: float) -> str:
    """Return the confidence interval and the score as text, on an axis from `low` to `high`."""

    def column_of(value: float) -> int:
        return round((PLOT_WIDTH - 1) * (value - low) / (high - low)) if high > low else 0

    start, end = column_of(summary.interval.low), column_of(summary.interval.high)
    characters = ["-" if start <= column <= end else " " for column in range(PLOT_WIDTH)]
    characters[column_of(summary.score)] = "o"
    return "".join(characters)


def _align_columns(rows: list[list[str]]) -> list[str]:
    """Return lines with aligned columns; a row with one text is a line of its own."""
    full_rows = [row for row in rows if len(row) > 1]
    widths = [max(map(len, column)) for column in zip(*full_rows, strict=True)]
    lines = []
    for row in rows:
        if len(row) == 1:
            lines.append(row[0])
            continue
        cells = [
            text.ljust(width) if column in LEFT_ALIGNED else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _format_feature_probe(comparison: Comparison) -> list[str]:
    probe = comparison.feature_probe
    if probe is None:
        return [*_wrap(f"no feature probe: {comparison.no_feature_probe}"), ""]
    text = (
        "feature probe before any training, on validation rows, with "
        f"{format_label_count(probe.labels, classes=comparison.classes)}: accuracy of a linear "
        f"probe {probe.linear_probe:.3f}, nearest neighbors {probe.nearest_neighbors:.3f}, "
        f"majority class {probe.majority_class:.3f}"
    )
    return [*_wrap(text), ""]


def _format_notes(comparison: Comparison) -> list[str]:
    level = f"significance level {1 - comparison.confidence_level:.0%}, Holm-adjusted p-values"
    return [line for note in (*comparison.notes, level) for line in _wrap(f"note: {note}")]


def _format_missing_runs(comparison: Comparison) -> list[str]:
    return [
        line
        for one in comparison.missing_runs
        for line in _wrap(f"not run: {one.description} ({one.reason})")
    ]


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, width=TEXT_WIDTH, subsequent_indent="  ")
