"""What a chart shows, apart from how it is drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from dtl.core.units import format_bytes, format_seconds

Unit = Literal["number", "bytes", "seconds"]
Style = Literal["line", "faint", "points", "linked points"]
Cell = str | float | None

SECOND_STEPS = (60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)


@dataclass(frozen=True)
class Tick:
    """A place on an axis, and what stands beside it."""

    at: float
    text: str


@dataclass(frozen=True)
class Axis:
    """`from_zero`: zero is shown. `places`: where the ticks are; empty: where round numbers are."""

    label: str
    unit: Unit = "number"
    log: bool = False
    from_zero: bool = False
    places: tuple[float, ...] = ()

    def text(self, value: float | None) -> str:
        """A value with its unit."""
        if value is None or not math.isfinite(value):
            return "-"
        if self.unit == "bytes":
            return format_bytes(value)
        if self.unit == "seconds":
            return format_seconds(value)
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"

    def span(self, values: Iterable[float]) -> tuple[float, float]:
        """The lowest and the highest place that is drawn, with some room around the values."""
        found = [value for value in values if not self.log or value > 0]
        if not found:
            return (1.0, 10.0) if self.log else (0.0, 1.0)
        low, high = min(found), max(found)
        if self.log:
            return (low / 1.15, high * 1.15) if low < high else (low / 2, high * 2)
        room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
        if self.from_zero:
            return 0.0, max(high + room, 0.0) or 1.0
        return low - room, high + room

    def ticks(self, low: float, high: float, *, most: int = 6) -> list[Tick]:
        """Round places between two ends."""
        if self.places:
            at = [place for place in self.places if low <= place <= high]
            return [Tick(place, self._short(place, place)) for place in at]
        if self.log and (found := _log_places(low, high, most)):
            return [Tick(place, self._short(place, place)) for place in found]
        step = self._step((high - low) / most)
        first = math.ceil(low / step - 1e-9)
        count = math.floor(high / step + 1e-9) - first + 1
        places = [(first + number) * step for number in range(count)]
        return [Tick(place, self._short(place, step)) for place in places]

    def _step(self, least: float) -> float:
        """The next round number."""
        if self.unit == "seconds" and least > 20:
            days = 86400 * _round_up(least / 86400)
            return float(next((step for step in SECOND_STEPS if step >= least), days))
        if self.unit == "bytes":
            return 2.0 ** math.ceil(math.log2(least) - 1e-9)
        return _round_up(least)

    def _short(self, value: float, step: float) -> str:
        """As a tick says it: no more digits than the step has."""
        if self.unit == "bytes":
            number, _, unit = format_bytes(value).partition(" ")
            return f"{float(number):g} {unit}" if value else "0"
        if self.unit == "seconds" and step >= 1 and value:
            for name, size in (("d", 86400), ("h", 3600), ("min", 60)):
                if value >= size and value % (size / 2) == 0:
                    return f"{value / size:g} {name}"
            return f"{value:g} s"
        if self.unit == "seconds" and value:
            return format_seconds(value)
        if abs(value) >= 1e5:
            return f"{value / 1e6:g} M" if abs(value) >= 1e6 else f"{value / 1e3:g} k"
        return f"{round(value, 12):g}"


@dataclass(frozen=True)
class Line:
    """Values over an axis. `low` and `high`: its intervals, where it has some. `names`: of the
    points, where each has its own. `style` faint: behind the line before it, in its colour.
    `colour`: its number, where it is the same in several charts; left out: the next one."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    style: Style = "line"
    names: Sequence[str] = ()
    colour: int | None = None


@dataclass(frozen=True)
class Mark:
    """Something that happened at a place of the x axis."""

    x: float
    label: str


@dataclass(frozen=True)
class Level:
    """A value to compare with, such as that of the untouched base."""

    y: float
    label: str


@dataclass(frozen=True)
class Entry:
    """What a colour of a chart stands for."""

    name: str
    colour: int
    faint: bool = False


