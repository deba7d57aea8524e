"""The tables of a comparison: summaries, paired differences, learning rates and runs."""

from __future__ import annotations

from collections.abc import Sequence

from dtl.compare.formatting import (
    format_label_count,
    summary_columns,
)
from dtl.compare.records import (
    Comparison,
    ConfidenceInterval,
    PairedDifference,
)
from dtl.core.units import format_seconds
from dtl.report.page import Table


def make_summary_table(comparison: Comparison) -> Table:
    """Return a row per number of labels and strategy, without empty columns."""
    interval = f"{comparison.confidence_level:.0%} CI"
    columns = summary_columns(_format_number)
    header = ["labels", "strategy", comparison.score_name, interval, *columns]
    rows = [
        [
            format_label_count(labels, classes=comparison.classes),
            name,
            f"{summary.score:.4g}",
            _format_interval(summary.interval),
            *(read(comparison, summary) for read in columns.values()),
        ]
        for labels in comparison.labels
        for name in comparison.strategies
        if (summary := comparison.find_summary(name, labels)) is not None
    ]
    filled = [index for index in range(len(header)) if any(row[index] for row in rows)]
    return Table(
        "All strategies and numbers of labels, mean over seeds",
        tuple(header[index] for index in filled),
        tuple(tuple(row[index] for index in filled) for row in rows),
    )


def make_difference_tables(comparison: Comparison) -> tuple[Table, ...]:
    """Return the paired differences on the held-out rows and, if there are some, on the source."""
    note = "paired by seeds and examples; positive: the first is better; Holm-adjusted p-values"
    tables = [_make_pair_table(comparison, comparison.differences, f"Held-out rows, {note}")]
    if comparison.source_differences:
        caption = f"{comparison.source}, {note}"
        tables.append(_make_pair_table(comparison, comparison.source_differences, caption))
    return tuple(tables)


def _make_pair_table(
    comparison: Comparison, differences: Sequence[PairedDifference], caption: str
) -> Table:
    rows = tuple(
        (
            format_label_count(one.labels, classes=comparison.classes),
            f"{one.first} - {one.second}",
            f"{one.difference:+.4g}",
            _format_interval(one.interval),
            f"{one.adjusted_p_value:.3g}",
            "yes" if one.is_significant else "no",
        )
        for one in differences
    )
    interval = f"{comparison.confidence_level:.0%} CI"
    header = ("labels", "pair", "difference", interval, "adjusted p", "significant")
    return Table(caption, header, rows)


def make_rates_table(comparison: Comparison) -> Table:
    """Return the trials of the learning-rate searches."""
    rows = tuple(
        (
            one.strategy,
            str(one.labels),
            f"{one.learning_rate:g}",
            f"{one.step_share:.0%}",
            f"{one.score:.4g}",
        )
        for one in comparison.learning_rate_trials
    )
    header = ("strategy", "labels", "learning rate", "share of steps", comparison.score_name)
    return Table("Learning-rate search, on validation rows", header, rows, is_collapsed=True)


def make_runs_table(comparison: Comparison) -> Table:
    """Return a row per finished cell."""
    rows = tuple(
        (
            one.run,
            one.strategy,
            str(one.labels),
            str(one.seed),
            f"{one.score:.4g}",
            _format_interval(one.interval),
            f"{one.learning_rate:g}",
            f"{one.steps:,}",
            format_seconds(one.wall_seconds),
        )
        for one in comparison.cells
    )
    header = (
        *("run", "strategy", "labels", "seed", comparison.score_name),
        *(f"{comparison.confidence_level:.0%} CI", "learning rate", "steps", "total time"),
    )
    return Table("All runs", header, rows, is_collapsed=True)


def make_missing_table(comparison: Comparison) -> list[Table]:
    """Return the runs that were not run, and why; empty if there are none."""
    rows = tuple((one.description, one.reason) for one in comparison.missing_runs)
    return [Table("Not run", ("runs", "reason"), rows)] if rows else []


def _format_number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _format_interval(interval: ConfidenceInterval) -> str:
    return f"{interval.low:.4g} to {interval.high:.4g}"
