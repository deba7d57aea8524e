"""Decodes audio to 16-bit mono samples at a model's sampling rate."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtl.core.errors import DtlError, Fault
from dtl.data.modalities.media_files import MediaDecodeError, resolve_media_file

if TYPE_CHECKING:
    import numpy as np

    from dtl.data.sources.rows import Row

FULL_SCALE = 32768  # of a 16-bit sample
PAUSE_SECONDS = 0.2  # the length of the quietest window, in which long audio is split


def find_audio_fault(row: Row) -> Fault | None:
    """Return the fault of a row's `audio`, or None; only the file's header is read."""
    value = row.fields.get("audio")
    if isinstance(value, dict) and value.get("array") is not None:
        return _find_array_fault(row, value)
    file = resolve_media_file(value, row.folder)
    if file is not None and not file.is_file():
        return Fault(
            row.location, f"audio file not found: {file}", "correct `audio`, or add the file"
        )
    content = file or _get_bytes(value)
    if content is None:
        return _no_audio_fault(row, value)
    soundfile = _import_soundfile()
    try:
        frames = soundfile.info(
            content if isinstance(content, Path) else io.BytesIO(content)
        ).frames
    except soundfile.LibsndfileError as error:
        return _decode_fault(row, error)
    return None if frames else Fault(row.location, "`audio` has no samples", "remove the row")


def load_audio(row: Row, *, sampling_rate: int) -> np.ndarray:
    """Return the samples (T,) int16 of a valid row at a sampling rate (Hz); channels are averaged.
    A row with `offset` and `duration` (seconds, as in NeMo manifests) is that part of its file.

    Raises MediaDecodeError if the audio cannot be decoded to its end, or if a sample is not finite.
    """
    import numpy as np

    samples_TC, original_rate = _decode(row)
    if not np.isfinite(samples_TC).all():
        raise MediaDecodeError(
            Fault(
                row.location,
                "`audio` has samples that are not finite (NaN or infinite)",
                "replace them, or remove the row",
            )
        )
    mono = samples_TC.mean(axis=1) if samples_TC.shape[1] > 1 else samples_TC[:, 0]
    if original_rate != sampling_rate:
        import soxr

        mono = soxr.resample(mono, original_rate, sampling_rate)
    scaled = np.rint(mono * FULL_SCALE)
    return np.clip(scaled, -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


def split_audio(
    row: Row, *, sampling_rate: int, max_seconds: float, min_seconds: float
) -> list[Row]:
    """Split a row into consecutive rows of at most `max_seconds` each, without overlap; each is at
    least `min_seconds` long, unless it is the only one. Audio is split at the quietest point in the
    last third of a piece, so that few words are cut."""
    samples_T = load_audio(row, sampling_rate=sampling_rate)
    longest, shortest = int(max_seconds * sampling_rate), round(min_seconds * sampling_rate)
    cuts = [0]
    while len(samples_T) - cuts[-1] > longest:
        start, end = cuts[-1] + longest * 2 // 3, cuts[-1] + longest
        end = max(start + 1, min(end, len(samples_T) - shortest))
        cuts.append(
            start + _find_quietest_sample(samples_T[start:end], sampling_rate=sampling_rate)
        )
    bounds = zip(cuts, [*cuts[1:], len(samples_T)], strict=True)
    pieces = [
        {"array": to_float32(samples_T[start:end]), "sampling_rate": sampling_rate}
        for start, end in bounds
    ]
    return [replace(row, fields={**row.fields, "audio": piece}) for piece in pieces]


def _find_quietest_sample(samples_T: np.ndarray, *, sampling_rate: int) -> int:
    """Return the middle of the window with the least energy."""
    import numpy as np

    width = min(len(samples_T), max(1, int(PAUSE_SECONDS * sampling_rate)))
    energy = np.concatenate([[0], np.cumsum(samples_T.astype(np.int64) ** 2)])
    return int((energy[width:] - energy[:-width]).argmin()) + width // 2


def read_sampling_rate(row: Row) -> int:
    """Return the sampling rate (Hz) of a valid row, from the file's header."""
    value: Any = row.fields["audio"]
    if isinstance(value, dict) and value.get("array") is not None:
        return int(value["sampling_rate"])
    content = resolve_media_file(value, row.folder) or io.BytesIO(_get_bytes(value) or b"")
    return int(_import_soundfile().info(content).samplerate)


def to_float32(samples_T: np.ndarray) -> np.ndarray:
    """Return 16-bit samples (T,) as fractions of full scale, float32."""
    import numpy as np

    return samples_T.astype(np.float32) / FULL_SCALE


def _decode(row: Row) -> tuple[np.ndarray, int]:
    """Return the samples (T, C) float32 and the sampling rate (Hz) of a row."""
    import numpy as np

    value: Any = row.fields["audio"]
    if isinstance(value, dict) and value.get("array") is not None:
        try:
            with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite
                array = np.asarray(value["array"], dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise MediaDecodeError(_decode_fault(row, error)) from None
        return (array[:, None] if array.ndim == 1 else array), int(value["sampling_rate"])
    content = resolve_media_file(value, row.folder) or io.BytesIO(_get_bytes(value) or b"")
    soundfile = _import_soundfile()
    try:
        with soundfile.SoundFile(content) as file:
            offset, duration = (
                _parse_seconds(row.fields.get(name)) for name in ("offset", "duration")
            )
            frames = -1
            if offset is not None:
                file.seek(min(round(offset * file.samplerate), file.frames))
                frames = -1 if duration is None else round(duration * file.samplerate)
            return file.read(frames, dtype="float32", always_2d=True), file.samplerate
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise MediaDecodeError(_decode_fault(row, error)) from None


def _parse_seconds(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None


def _get_bytes(value: Any) -> bytes | None:
    if isinstance(value, dict):
        value = value.get("bytes")
    return value if isinstance(value, bytes) else None


def _find_array_fault(row: Row, value: dict[str, Any]) -> Fault | None:
    if not isinstance(value.get("sampling_rate"), int):
        return Fault(row.location, "`audio` has an array, but no sampling_rate", "add it, in Hz")
    return (
        None if len(value["array"]) else Fault(row.location, "`audio` is empty", "remove the row")
    )


def _no_audio_fault(row: Row, value: Any) -> Fault:
    columns = ", ".join(map(repr, row.fields)) or "nothing"
    return Fault(
        row.location,
        f"the column `audio` is missing (the row has {columns})"
        if value is None
        else f"`audio` is {type(value).__name__} (expected a file name or audio data)",
        "set it to a file, or map its column in data.columns: {audio: ...}",
    )


def _decode_fault(row: Row, error: Exception) -> Fault:
    reason = str(error).rpartition(": ")[2].rstrip(".")
    return Fault(
        row.location,
        f"`audio` cannot be decoded ({reason})",
        "convert it to WAV, FLAC, OGG or MP3, such as with `ffmpeg -i IN OUT.flac`",
    )


def _import_soundfile() -> Any:
    try:
        import soundfile
        import soxr  # noqa: F401  checked here, and not only at the first file to resample
    except ImportError as error:
        raise DtlError.of(
            "task",
            f"audio needs the package {error.name}, which is not installed",
            "pip install 'dtl[speech]'",
        ) from None
    return soundfile
