"""The axis of a chart: its limits, its ticks and the format of its values."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from dtl.core.units import format_bytes, format_seconds

Unit = Literal["number", "bytes", "seconds"]

TIME_STEPS = (60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)  # seconds
PADDING = 0.06  # of the range of the values


@dataclass(frozen=True)
class Tick:
    """A tick of an axis and its label."""

    value: float
    label: str


@dataclass(frozen=True)
class Axis:
    """An axis of a chart. `from_zero`: include zero. `tick_values`: empty for round numbers."""

    label: str
    unit: Unit = "number"
    log: bool = False
    from_zero: bool = False
    tick_values: tuple[float, ...] = ()

    def format_value(self, value: float | None) -> str:
        """Return a value with its unit; "-" for None and values that are not finite."""
        if value is None or not math.isfinite(value):
            return "-"
        if self.unit == "bytes":
            return format_bytes(value)
        if self.unit == "seconds":
            return format_seconds(value)
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"

    def limits(self, values: Iterable[float]) -> tuple[float, float]:
        """Return the lower and upper limit of the axis, with padding around the values."""
        valid = [value for value in values if not self.log or value > 0]
        if not valid:
            return (1.0, 10.0) if self.log else (0.0, 1.0)
        low, high = min(valid), max(valid)
        if self.log:
            return (low / 1.15, high * 1.15) if low < high else (low / 2, high * 2)
        padding = (high - low) * PADDING or abs(high) * 0.1 or 1.0
        if self.from_zero:
            return 0.0, max(high + padding, 0.0) or 1.0
        return low - padding, high + padding

    def ticks(self, low: float, high: float, *, max_ticks: int = 6) -> list[Tick]:
        """Return the ticks between two limits, at round numbers."""
        if self.tick_values:
            values = [value for value in self.tick_values if low <= value <= high]
            return [Tick(value, self._tick_label(value, value)) for value in values]
        if self.log and (values := _log_ticks(low, high, max_ticks)):
            return [Tick(value, self._tick_label(value, value)) for value in values]
        step = self._tick_step((high - low) / max_ticks)
        first = math.ceil(low / step - 1e-9)
        count = math.floor(high / step + 1e-9) - first + 1
        values = [(first + number) * step for number in range(count)]
        return [Tick(value, self._tick_label(value, step)) for value in values]

    def _tick_step(self, min_step: float) -> float:
        """Return the smallest round number that is at least `min_step`."""
        if self.unit == "seconds" and min_step > 20:
            days = 86400 * _round_up(min_step / 86400)
            return float(next((step for step in TIME_STEPS if step >= min_step), days))
        if self.unit == "bytes":
            return 2.0 ** math.ceil(math.log2(min_step) - 1e-9)
        return _round_up(min_step)

    def _tick_label(self, value: float, step: float) -> str:
        """Return a short label, with no more digits than `step` has."""
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


def _round_up(value: float) -> float:
    """Return the next of 1, 2, 5, 10, ... times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return power * next(digit for digit in (1, 2, 5, 10) if digit * power >= value * (1 - 1e-9))


def _log_ticks(low: float, high: float, max_ticks: int) -> list[float]:
    """Return at most `max_ticks` round numbers; none if fewer than two are between the limits."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = [digit * 10.0**power for power in powers for digit in digits]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if 2 <= len(ticks) <= max_ticks:
            return ticks
    return ticks[:: len(ticks) // max_ticks + 1] if len(ticks) >= 2 else []
