"""Charts as PNG, drawn by matplotlib."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from dtl.core.errors import DtlError
from dtl.report.charts import Chart, Groups, Matrix, Plot
from dtl.report.svg_charts import NUMBERED

# The page's colours on a light ground.
COLOURS = ("#2563b0", "#c2570c", "#16806a", "#a3357f", "#8a6d00", "#5b4bc4", "#b3261e", "#4d6470")
SHAPES = "os^D"
DOTS_AN_INCH = 150


def can_draw() -> bool:
    """Whether matplotlib is here."""
    return importlib.util.find_spec("matplotlib") is not None


def refuse_without() -> None:
    """Raises DtlError where it is not."""
    if not can_draw():
        raise DtlError.of(
            "--png",
            "pictures are drawn by matplotlib, which is not installed",
            "pip install 'dtl[report]', or leave --png out",
        )


def draw(chart: Chart, path: Path) -> None:
    """One chart into one file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    axes.set_title(_plain(chart.title), loc="left", fontsize=11)
    if isinstance(chart, Plot):
        _plot(chart, axes)
    elif isinstance(chart, Groups):
        figure.set_size_inches(6.4, 1.6 + 0.3 * len(chart.groups))
        _groups(chart, axes)
    else:
        figure.set_size_inches(6.4, 6.4)
        _matrix(chart, axes)
    figure.savefig(path, dpi=DOTS_AN_INCH)


def _plot(chart: Plot, axes: Any) -> None:
    for number, line in zip(chart.colours, chart.lines, strict=True):
        colour = COLOURS[number % len(COLOURS)]
        heights = [float("nan") if y is None else y for y in line.y]
        axes.plot(
            line.x,
            heights,
            color=colour,
            label=_plain(line.name),
            linewidth=0.8 if line.style == "faint" else 1.8,
            alpha=0.4 if line.style == "faint" else 1.0,
            linestyle="none" if line.style == "points" else "-",
            marker=SHAPES[number % 4] if "points" in line.style else None,
        )
        if line.low and line.style == "linked points":
            axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
        elif line.low:
            axes.vlines(line.x, line.low, line.high, color=colour)
        for x, y, name in zip(line.x, heights, line.names, strict=False):
            axes.annotate(_plain(name), (x, y), xytext=(5, 3), textcoords="offset points")
    for mark in chart.marks:
        axes.axvline(mark.x, color=COLOURS[3], linestyle=":", linewidth=1)
    for level in chart.levels:
        axes.axhline(level.y, color="grey", linestyle="--", linewidth=1, label=_plain(level.label))
    for name, axis in (("x", chart.x), ("y", chart.y)):
        if axis.log:
            getattr(axes, f"set_{name}scale")("log")
        values = getattr(axes, f"get_{name}lim")()
        if axis.from_zero:
            values = (0.0, values[1])
        getattr(axes, f"set_{name}lim")(*values)
        ticks = axis.ticks(*values)
        shown = getattr(axes, f"{name}axis")
        shown.set_ticks([tick.at for tick in ticks], [tick.text for tick in ticks])
        shown.set_ticks([], minor=True)
        shown.set_label_text(_plain(axis.label))
    axes.grid(alpha=0.25)
    if len(chart.lines) + len(chart.levels) > 1:
        axes.legend(frameon=False, fontsize=8)


def _groups(chart: Groups, axes: Any) -> None:
    places = range(len(chart.groups))
    for number, bars in enumerate(chart.bars):
        up = [place + 0.22 * (number - (len(chart.bars) - 1) / 2) for place in places]
        colour = COLOURS[number % len(COLOURS)]
        axes.hlines(up, bars.low, bars.high, color=colour)
        shape = SHAPES[number % 4]
        axes.plot(bars.values, up, shape, color=colour, label=_plain(bars.name))
    axes.set_yticks(list(places), [_plain(group) for group in chart.groups])
    axes.invert_yaxis()
    axes.set_xlabel(_plain(chart.axis.label))
    axes.grid(axis="x", alpha=0.25)
    if len(chart.bars) > 1:
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _matrix(chart: Matrix, axes: Any) -> None:
    shares = [[count / (sum(row) or 1) for count in row] for row in chart.counts]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    labels = [_plain(label) for label in chart.labels]
    axes.set_xticks(range(len(labels)), labels, rotation=90)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("held to be")
    axes.set_ylabel("label")
    for row, counts in enumerate(chart.counts if len(labels) <= NUMBERED else ()):
        for column, count in enumerate(counts):
            colour = "white" if shares[row][column] > 0.5 else "black"
            if count:
                axes.text(column, row, str(count), ha="center", va="center", color=colour)


def _plain(text: str) -> str:
    """Not as a formula, which a dollar sign would begin."""
    return text.replace("$", r"\$")