@dataclass(frozen=True)
class Plot:
    """Lines over two axes. `key`: the name of its files. `description`: what is to be seen, for
    those who do not see it."""

    kind: ClassVar[str] = "plot"
    key: str
    title: str
    description: str
    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    marks: tuple[Mark, ...] = ()
    levels: tuple[Level, ...] = ()

    @property
    def colours(self) -> list[int]:
        """The number of each line's colour."""
        strong = [line.style != "faint" for line in self.lines]
        return [
            max(0, sum(strong[: place + 1]) - 1) if line.colour is None else line.colour
            for place, line in enumerate(self.lines)
        ]

    @property
    def legend(self) -> list[Entry]:
        return [
            Entry(line.name, colour, line.style == "faint")
            for line, colour in zip(self.lines, self.colours, strict=True)
        ]

    def table(self) -> tuple[list[str], list[list[Cell]]]:
        """Head and rows: one line after the other where they have other places."""
        first = self.lines[0]
        banded = any(line.low or line.names for line in self.lines)
        if not banded and all(list(line.x) == list(first.x) for line in self.lines):
            rows = zip(first.x, *(line.y for line in self.lines), strict=True)
            return [self.x.label, *(line.name for line in self.lines)], [list(row) for row in rows]
        head = ["line", *(["point"] if any(line.names for line in self.lines) else [])]
        head += [self.x.label, self.y.label]
        intervals = any(line.low for line in self.lines)
        found: list[list[Cell]] = []
        for line in self.lines:
            for place, (x, y) in enumerate(zip(line.x, line.y, strict=True)):
                name: list[Cell] = [line.name]
                if len(head) == 4:
                    name.append(line.names[place] if line.names else "")
                between: list[Cell] = []
                if intervals:
                    between = [line.low[place], line.high[place]] if line.low else [None, None]
                found.append([*name, x, y, *between])
        return [*head, *(["low", "high"] if intervals else [])], found

    def texts(self, row: Sequence[Cell]) -> list[str]:
        """A row of the table as a person reads it."""
        words = sum(isinstance(cell, str) for cell in row)
        axes = [self.x, *[self.y] * len(row)]
        numbers = [cell for cell in row if not isinstance(cell, str)]
        told = [axis.text(cell) for axis, cell in zip(axes, numbers, strict=False)]
        return [*(str(cell) for cell in row[:words]), *told]


@dataclass(frozen=True)
class Bars:
    """Of each group a value, and where it might lie."""

    name: str
    values: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Groups:
    """The same score of several groups, of one model or of several."""

    kind: ClassVar[str] = "groups"
    key: str
    title: str
    description: str
    axis: Axis
    groups: tuple[str, ...]
    sizes: tuple[int, ...]
    bars: tuple[Bars, ...]

    @property
    def legend(self) -> list[Entry]:
        return [Entry(bars.name, colour) for colour, bars in enumerate(self.bars)]

    def table(self) -> tuple[list[str], list[list[Cell]]]:
        """Head and rows."""
        head = ["group", "examples"]
        head += [f"{bars.name} {what}" for bars in self.bars for what in ("score", "low", "high")]
        rows: list[list[Cell]] = []
        for place, group in enumerate(self.groups):
            row: list[Cell] = [group, self.sizes[place]]
            for bars in self.bars:
                row += [bars.values[place], bars.low[place], bars.high[place]]
            rows.append(row)
        return head, rows

    def texts(self, row: Sequence[Cell]) -> list[str]:
        """A row of the table as a person reads it."""
        return [cell if isinstance(cell, str) else self.axis.text(cell) for cell in row]


@dataclass(frozen=True)
class Matrix:
    """How many examples of each label, a row, were held to be of each other, a column."""

    kind: ClassVar[str] = "matrix"
    key: str
    title: str
    description: str
    labels: tuple[str, ...]
    counts: Sequence[Sequence[int]]

    @property
    def legend(self) -> list[Entry]:
        return [Entry("right", 0), Entry("wrong", 1)]

    def table(self) -> tuple[list[str], list[list[Cell]]]:
        """Head and rows."""
        rows: list[list[Cell]] = [
            [label, *counts] for label, counts in zip(self.labels, self.counts, strict=True)
        ]
        return ["label", *self.labels], rows

    def texts(self, row: Sequence[Cell]) -> list[str]:
        """A row of the table as a person reads it."""
        return [str(cell) for cell in row]


Chart = Plot | Groups | Matrix


def thinned(line: Line, *, most: int = 400) -> Line:
    """A line of no more than twice so many places: of each stretch the lowest and the highest, so
    that no jump is lost."""
    if len(line.x) <= 2 * most:
        return line
    kept: list[int] = []
    width = len(line.x) / most
    for number in range(most):
        stretch = range(int(number * width), int((number + 1) * width))
        known = [place for place in stretch if line.y[place] is not None]
        if known:
            ends = {
                min(known, key=lambda p: line.y[p] or 0),
                max(known, key=lambda p: line.y[p] or 0),
            }
            kept += sorted(ends)
    return Line(line.name, [line.x[p] for p in kept], [line.y[p] for p in kept], style=line.style)


def smoothed(values: Sequence[float | None], *, window: int) -> list[float | None]:
    """The mean of the last `window` known values, at each place."""
    sums = [0.0]
    means: list[float | None] = []
    for value in values:
        if value is not None:
            sums.append(sums[-1] + value)
        known = min(window, len(sums) - 1)
        means.append((sums[-1] - sums[-1 - known]) / known if known else None)
    return means


def _round_up(value: float) -> float:
    """The next of 1, 2, 5, 10, ... times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return power * next(digit for digit in (1, 2, 5, 10) if digit * power >= value * (1 - 1e-9))


def _log_places(low: float, high: float, most: int) -> list[float]:
    """Round numbers between two ends, at most so many; none where fewer than two would be left."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        places = [digit * 10.0**power for power in powers for digit in digits]
        places = [place for place in places if low <= place <= high]
        if 2 <= len(places) <= most:
            return places
    return places[:: len(places) // most + 1] if len(places) >= 2 else []
