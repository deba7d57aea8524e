"""Charts as SVG: their colours are the page's, so that they are right in both of its themes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from dtl.report.charts import Axis, Chart, Groups, Line, Matrix, Plot, Tick, thinned

WIDTH, HEIGHT = 400, 235
TOP, RIGHT, BOTTOM = 24, 14, 40
LETTER = 6.8  # width of one, at the size of a tick's text
COLOURS = 8  # that the page has
NUMBERED = 12  # labels of a matrix whose counts are written into it
LONGEST_NAME = 16  # letters of a group or label that are shown


@dataclass(frozen=True)
class Scale:
    """From values to places on the page."""

    axis: Axis
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        low, high, value = (
            (math.log(end) for end in (self.low, self.high, value))
            if self.axis.log
            else (self.low, self.high, value)
        )
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def has(self, value: float | None) -> bool:
        """Whether there is such a place."""
        if value is None or not math.isfinite(value):
            return False
        return value > 0 or not self.axis.log

    def ticks(self, *, most: int = 6) -> list[Tick]:
        return self.axis.ticks(self.low, self.high, most=most)


def draw(chart: Chart) -> Markup:
    """One `<svg>`, with its title and description."""
    if isinstance(chart, Plot):
        return _plot(chart)
    return _groups(chart) if isinstance(chart, Groups) else _matrix(chart)


def _framed(chart: Chart, parts: Iterable[str], *, width: float, height: float) -> Markup:
    key = escape(chart.key)
    return Markup(
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'aria-labelledby="{key}-title {key}-description">'
        f'<title id="{key}-title">{escape(chart.title)}</title>'
        f'<desc id="{key}-description">{escape(chart.description)}</desc>{"".join(parts)}</svg>'
    )


def _plot(chart: Plot) -> Markup:
    lines = [thinned(line) for line in chart.lines]
    heights = [value for line in lines for value in (*line.y, *line.low, *line.high)]
    heights += [level.y for level in chart.levels]
    low, high = chart.y.span(value for value in heights if value is not None)
    y = Scale(chart.y, low, high, HEIGHT - BOTTOM, TOP)
    left = 12 + LETTER * max((len(tick.text) for tick in y.ticks(most=5)), default=0)
    low, high = chart.x.span([x for line in lines for x in line.x])
    x = Scale(chart.x, low, high, left, WIDTH - RIGHT)
    parts = [_text(0, 11, chart.y.label, "label start"), *_y_axis(y, left=left)]
    parts += _x_axis(x, bottom=HEIGHT - BOTTOM)
    parts.append(_text((left + WIDTH - RIGHT) / 2, HEIGHT - 4, chart.x.label, "label"))
    for mark in chart.marks:
        parts.append(
            f'<g><title>{escape(mark.label)}</title><path class="mark" '
            f'd="M{x(mark.x):.1f} {TOP}V{HEIGHT - BOTTOM}"/></g>'
        )
    for level in chart.levels:
        place = y(level.y)
        parts.append(f'<path class="level" d="M{left:.1f} {place:.1f}H{WIDTH - RIGHT}"/>')
        above = place - 4 if place > TOP + 14 else place + 12
        parts.append(_text(WIDTH - RIGHT, above, level.label, "tick end"))
    coloured = sorted(
        zip(lines, chart.colours, strict=True), key=lambda pair: pair[0].style != "faint"
    )
    for line, colour in coloured:  # the faint ones first: they are behind
        parts += _line(line, x, y, colour=colour % COLOURS)
    return _framed(chart, parts, width=WIDTH, height=HEIGHT)


def _line(line: Line, x: Scale, y: Scale, *, colour: int) -> Iterable[str]:
    known = [
        (x(across), y(up)) if up is not None and x.has(across) and y.has(up) else None
        for across, up in zip(line.x, line.y, strict=True)
    ]
    if line.low:
        there = [f"{x(a):.1f} {y(h):.1f}" for a, h in zip(line.x, line.high, strict=True)]
        back = [f"{x(a):.1f} {y(b):.1f}" for a, b in zip(line.x, line.low, strict=True)]
        if line.style == "linked points" and len(line.x) > 1:
            yield f'<path class="band s{colour}" d="M{"L".join([*there, *reversed(back)])}Z"/>'
        else:
            ends = zip(there, back, strict=True)
            yield f'<path class="whisker s{colour}" d="{"".join(f"M{a}L{b}" for a, b in ends)}"/>'
    if line.style != "points" and len(line.x) > 1:
        yield f'<path class="{line.style} s{colour}" d="{_path(known)}"/>'.replace(
            '"linked points', '"line'
        )
    if "points" in line.style or len(line.x) == 1:
        for number, place in enumerate(known):
            if place is not None:
                value = f"{y.axis.text(line.y[number])}, {x.axis.text(line.x[number])}"
                name = line.names[number] if line.names else line.name
                yield _dot(place, colour, f"{name}: {value}")
                if line.names:
                    end = place[0] > WIDTH * 0.7
                    yield _text(
                        place[0] + (-8 if end else 8),
                        place[1] + 4,
                        name,
                        f"tick {'end' if end else 'start'}",
                    )


def _path(places: Iterable[tuple[float, float] | None]) -> str:
    """Straight from place to place; a gap where one is not known."""
    drawn, pen = [], "M"
    for place in places:
        if place is None:
            pen = "M"
        else:
            drawn.append(f"{pen}{place[0]:.1f} {place[1]:.1f}")
            pen = "L"
    return "".join(drawn)


def _dot(place: tuple[float, float], colour: int, words: str) -> str:
    """Of another shape in each colour, for those who do not see colours."""
    a, b = f"{place[0]:.1f}", f"{place[1]:.1f}"
    shape = (
        f'<circle class="dot s{colour}" cx="{a}" cy="{b}" r="4"/>',
        f'<path class="dot s{colour}" d="M{a} {b}m-3.7-3.7h7.4v7.4h-7.4z"/>',
        f'<path class="dot s{colour}" d="M{a} {b}m0-5l4.8 8.4h-9.6z"/>',
        f'<path class="dot s{colour}" d="M{a} {b}m0-5.2l5.2 5.2-5.2 5.2-5.2-5.2z"/>',
    )[colour % 4]
    return f"<g><title>{escape(words)}</title>{shape}</g>"


def _y_axis(y: Scale, *, left: float) -> Iterable[str]:
    for tick in y.ticks(most=5):
        place = y(tick.at)
        yield f'<path class="grid" d="M{left:.1f} {place:.1f}H{WIDTH - RIGHT}"/>'
        yield _text(left - 6, place + 4, tick.text, "tick end")


def _x_axis(x: Scale, *, bottom: float) -> Iterable[str]:
    yield f'<path class="axis" d="M{x.start:.1f} {bottom}H{x.end:.1f}"/>'
    ticks = x.ticks()
    longest = max((len(tick.text) for tick in ticks), default=1) * LETTER + 8
    last = -math.inf
    for tick in ticks:
        place = x(tick.at)
        yield f'<path class="axis" d="M{place:.1f} {bottom}v4"/>'
        if place - last >= longest:
            half = len(tick.text) * LETTER / 2
            last = min(max(place, half), WIDTH - half)
            yield _text(last, bottom + 16, tick.text, "tick")


def _groups(chart: Groups) -> Markup:
    row = 12 + 12 * len(chart.bars)
    left = 12 + LETTER * max(len(_name(group)) for group in chart.groups)
    bottom = TOP + row * len(chart.groups)
    ends = [end for bars in chart.bars for end in (*bars.low, *bars.high, *bars.values)]
    low, high = chart.axis.span(ends)
    x = Scale(chart.axis, low, high, left, WIDTH - RIGHT)
    parts = [f'<path class="grid" d="M{x(t.at):.1f} {TOP}V{bottom}"/>' for t in x.ticks()]
    parts += [*_x_axis(x, bottom=bottom)]
    parts.append(_text((left + WIDTH - RIGHT) / 2, bottom + 36, chart.axis.label, "label"))
    for place, group in enumerate(chart.groups):
        middle = TOP + row * (place + 0.5)
        parts.append(_text(left - 6, middle + 4, _name(group), "tick end"))
        for number, bars in enumerate(chart.bars):
            up = middle + 12 * (number - (len(chart.bars) - 1) / 2)
            low, high = bars.low[place], bars.high[place]
            parts.append(
                f'<path class="whisker s{number}" d="M{x(low):.1f} {up:.1f}H{x(high):.1f}"/>'
            )
            told = f"{group}, {bars.name}: {chart.axis.text(bars.values[place])}"
            parts.append(_dot((x(bars.values[place]), up), number, told))
    return _framed(chart, parts, width=WIDTH, height=bottom + 42)


def _matrix(chart: Matrix) -> Markup:
    labels = [_name(label) for label in chart.labels]
    longest = max(map(len, labels)) * LETTER
    left, top = longest + 10, 10 + (longest if longest > 24 else 14)
    side = min(46.0, (WIDTH - left - 2) / len(labels))
    parts: list[str] = []
    for number, label in enumerate(labels):
        middle = (number + 0.5) * side
        parts.append(_text(left - 6, top + middle + 4, label, "tick end"))
        if longest > 24:
            turned = f"translate({left + middle + 4:.1f} {top - 6:.1f}) rotate(-90)"
            parts.append(f'<text class="tick start" transform="{turned}">{escape(label)}</text>')
        else:
            parts.append(_text(left + middle, top - 6, label, "tick"))
    for row, counts in enumerate(chart.counts):
        parts += _cells(chart, row, counts, left=left, top=top, side=side)
    size = side * len(labels)
    return _framed(chart, parts, width=left + size + 2, height=top + size + 2)


def _cells(
    chart: Matrix, row: int, counts: Sequence[int], *, left: float, top: float, side: float
) -> Iterable[str]:
    total = sum(counts) or 1
    for column, count in enumerate(counts):
        a, b, share = left + column * side, top + row * side, count / total
        words = f"{chart.labels[row]} held to be {chart.labels[column]}: {count}"
        right = "s0" if row == column else "s1"
        box = (
            f'<rect class="cell {right}" x="{a:.1f}" y="{b:.1f}" width="{side - 1.5:.1f}" '
            f'height="{side - 1.5:.1f}" fill-opacity="{share:.2f}"/>'
        )
        shown = count and len(chart.labels) <= NUMBERED
        strong = " strong" if share > 0.5 else ""
        text = _text(a + side / 2 - 1, b + side / 2 + 4, str(count), f"tick{strong}")
        yield f"<g><title>{escape(words)}</title>{box}{text if shown else ''}</g>"


def _name(text: str) -> str:
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 1]}…"


def _text(x: float, y: float, words: str, style: str) -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'
