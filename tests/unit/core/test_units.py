"""Numbers with their units."""

import pytest

from dtl.core.units import format_bytes, format_count, format_seconds, parse_seconds


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.50 KiB"),
        (1024**3 - 1, "1.00 GiB"),
        (80 * 1024**3, "80.0 GiB"),
        (140 * 1024**3, "140 GiB"),
        (1024**6, "1024 PiB"),
    ],
)
def test_bytes(size, text):
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (9999, "9999"), (12345, "12.3 k"), (1234567, "1.23 M"), (7_000_000_000, "7.00 B")],
)
def test_counts(number, text):
    assert format_count(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0123, "12 ms"),
        (0.9999, "1.0 s"),
        (7.25, "7.2 s"),
        (59.99, "1 min 00 s"),
        (75, "1 min 15 s"),
        (3599.9, "1 h 00 min"),
        (7200, "2 h 00 min"),
        (3 * 86400, "3 d 00 h"),
        (-75, "-1 min 15 s"),
    ],
)
def test_seconds(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("1.5", 1.5),
        ("45min", 2700),
        ("45m", 2700),
        ("4h", 14400),
        ("2h30m", 9000),
        ("1d12h", 129600),
        ("05:30", 330),
        ("4:00:00", 14400),
        ("1-12:00:00", 129600),
    ],
)
def test_durations_are_parsed(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "soon", "-5", "4 hours", "x-1:00:00", "1:2:3:4"])
def test_other_text_is_not_a_duration(text):
    with pytest.raises(ValueError, match="not a length of time"):
        parse_seconds(text)
