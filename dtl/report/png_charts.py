"""Draws charts as PNG with matplotlib."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from dtl.core.errors import DtlError
from dtl.report.axis import Axis
from dtl.report.charts import Chart, ConfusionMatrix, GroupPlot, LinePlot, Series
from dtl.report.svg_charts import MAX_ANNOTATED_LABELS

# The colors of the page's light theme.
COLORS = ("#2563b0", "#c2570c", "#16806a", "#a3357f", "#8a6d00", "#5b4bc4", "#b3261e", "#4d6470")
EVENT_COLOR = COLORS[3]
MARKERS = "os^D"
DPI = 150


def has_matplotlib() -> bool:
    """Return whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def check_matplotlib() -> None:
    """Raise DtlError if matplotlib is not installed."""
    if not has_matplotlib():
        raise DtlError.of(
            "--png",
            "matplotlib is not installed",
            "run pip install 'dtl[report]', or remove --png",
        )


def draw_png(chart: Chart, path: Path) -> None:
    """Write a chart to a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    axes.set_title(_escape_math(chart.title), loc="left", fontsize=11)
    if isinstance(chart, LinePlot):
        _draw_line_plot(chart, axes)
    elif isinstance(chart, GroupPlot):
        figure.set_size_inches(6.4, 1.6 + 0.3 * len(chart.groups))
        _draw_group_plot(chart, axes)
    else:
        figure.set_size_inches(6.4, 6.4)
        _draw_confusion_matrix(chart, axes)
    figure.savefig(path, dpi=DPI)


def _draw_line_plot(chart: LinePlot, axes: Any) -> None:
    for index, series in zip(chart.colors, chart.series, strict=True):
        _draw_series(series, axes, index)
    for event in chart.vertical_lines:
        axes.axvline(event.x, color=EVENT_COLOR, linestyle=":", linewidth=1)
    for reference in chart.horizontal_lines:
        label = _escape_math(reference.label)
        axes.axhline(reference.y, color="grey", linestyle="--", linewidth=1, label=label)
    _set_axis(axes, "x", chart.x_axis)
    _set_axis(axes, "y", chart.y_axis)
    axes.grid(alpha=0.25)
    if len(chart.series) + len(chart.horizontal_lines) > 1:
        axes.legend(frameon=False, fontsize=8)


def _draw_series(series: Series, axes: Any, index: int) -> None:
    color = COLORS[index % len(COLORS)]
    is_faint = series.style == "faint"
    y = [float("nan") if value is None else value for value in series.y]
    axes.plot(
        series.x,
        y,
        color=color,
        label=_escape_math(series.name),
        linewidth=0.8 if is_faint else 1.8,
        alpha=0.4 if is_faint else 1.0,
        linestyle="none" if series.style == "markers" else "-",
        marker=MARKERS[index % 4] if "markers" in series.style else None,
    )
    if series.y_low and series.style == "lines+markers":
        axes.fill_between(
            series.x, series.y_low, series.y_high, color=color, alpha=0.15, linewidth=0
        )
    elif series.y_low:
        axes.vlines(series.x, series.y_low, series.y_high, color=color)
    for x, height, label in zip(series.x, y, series.point_labels, strict=False):
        axes.annotate(_escape_math(label), (x, height), xytext=(5, 3), textcoords="offset points")


def _set_axis(axes: Any, name: str, axis: Axis) -> None:
    """Set scale, limits, ticks and label of the x or y axis."""
    if axis.log:
        getattr(axes, f"set_{name}scale")("log")
    limits = getattr(axes, f"get_{name}lim")()
    if axis.from_zero:
        limits = (0.0, limits[1])
    getattr(axes, f"set_{name}lim")(*limits)
    ticks = axis.ticks(*limits)
    target = getattr(axes, f"{name}axis")
    target.set_ticks([tick.value for tick in ticks], [tick.label for tick in ticks])
    target.set_ticks([], minor=True)
    target.set_label_text(_escape_math(axis.label))


def _draw_group_plot(chart: GroupPlot, axes: Any) -> None:
    rows = range(len(chart.groups))
    for index, model in enumerate(chart.models):
        heights = [row + 0.22 * (index - (len(chart.models) - 1) / 2) for row in rows]
        color, marker = COLORS[index % len(COLORS)], MARKERS[index % 4]
        axes.hlines(heights, model.low, model.high, color=color)
        axes.plot(model.values, heights, marker, color=color, label=_escape_math(model.name))
    axes.set_yticks(list(rows), [_escape_math(group) for group in chart.groups])
    axes.invert_yaxis()
    axes.set_xlabel(_escape_math(chart.axis.label))
    axes.grid(axis="x", alpha=0.25)
    if len(chart.models) > 1:
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _draw_confusion_matrix(chart: ConfusionMatrix, axes: Any) -> None:
    shares = [[count / (sum(row) or 1) for count in row] for row in chart.counts]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    labels = [_escape_math(label) for label in chart.labels]
    axes.set_xticks(range(len(labels)), labels, rotation=90)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("predicted label")
    axes.set_ylabel("true label")
    if len(labels) > MAX_ANNOTATED_LABELS:
        return
    for row, counts in enumerate(chart.counts):
        for column, count in enumerate(counts):
            color = "white" if shares[row][column] > 0.5 else "black"
            if count:
                axes.text(column, row, str(count), ha="center", va="center", color=color)


def _escape_math(text: str) -> str:
    """Return the text with dollar signs escaped, which begin a formula in matplotlib."""
    return text.replace("$", r"\$")
