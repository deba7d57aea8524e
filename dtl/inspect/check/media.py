"""What a look at one sound or picture shows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from dtl.core.errors import Fault
from dtl.data.modalities.audio import FULL_SCALE, load_audio, read_sampling_rate
from dtl.data.modalities.image import load_image
from dtl.data.modalities.media_files import MediaDecodeError, digest_media_files, resolve_media_file
from dtl.data.sources.rows import Row

MAX_HASHED_BYTES = 2**20  # bytes; of a larger file the size and both ends


@dataclass(frozen=True)
class AudioStats:
    """`level`: root mean square, a fraction of full scale; `clipped`: share of its samples."""

    location: str
    sampling_rate: int
    seconds: float
    rms: float
    clipped_fraction: float


@dataclass(frozen=True)
class ImageStats:
    """`flat`: all of its pixels are the same."""

    location: str
    width: int
    height: int
    is_blank: bool


def measure_media(row: Row, media: str) -> AudioStats | ImageStats:
    """Decoded whole. Raises Undecodable."""
    return _measure_audio(row) if media == "audio" else _measure_image(row)


def find_decode_fault(row: Row, media: str) -> Fault | None:
    """What keeps a row whose header is good from being decoded to its end."""
    try:
        measure_media(row, media)
    except MediaDecodeError as error:
        return error.faults[0]
    return None


def digest_media(row: Row, media: str) -> str:
    """Of a sound or picture; a part of a file counts as that part."""
    value: Any = row.fields.get(media)
    part = f"{row.fields.get('offset')}/{row.fields.get('duration')}"
    file = resolve_media_file(value, row.folder)
    if file is not None and file.stat().st_size <= MAX_HASHED_BYTES:
        return hashlib.sha256(file.read_bytes()).hexdigest() + part
    if file is not None:
        return digest_media_files([("", file)]) + part
    if isinstance(value, dict):
        array = value.get("array")
        value = value.get("bytes") if array is None else np.asarray(array).tobytes()
    return hashlib.sha256(value or b"").hexdigest() + part


def _measure_audio(row: Row) -> AudioStats:
    rate = read_sampling_rate(row)
    samples_T = load_audio(row, sampling_rate=rate).astype(np.float64)
    if not len(samples_T):
        return AudioStats(row.location, rate, 0.0, 0.0, 0.0)
    level = float(np.sqrt(np.mean(samples_T**2))) / FULL_SCALE
    clipped = float(np.mean(np.abs(samples_T) >= FULL_SCALE - 1))
    return AudioStats(row.location, rate, len(samples_T) / rate, level, clipped)


def _measure_image(row: Row) -> ImageStats:
    pixels = load_image(row)
    height, width = pixels.shape[:2]
    return ImageStats(row.location, width, height, bool((pixels == pixels[:1, :1]).all()))
