"""Measurements of one decoded audio file or image."""

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

MAX_HASHED_BYTES = 2**20  # of a larger file, only the size and both ends are hashed


@dataclass(frozen=True)
class AudioStats:
    """The measurements of one recording: its sampling rate (Hz), its duration, its root mean square
    as a fraction of full scale, and the fraction of samples that are clipped."""

    location: str
    sampling_rate: int
    seconds: float
    rms: float
    clipped_fraction: float


@dataclass(frozen=True)
class ImageStats:
    """The measurements of one image, in pixels. `is_blank`: all pixels have the same color."""

    location: str
    width: int
    height: int
    is_blank: bool


def measure_media(row: Row, media: str) -> AudioStats | ImageStats:
    """Decode the media of a row and measure it. Raises MediaDecodeError."""
    return _measure_audio(row) if media == "audio" else _measure_image(row)


def find_decode_fault(row: Row, media: str) -> Fault | None:
    """Return the fault of media that has a valid header and cannot be decoded, or None."""
    try:
        measure_media(row, media)
    except MediaDecodeError as error:
        return error.faults[0]
    return None


def digest_media(row: Row, media: str) -> str:
    """Return a digest of a row's media; different segments of a file have different digests."""
    value: Any = row.fields.get(media)
    segment = f"{row.fields.get('offset')}/{row.fields.get('duration')}"
    file = resolve_media_file(value, row.folder)
    if file is not None and file.stat().st_size <= MAX_HASHED_BYTES:
        return hashlib.sha256(file.read_bytes()).hexdigest() + segment
    if file is not None:
        return digest_media_files([("", file)]) + segment
    if isinstance(value, dict):
        array = value.get("array")
        value = value.get("bytes") if array is None else np.asarray(array).tobytes()
    return hashlib.sha256(value or b"").hexdigest() + segment


def _measure_audio(row: Row) -> AudioStats:
    sampling_rate = read_sampling_rate(row)
    samples_T = load_audio(row, sampling_rate=sampling_rate).astype(np.float64)
    if not len(samples_T):
        return AudioStats(row.location, sampling_rate, 0.0, 0.0, 0.0)
    return AudioStats(
        row.location,
        sampling_rate,
        seconds=len(samples_T) / sampling_rate,
        rms=float(np.sqrt(np.mean(samples_T**2))) / FULL_SCALE,
        clipped_fraction=float(np.mean(np.abs(samples_T) >= FULL_SCALE - 1)),
    )


def _measure_image(row: Row) -> ImageStats:
    pixels = load_image(row)
    height, width = pixels.shape[:2]
    is_blank = bool((pixels == pixels[:1, :1]).all())
    return ImageStats(row.location, width, height, is_blank)
