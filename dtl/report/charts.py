"""The charts of a report as data, independent of how they are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from dtl.report.axis import Axis

Style = Literal["line", "faint", "markers", "lines+markers"]
TableCell = str | float | None


@dataclass(frozen=True)
class Series:
    """A data series. `y_low` and `y_high`: confidence intervals, or empty. `point_labels`: a label
    per point, or empty. `style` "faint": behind the previous series, in its color. `color`: an
    index, for a series with the same color in several charts; None: the next color."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    y_low: Sequence[float] = ()
    y_high: Sequence[float] = ()
    style: Style = "line"
    point_labels: Sequence[str] = ()
    color: int | None = None


@dataclass(frozen=True)
class VerticalLine:
    """An event at a value of the x axis."""

    x: float
    label: str


@dataclass(frozen=True)
class HorizontalLine:
    """A reference value on the y axis, such as the score of the unadapted base."""

    y: float
    label: str


@dataclass(frozen=True)
class LegendEntry:
    """An entry of a legend. `color`: an index."""

    name: str
    color: int
    is_faint: bool = False


@dataclass(frozen=True)
class LinePlot:
    """Series over two axes. `key`: the stem of its files. `description`: text alternative."""

    kind: ClassVar[str] = "line plot"
    key: str
    title: str
    description: str
    x_axis: Axis
    y_axis: Axis
    series: tuple[Series, ...]
    vertical_lines: tuple[VerticalLine, ...] = ()
    horizontal_lines: tuple[HorizontalLine, ...] = ()

    @property
    def colors(self) -> list[int]:
        """The color index of each series."""
        strong = [one.style != "faint" for one in self.series]
        return [
            max(0, sum(strong[: index + 1]) - 1) if one.color is None else one.color
            for index, one in enumerate(self.series)
        ]

    @property
    def legend(self) -> list[LegendEntry]:
        """An entry per series."""
        return [
            LegendEntry(one.name, color, one.style == "faint")
            for one, color in zip(self.series, self.colors, strict=True)
        ]

    def table(self) -> tuple[list[str], list[list[TableCell]]]:
        """Return the header and the rows of the data: a column per series if all have the same x
        values and neither intervals nor point labels, else a row per point."""
        first = self.series[0]
        is_simple = not any(one.y_low or one.point_labels for one in self.series)
        if is_simple and all(list(one.x) == list(first.x) for one in self.series):
            rows = zip(first.x, *(one.y for one in self.series), strict=True)
            header = [self.x_axis.label, *(one.name for one in self.series)]
            return header, [list(row) for row in rows]
        return self._long_table()

    def _long_table(self) -> tuple[list[str], list[list[TableCell]]]:
        has_labels = any(one.point_labels for one in self.series)
        has_intervals = any(one.y_low for one in self.series)
        header = ["series", *(["point"] if has_labels else [])]
        header += [self.x_axis.label, self.y_axis.label]
        header += ["low", "high"] if has_intervals else []
        rows: list[list[TableCell]] = []
        for one in self.series:
            for index, (x, y) in enumerate(zip(one.x, one.y, strict=True)):
                row: list[TableCell] = [one.name]
                if has_labels:
                    row.append(one.point_labels[index] if one.point_labels else "")
                row += [x, y]
                if has_intervals:
                    row += [one.y_low[index], one.y_high[index]] if one.y_low else [None, None]
                rows.append(row)
        return header, rows

    def format_row(self, row: Sequence[TableCell]) -> list[str]:
        """Return a row of the table as text, with units."""
        texts = sum(isinstance(cell, str) for cell in row)
        axes = [self.x_axis, *[self.y_axis] * len(row)]
        numbers = [cell for cell in row if not isinstance(cell, str)]
        formatted = [axis.format_value(cell) for axis, cell in zip(axes, numbers, strict=False)]
        return [*(str(cell) for cell in row[:texts]), *formatted]


@dataclass(frozen=True)
class GroupScores:
    """The scores of one model in each group, with confidence intervals."""

    name: str
    values: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class GroupPlot:
    """The same score in several groups, of one model or more. `sizes`: examples per group."""

    kind: ClassVar[str] = "group plot"
    key: str
    title: str
    description: str
    axis: Axis
    groups: tuple[str, ...]
    sizes: tuple[int, ...]
    models: tuple[GroupScores, ...]

    @property
    def legend(self) -> list[LegendEntry]:
        """An entry per model."""
        return [LegendEntry(model.name, color) for color, model in enumerate(self.models)]

    def table(self) -> tuple[list[str], list[list[TableCell]]]:
        """Return the header and a row per group."""
        header = ["group", "examples"]
        header += [
            f"{model.name} {column}" for model in self.models for column in ("score", "low", "high")
        ]
        rows: list[list[TableCell]] = []
        for index, group in enumerate(self.groups):
            row: list[TableCell] = [group, self.sizes[index]]
            for model in self.models:
                row += [model.values[index], model.low[index], model.high[index]]
            rows.append(row)
        return header, rows

    def format_row(self, row: Sequence[TableCell]) -> list[str]:
        """Return a row of the table as text, with units."""
        return [cell if isinstance(cell, str) else self.axis.format_value(cell) for cell in row]


@dataclass(frozen=True)
class ConfusionMatrix:
    """The number of examples of each true label (row) and predicted label (column)."""

    kind: ClassVar[str] = "confusion matrix"
    key: str
    title: str
    description: str
    labels: tuple[str, ...]
    counts: Sequence[Sequence[int]]

    @property
    def legend(self) -> list[LegendEntry]:
        """The colors of the diagonal and of the other cells."""
        return [LegendEntry("correct", 0), LegendEntry("wrong", 1)]

    def table(self) -> tuple[list[str], list[list[TableCell]]]:
        """Return the header and a row per true label."""
        rows: list[list[TableCell]] = [
            [label, *counts] for label, counts in zip(self.labels, self.counts, strict=True)
        ]
        return ["label", *self.labels], rows

    def format_row(self, row: Sequence[TableCell]) -> list[str]:
        """Return a row of the table as text."""
        return [str(cell) for cell in row]


Chart = LinePlot | GroupPlot | ConfusionMatrix


def downsample(series: Series, *, buckets: int = 400) -> Series:
    """Return a series of at most two points per bucket, the lowest and the highest, so that no
    outlier is lost."""
    if len(series.x) <= 2 * buckets:
        return series
    selected: list[int] = []
    width = len(series.x) / buckets
    for number in range(buckets):
        bucket = range(int(number * width), int((number + 1) * width))
        known = [index for index in bucket if series.y[index] is not None]
        if known:
            extremes = {
                min(known, key=lambda index: series.y[index] or 0),
                max(known, key=lambda index: series.y[index] or 0),
            }
            selected += sorted(extremes)
    x, y = [series.x[index] for index in selected], [series.y[index] for index in selected]
    return Series(series.name, x, y, style=series.style)


def moving_average(values: Sequence[float | None], *, window: int) -> list[float | None]:
    """Return at each index the mean of the last `window` values that are not None."""
    sums = [0.0]
    means: list[float | None] = []
    for value in values:
        if value is not None:
            sums.append(sums[-1] + value)
        known = min(window, len(sums) - 1)
        means.append((sums[-1] - sums[-1 - known]) / known if known else None)
    return means
