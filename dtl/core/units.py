"""Format and parse numbers with units: bytes, counts, seconds."""

import re

_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_COUNT_UNITS = ("", " k", " M", " B", " T")


def format_bytes(size: float) -> str:
    """Return a size as text: 1536 -> '1.50 KiB'; below 1024 in bytes."""
    value, unit = _scale(float(size), _BYTE_UNITS, step=1024)
    return f"{size:.0f} B" if unit == "B" else f"{_three_digits(value)} {unit}"


def format_count(number: float) -> str:
    """Return a count as text: 1234567 -> '1.23 M'; below 10 000 without a unit."""
    if abs(number) < 10_000:
        return f"{number:.0f}"
    value, unit = _scale(float(number), _COUNT_UNITS, step=1000)
    return f"{_three_digits(value)}{unit}"


def format_seconds(seconds: float) -> str:
    """Return seconds as text: 0.0123 -> '12 ms', 7.25 -> '7.2 s', 75 -> '1 min 15 s'."""
    if seconds < 0:
        return f"-{format_seconds(-seconds)}"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} d {hours:02d} h"


def parse_seconds(text: str) -> float:
    """Return the seconds of '90', '90s', '45min', '4h', '1d12h', '4:00:00' or '1-12:00:00'.

    The last two are Slurm's formats. Raises ValueError for other text and for 0 seconds.
    """
    days, dash, clock = text.strip().rpartition("-")
    colons = re.fullmatch(r"(?:(\d+):)?(\d+):(\d+)", clock)
    words = re.fullmatch(
        r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)(?:min|m))?(?:(\d+(?:\.\d+)?)s?)?", text.replace(" ", "")
    )
    if colons and (days.isdigit() if dash else not days):
        parts = (days, *colons.groups())
    elif words:
        parts = words.groups()
    else:
        parts = ()
    seconds = sum(
        float(number or 0) * unit for number, unit in zip(parts, (86400, 3600, 60, 1), strict=False)
    )
    if seconds <= 0:
        raise ValueError(f"'{text}' is not a length of time")
    return seconds


def _scale(value: float, units: tuple[str, ...], *, step: int) -> tuple[float, str]:
    """Divide by step until the number has three digits before the point at most."""
    for unit in units[:-1]:
        if abs(value) < step * 0.9995:
            return value, unit
        value /= step
    return value, units[-1]


def _three_digits(value: float) -> str:
    """Three significant digits: 1.23, 12.3, 123."""
    if abs(value) < 9.995:
        return f"{value:.2f}"
    return f"{value:.1f}" if abs(value) < 99.95 else f"{value:.0f}"
