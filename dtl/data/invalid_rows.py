"""Rows that are found to be invalid only when they are encoded: damaged media, refused chats."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dtl.core.errors import InvalidRowError
from dtl.data.example import EncodedExample, Skip
from dtl.data.sources.rows import Row

INVALID = "invalid: "  # how the reason of such a row begins, where it is skipped


def skip_invalid(
    encoder: Callable[[Row], EncodedExample | Skip],
) -> Callable[[Row], EncodedExample | Skip]:
    """Return the encoder for `data.on_bad_row: skip`: a row that is found to be invalid when it is
    encoded is skipped like any other invalid row."""

    def encode(row: Row) -> EncodedExample | Skip:
        try:
            return encoder(row)
        except InvalidRowError as error:
            return Skip(INVALID + error.faults[0].problem)

    return encode


def count_invalid(skipped: dict[str, int]) -> int:
    """Return the number of rows that `skip_invalid` skipped. `skipped`: their number, by reason."""
    return sum(count for reason, count in skipped.items() if reason.startswith(INVALID))


def invalid_problems(reasons: Iterable[str]) -> list[str]:
    """Return the problems of invalid rows, from the reasons of skipped ones."""
    return [each.removeprefix(INVALID) for each in reasons if each.startswith(INVALID)]
