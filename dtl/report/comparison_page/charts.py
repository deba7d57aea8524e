"""The charts of a comparison: score over labels, over training time, and against its costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dtl.compare.formatting import format_seed_count
from dtl.compare.records import (
    CellResult,
    Comparison,
    ConfidenceInterval,
    StrategySummary,
    average_curves,
)
from dtl.report.axis import Axis
from dtl.report.charts import Chart, HorizontalLine, LinePlot, Series

LOG_AXIS_RATIO = 20  # maximum to minimum, above which an axis is logarithmic


@dataclass(frozen=True)
class _LabelChart:
    """A chart of a score over the number of labels. `read`: returns score and interval."""

    key: str
    title: str
    base_score: float | None
    read: Callable[[StrategySummary], tuple[float | None, ConfidenceInterval | None]]


def make_label_charts(comparison: Comparison) -> list[Chart]:
    """Return the held-out, source and OOD score over the number of labels."""
    name, base = comparison.score_name, comparison.base
    planned = [
        _LabelChart(
            "score_over_labels",
            f"Held-out {name}",
            base.score,
            lambda summary: (summary.score, summary.interval),
        )
    ]
    if comparison.source is not None:
        planned.append(
            _LabelChart(
                "source_over_labels",
                f"{name} on source data {comparison.source}",
                base.source_score,
                lambda summary: (summary.source_score, summary.source_interval),
            )
        )
    if comparison.ood is not None:
        planned.append(
            _LabelChart(
                "ood_over_labels",
                f"{name} on out-of-distribution data {comparison.ood}",
                None,
                lambda summary: (summary.ood_score, summary.ood_interval),
            )
        )
    charts = (_make_label_chart(comparison, one) for one in planned)
    return [chart for chart in charts if chart is not None]


def _make_label_chart(comparison: Comparison, planned: _LabelChart) -> Chart | None:
    series = [
        one
        for name in comparison.strategies
        if (one := _label_series(comparison, name, planned)) is not None
    ]
    if not series:
        return None
    unit = "labeled rows" if comparison.classes is None else "labels per class"
    base = planned.base_score
    return LinePlot(
        key=planned.key,
        title=planned.title,
        description=f"Mean over {format_seed_count(comparison)}. Bands: "
        f"{comparison.confidence_level:.0%} confidence intervals over seeds and examples.",
        x_axis=Axis(unit, log=True, tick_values=tuple(map(float, comparison.labels))),
        y_axis=Axis(comparison.score_name),
        series=tuple(series),
        horizontal_lines=() if base is None else (HorizontalLine(base, "unadapted base"),),
    )


def _label_series(comparison: Comparison, strategy: str, planned: _LabelChart) -> Series | None:
    """Return the scores of a strategy; None if it has none."""
    x, y, low, high = [], [], [], []
    for labels in sorted(comparison.labels):
        summary = comparison.find_summary(strategy, labels)
        score, interval = (None, None) if summary is None else planned.read(summary)
        if score is not None:
            x.append(labels)
            y.append(score)
            low.append(score if interval is None else interval.low)
            high.append(score if interval is None else interval.high)
    color = comparison.strategies.index(strategy)
    return Series(strategy, x, y, low, high, "lines+markers", color=color) if x else None


def make_cost_charts(comparison: Comparison, labels: int) -> list[Chart]:
    """Return the score over training time, peak memory and export size."""
    time_chart = _make_time_chart(comparison, labels)
    summaries = [
        summary
        for name in comparison.strategies
        if (summary := comparison.find_summary(name, labels)) is not None
    ]
    pareto_charts = [
        _make_pareto_chart(
            comparison, summaries, _Cost("score_and_memory", "peak memory", _peak_memory)
        ),
        _make_pareto_chart(
            comparison, summaries, _Cost("score_and_size", "export size", _export_size)
        ),
    ]
    return [*([time_chart] if time_chart else []), *(pareto_charts if summaries else [])]


def _make_time_chart(comparison: Comparison, labels: int) -> Chart | None:
    """Return the learning curves over training time; None without finished runs."""
    series = []
    for color, strategy in enumerate(comparison.strategies):
        cells = [
            one for one in comparison.cells if (one.strategy, one.labels) == (strategy, labels)
        ]
        if one := _time_series(strategy, cells):
            series.append(replace(one, color=color))
    seconds = [value for one in series for value in one.x if value > 0]
    if not seconds:
        return None
    is_wide = max(seconds) > LOG_AXIS_RATIO * min(seconds)
    log = is_wide and all(min(one.x) > 0 for one in series)
    description = f"Mean over {format_seed_count(comparison)}"
    description += "; bands: minimum to maximum." if len(comparison.seeds) > 1 else "."
    return LinePlot(
        key="score_over_time",
        title=f"{comparison.score_name} over training time",
        description=description,
        x_axis=Axis("training time", "seconds", log=log, from_zero=not log),
        y_axis=Axis(comparison.score_name),
        series=tuple(series),
    )


def _time_series(strategy: str, cells: list[CellResult]) -> Series | None:
    """Return the mean learning curve, over the steps at which every seed was evaluated."""
    if not cells:
        return None
    curve = average_curves(cells)
    low, high = [], []
    for mean in curve:
        scores = [one.score for cell in cells for one in cell.curve if one.step == mean.step]
        low.append(min(scores))
        high.append(max(scores))
    x, y = [one.seconds for one in curve], [one.score for one in curve]
    return Series(strategy, x, y, low, high, "lines+markers") if x else None


@dataclass(frozen=True)
class _Cost:
    """A cost in bytes. `read`: returns it of a summary."""

    key: str
    name: str
    read: Callable[[StrategySummary], int]


def _peak_memory(summary: StrategySummary) -> int:
    return summary.peak_memory_bytes


def _export_size(summary: StrategySummary) -> int:
    return summary.export_bytes


def _make_pareto_chart(
    comparison: Comparison, summaries: Sequence[StrategySummary], cost: _Cost
) -> Chart:
    """Return the score against a cost, with the names of the Pareto-optimal strategies."""
    optimal = _find_pareto_optimal(comparison, summaries, cost)
    series = tuple(
        Series(
            summary.strategy,
            [cost.read(summary)],
            [summary.score],
            [summary.interval.low],
            [summary.interval.high],
            "markers",
            [summary.strategy],
            comparison.strategies.index(summary.strategy),
        )
        for summary in summaries
    )
    return LinePlot(
        key=cost.key,
        title=f"{comparison.score_name} and {cost.name}",
        description=f"Pareto-optimal in {cost.name} and {comparison.score_name}: "
        f"{', '.join(optimal)}. Bars: {comparison.confidence_level:.0%} confidence intervals.",
        x_axis=_make_bytes_axis(cost.name, [cost.read(summary) for summary in summaries]),
        y_axis=Axis(comparison.score_name),
        series=series,
    )


def _find_pareto_optimal(
    comparison: Comparison, summaries: Sequence[StrategySummary], cost: _Cost
) -> list[str]:
    """Return the strategies for which no other has both a lower cost and a better score."""
    sign = 1 if comparison.higher_is_better else -1

    def dominates(other: StrategySummary, one: StrategySummary) -> bool:
        return (
            cost.read(other) <= cost.read(one)
            and sign * other.score >= sign * one.score
            and (cost.read(other), other.score) != (cost.read(one), one.score)
        )

    return [
        one.strategy for one in summaries if not any(dominates(other, one) for other in summaries)
    ]


def _make_bytes_axis(label: str, values: list[int]) -> Axis:
    """Return an axis that starts at zero if the values are similar, so that small differences look
    small; logarithmic if they are very different."""
    low, high = max(1, min(values)), max(values)
    return Axis(label, "bytes", log=high > LOG_AXIS_RATIO * low, from_zero=high < 1.1 * low)
