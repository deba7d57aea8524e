"""Skip the rows whose audio or image is found to be invalid when it is decoded."""

from __future__ import annotations

from collections.abc import Callable

from dtl.data.example import EncodedExample, Skip
from dtl.data.modalities.media_files import MediaDecodeError
from dtl.data.sources.rows import Row

INVALID = "invalid: "  # how the reason of a row begins whose media cannot be decoded


def skip_undecodable(
    encoder: Callable[[Row], EncodedExample | Skip],
) -> Callable[[Row], EncodedExample | Skip]:
    """Return the encoder for `data.on_bad_row: skip`: a row whose media cannot be decoded, which is
    known only when it is encoded, is skipped like any other invalid row."""

    def encode(row: Row) -> EncodedExample | Skip:
        try:
            return encoder(row)
        except MediaDecodeError as error:
            return Skip(INVALID + error.faults[0].problem)

    return encode


def count_undecodable(skipped: dict[str, int]) -> int:
    """Return the number of rows that `skip_undecodable` skipped. `skipped`: their number, by
    reason."""
    return sum(count for reason, count in skipped.items() if reason.startswith(INVALID))
