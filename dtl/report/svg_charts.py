"""Draws charts as SVG; colors are CSS classes of the page, which follow its light or dark theme."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup, escape

from dtl.report.axis import Axis, Tick
from dtl.report.charts import Chart, ConfusionMatrix, GroupPlot, LinePlot, Series, downsample

WIDTH, HEIGHT = 400, 235
TOP, RIGHT, BOTTOM = 24, 14, 40  # margins
CHARACTER_WIDTH = 6.8  # of a tick label
COLOR_COUNT = 8  # CSS classes s0 to s7
MAX_ANNOTATED_LABELS = 12  # of a confusion matrix with counts in its cells
MAX_NAME_LENGTH = 16  # characters of a group or label
MAX_Y_TICKS = 5
GROUP_ROW_HEIGHT = 12


@dataclass(frozen=True)
class Scale:
    """Maps values of an axis to SVG coordinates, from `start` to `end`."""

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

    def can_map(self, value: float | None) -> bool:
        """Return whether the value is finite, and positive on a logarithmic axis."""
        if value is None or not math.isfinite(value):
            return False
        return value > 0 or not self.axis.log

    def ticks(self, *, max_ticks: int = 6) -> list[Tick]:
        """Return the ticks of the axis."""
        return self.axis.ticks(self.low, self.high, max_ticks=max_ticks)


def draw_svg(chart: Chart) -> Markup:
    """Return an `<svg>` element with title and description."""
    if isinstance(chart, LinePlot):
        return _draw_line_plot(chart)
    if isinstance(chart, GroupPlot):
        return _draw_group_plot(chart)
    return _draw_confusion_matrix(chart)


def _svg_element(chart: Chart, parts: Iterable[str], *, width: float, height: float) -> Markup:
    key = escape(chart.key)
    return Markup(
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'aria-labelledby="{key}-title {key}-description">'
        f'<title id="{key}-title">{escape(chart.title)}</title>'
        f'<desc id="{key}-description">{escape(chart.description)}</desc>{"".join(parts)}</svg>'
    )


def _draw_line_plot(chart: LinePlot) -> Markup:
    series = [downsample(one) for one in chart.series]
    y_values = [value for one in series for value in (*one.y, *one.y_low, *one.y_high)]
    y_values += [line.y for line in chart.horizontal_lines]
    low, high = chart.y_axis.limits(value for value in y_values if value is not None)
    y = Scale(chart.y_axis, low, high, HEIGHT - BOTTOM, TOP)
    longest = max((len(tick.label) for tick in y.ticks(max_ticks=MAX_Y_TICKS)), default=0)
    left = 12 + CHARACTER_WIDTH * longest
    low, high = chart.x_axis.limits([value for one in series for value in one.x])
    x = Scale(chart.x_axis, low, high, left, WIDTH - RIGHT)
    parts = [_draw_text(0, 11, chart.y_axis.label, "label start"), *_draw_y_axis(y, left=left)]
    parts += _draw_x_axis(x, bottom=HEIGHT - BOTTOM)
    parts.append(_draw_text((left + WIDTH - RIGHT) / 2, HEIGHT - 4, chart.x_axis.label, "label"))
    parts += _draw_reference_lines(chart, x, y)
    colored = sorted(
        zip(series, chart.colors, strict=True), key=lambda pair: pair[0].style != "faint"
    )
    for one, color in colored:  # faint series first, behind the others
        parts += _draw_series(one, x, y, color=color % COLOR_COUNT)
    return _svg_element(chart, parts, width=WIDTH, height=HEIGHT)


def _draw_reference_lines(chart: LinePlot, x: Scale, y: Scale) -> Iterable[str]:
    for event in chart.vertical_lines:
        yield (
            f'<g><title>{escape(event.label)}</title><path class="event" '
            f'd="M{x(event.x):.1f} {TOP}V{HEIGHT - BOTTOM}"/></g>'
        )
    for reference in chart.horizontal_lines:
        height = y(reference.y)
        yield f'<path class="reference" d="M{x.start:.1f} {height:.1f}H{WIDTH - RIGHT}"/>'
        text_height = height - 4 if height > TOP + 14 else height + 12
        yield _draw_text(WIDTH - RIGHT, text_height, reference.label, "tick end")


def _draw_series(series: Series, x: Scale, y: Scale, *, color: int) -> Iterable[str]:
    points = [
        (x(x_value), y(y_value))
        if y_value is not None and x.can_map(x_value) and y.can_map(y_value)
        else None
        for x_value, y_value in zip(series.x, series.y, strict=True)
    ]
    if series.y_low:
        yield _draw_intervals(series, x, y, color=color)
    if series.style != "markers" and len(series.x) > 1:
        css_class = "faint" if series.style == "faint" else "line"
        yield f'<path class="{css_class} s{color}" d="{_path_data(points)}"/>'
    if "markers" in series.style or len(series.x) == 1:
        for index, point in enumerate(points):
            if point is not None:
                value = y.axis.format_value(series.y[index])
                position = x.axis.format_value(series.x[index])
                name = series.point_labels[index] if series.point_labels else series.name
                yield _draw_marker(point, color, f"{name}: {value}, {position}")
                if series.point_labels:
                    yield _draw_point_label(point, name)


def _draw_intervals(series: Series, x: Scale, y: Scale, *, color: int) -> str:
    """Return a band for connected points, else an error bar per point."""
    upper = [f"{x(a):.1f} {y(b):.1f}" for a, b in zip(series.x, series.y_high, strict=True)]
    lower = [f"{x(a):.1f} {y(b):.1f}" for a, b in zip(series.x, series.y_low, strict=True)]
    if series.style == "lines+markers" and len(series.x) > 1:
        return f'<path class="band s{color}" d="M{"L".join([*upper, *reversed(lower)])}Z"/>'
    bars = "".join(f"M{a}L{b}" for a, b in zip(upper, lower, strict=True))
    return f'<path class="error-bar s{color}" d="{bars}"/>'


def _draw_point_label(point: tuple[float, float], name: str) -> str:
    """Return a label next to a point, on the side with more space."""
    is_at_right = point[0] > WIDTH * 0.7
    offset, anchor = (-8, "end") if is_at_right else (8, "start")
    return _draw_text(point[0] + offset, point[1] + 4, name, f"tick {anchor}")


def _path_data(points: Iterable[tuple[float, float] | None]) -> str:
    """Return the `d` attribute of straight lines between points, with gaps at None."""
    parts, command = [], "M"
    for point in points:
        if point is None:
            command = "M"
        else:
            parts.append(f"{command}{point[0]:.1f} {point[1]:.1f}")
            command = "L"
    return "".join(parts)


def _draw_marker(point: tuple[float, float], color: int, tooltip: str) -> str:
    """Return a marker whose shape also depends on the color, for readers who see no colors."""
    a, b = f"{point[0]:.1f}", f"{point[1]:.1f}"
    shape = (
        f'<circle class="marker s{color}" cx="{a}" cy="{b}" r="4"/>',
        f'<path class="marker s{color}" d="M{a} {b}m-3.7-3.7h7.4v7.4h-7.4z"/>',
        f'<path class="marker s{color}" d="M{a} {b}m0-5l4.8 8.4h-9.6z"/>',
        f'<path class="marker s{color}" d="M{a} {b}m0-5.2l5.2 5.2-5.2 5.2-5.2-5.2z"/>',
    )[color % 4]
    return f"<g><title>{escape(tooltip)}</title>{shape}</g>"


def _draw_y_axis(y: Scale, *, left: float) -> Iterable[str]:
    for tick in y.ticks(max_ticks=MAX_Y_TICKS):
        height = y(tick.value)
        yield f'<path class="grid" d="M{left:.1f} {height:.1f}H{WIDTH - RIGHT}"/>'
        yield _draw_text(left - 6, height + 4, tick.label, "tick end")


def _draw_x_axis(x: Scale, *, bottom: float) -> Iterable[str]:
    yield f'<path class="axis" d="M{x.start:.1f} {bottom}H{x.end:.1f}"/>'
    ticks = x.ticks()
    min_distance = max((len(tick.label) for tick in ticks), default=1) * CHARACTER_WIDTH + 8
    last = -math.inf
    for tick in ticks:
        position = x(tick.value)
        yield f'<path class="axis" d="M{position:.1f} {bottom}v4"/>'
        if position - last >= min_distance:
            half = len(tick.label) * CHARACTER_WIDTH / 2
            last = min(max(position, half), WIDTH - half)
            yield _draw_text(last, bottom + 16, tick.label, "tick")


def _draw_group_plot(chart: GroupPlot) -> Markup:
    row_height = GROUP_ROW_HEIGHT * (1 + len(chart.models))
    left = 12 + CHARACTER_WIDTH * max(len(_shorten(group)) for group in chart.groups)
    bottom = TOP + row_height * len(chart.groups)
    values = [value for one in chart.models for value in (*one.low, *one.high, *one.values)]
    low, high = chart.axis.limits(values)
    x = Scale(chart.axis, low, high, left, WIDTH - RIGHT)
    parts = [f'<path class="grid" d="M{x(tick.value):.1f} {TOP}V{bottom}"/>' for tick in x.ticks()]
    parts += [*_draw_x_axis(x, bottom=bottom)]
    parts.append(_draw_text((left + WIDTH - RIGHT) / 2, bottom + 36, chart.axis.label, "label"))
    for index, group in enumerate(chart.groups):
        middle = TOP + row_height * (index + 0.5)
        parts.append(_draw_text(left - 6, middle + 4, _shorten(group), "tick end"))
        parts += _draw_group(chart, index, x, middle)
    return _svg_element(chart, parts, width=WIDTH, height=bottom + 42)


def _draw_group(chart: GroupPlot, index: int, x: Scale, middle: float) -> Iterable[str]:
    for color, model in enumerate(chart.models):
        height = middle + GROUP_ROW_HEIGHT * (color - (len(chart.models) - 1) / 2)
        low, high, value = model.low[index], model.high[index], model.values[index]
        yield (f'<path class="error-bar s{color}" d="M{x(low):.1f} {height:.1f}H{x(high):.1f}"/>')
        tooltip = f"{chart.groups[index]}, {model.name}: {chart.axis.format_value(value)}"
        yield _draw_marker((x(value), height), color, tooltip)


def _draw_confusion_matrix(chart: ConfusionMatrix) -> Markup:
    labels = [_shorten(label) for label in chart.labels]
    longest = max(map(len, labels)) * CHARACTER_WIDTH
    left, top = longest + 10, 10 + (longest if longest > 24 else 14)
    side = min(46.0, (WIDTH - left - 2) / len(labels))
    parts: list[str] = []
    for index, label in enumerate(labels):
        middle = (index + 0.5) * side
        parts.append(_draw_text(left - 6, top + middle + 4, label, "tick end"))
        if longest > 24:
            rotated = f"translate({left + middle + 4:.1f} {top - 6:.1f}) rotate(-90)"
            parts.append(f'<text class="tick start" transform="{rotated}">{escape(label)}</text>')
        else:
            parts.append(_draw_text(left + middle, top - 6, label, "tick"))
    for row in range(len(labels)):
        parts += _draw_matrix_row(chart, row, left=left, top=top + row * side, side=side)
    size = side * len(labels)
    return _svg_element(chart, parts, width=left + size + 2, height=top + size + 2)


def _draw_matrix_row(
    chart: ConfusionMatrix, row: int, *, left: float, top: float, side: float
) -> Iterable[str]:
    total = sum(chart.counts[row]) or 1
    for column, count in enumerate(chart.counts[row]):
        x, share = left + column * side, count / total
        tooltip = f"{chart.labels[row]} predicted as {chart.labels[column]}: {count}"
        color = "s0" if row == column else "s1"
        box = (
            f'<rect class="cell {color}" x="{x:.1f}" y="{top:.1f}" width="{side - 1.5:.1f}" '
            f'height="{side - 1.5:.1f}" fill-opacity="{share:.2f}"/>'
        )
        has_text = count and len(chart.labels) <= MAX_ANNOTATED_LABELS
        css_class = "tick strong" if share > 0.5 else "tick"
        text = _draw_text(x + side / 2 - 1, top + side / 2 + 4, str(count), css_class)
        yield f"<g><title>{escape(tooltip)}</title>{box}{text if has_text else ''}</g>"


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_NAME_LENGTH else f"{text[: MAX_NAME_LENGTH - 1]}…"


def _draw_text(x: float, y: float, text: str, css_class: str) -> str:
    return f'<text class="{css_class}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'
