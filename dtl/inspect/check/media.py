"""What a look at one sound or picture shows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from dtl.core.errors import Fault
from dtl.data.modalities.audio import FULL_SCALE, rate_of, sound_of
from dtl.data.modalities.image import picture_of
from dtl.data.modalities.media_files import Undecodable, digest_of_files, file_of
from dtl.data.sources.rows import Row

HASHED_WHOLE = 2**20  # bytes; of a larger file the size and both ends


@dataclass(frozen=True)
class Sound:
    """`level`: root mean square, a fraction of full scale; `clipped`: share of its samples."""

    place: str
    rate: int
    seconds: float
    level: float
    clipped: float


@dataclass(frozen=True)
class Picture:
    """`flat`: all of its pixels are the same."""

    place: str
    width: int
    height: int
    flat: bool


def medium_of(row: Row, media: str) -> Sound | Picture:
    """Decoded whole. Raises Undecodable."""
    return _sound(row) if media == "audio" else _picture(row)


def decoding_fault(row: Row, media: str) -> Fault | None:
    """What keeps a row whose header is good from being decoded to its end."""
    try:
        medium_of(row, media)
    except Undecodable as error:
        return error.faults[0]
    return None


def digest_of_medium(row: Row, media: str) -> str:
    """Of a sound or picture; a part of a file counts as that part."""
    value: Any = row.fields.get(media)
    part = f"{row.fields.get('offset')}/{row.fields.get('duration')}"
    file = file_of(value, row.folder)
    if file is not None and file.stat().st_size <= HASHED_WHOLE:
        return hashlib.sha256(file.read_bytes()).hexdigest() + part
    if file is not None:
        return digest_of_files([("", file)]) + part
    if isinstance(value, dict):
        array = value.get("array")
        value = value.get("bytes") if array is None else np.asarray(array).tobytes()
    return hashlib.sha256(value or b"").hexdigest() + part


def _sound(row: Row) -> Sound:
    rate = rate_of(row)
    samples_T = sound_of(row, rate=rate).astype(np.float64)
    if not len(samples_T):
        return Sound(row.location, rate, 0.0, 0.0, 0.0)
    level = float(np.sqrt(np.mean(samples_T**2))) / FULL_SCALE
    clipped = float(np.mean(np.abs(samples_T) >= FULL_SCALE - 1))
    return Sound(row.location, rate, len(samples_T) / rate, level, clipped)


def _picture(row: Row) -> Picture:
    pixels = picture_of(row)
    height, width = pixels.shape[:2]
    return Picture(row.location, width, height, bool((pixels == pixels[:1, :1]).all()))
