"""Sounds of any kind as 16-bit samples of one channel at the rate that a model hears."""

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
PAUSE_SECONDS = 0.2  # the length of the quietest place, where a long sound is cut


def find_audio_fault(row: Row) -> Fault | None:
    """What is wrong with a row's `audio`, as its header and its place tell; None: nothing."""
    value = row.fields.get("audio")
    if isinstance(value, dict) and value.get("array") is not None:
        return _find_array_fault(row, value)
    file = resolve_media_file(value, row.folder)
    if file is not None and not file.is_file():
        return Fault(
            row.location, f"there is no file {file}", "correct `audio`, or put the file there"
        )
    opened = file or _get_bytes(value)
    if opened is None:
        return _no_audio_fault(row, value)
    found = _import_soundfile()
    try:
        length = found.info(opened if isinstance(opened, Path) else io.BytesIO(opened)).frames
    except found.LibsndfileError as fault:
        return _decode_fault(row, fault)
    return None if length else Fault(row.location, "`audio` has no samples", "remove the row")


def load_audio(row: Row, *, sampling_rate: int) -> np.ndarray:
    """Samples (T,) int16 of a row that `sound_fault` has passed; channels are averaged. A row with
    `offset` and `duration` (seconds, as NeMo writes them) is that part of its file.

    Raises Undecodable where the sound cannot be decoded to its end.
    """
    import numpy as np

    samples_TC, own_rate = _decode(row)
    mono = samples_TC.mean(axis=1) if samples_TC.shape[1] > 1 else samples_TC[:, 0]
    if own_rate != sampling_rate:
        import soxr

        mono = soxr.resample(mono, own_rate, sampling_rate)
    scaled = np.rint(mono * FULL_SCALE)
    return np.clip(scaled, -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


def split_audio(
    row: Row, *, sampling_rate: int, max_seconds: float, min_seconds: float
) -> list[Row]:
    """The row as rows of no more than so many seconds each, one after another and without overlap;
    none but an only one is shorter than `shortest`. A sound is cut where it is quietest in the last
    third of what may be a piece, so that few words are."""
    samples_T = load_audio(row, sampling_rate=sampling_rate)
    most, rest = int(max_seconds * sampling_rate), round(min_seconds * sampling_rate)
    cuts = [0]
    while len(samples_T) - cuts[-1] > most:
        start, end = cuts[-1] + most * 2 // 3, cuts[-1] + most
        end = max(start + 1, min(end, len(samples_T) - rest))
        cuts.append(
            start + _find_quietest_sample(samples_T[start:end], sampling_rate=sampling_rate)
        )
    bounds = zip(cuts, [*cuts[1:], len(samples_T)], strict=True)
    sounds = [
        {"array": to_float32(samples_T[start:end]), "sampling_rate": sampling_rate}
        for start, end in bounds
    ]
    return [replace(row, fields={**row.fields, "audio": sound}) for sound in sounds]


def _find_quietest_sample(samples_T: np.ndarray, *, sampling_rate: int) -> int:
    """The middle of the pause with the least energy."""
    import numpy as np

    width = min(len(samples_T), max(1, int(PAUSE_SECONDS * sampling_rate)))
    energy = np.concatenate([[0], np.cumsum(samples_T.astype(np.int64) ** 2)])
    return int((energy[width:] - energy[:-width]).argmin()) + width // 2


def read_sampling_rate(row: Row) -> int:
    """The rate, in hertz, of a row that `sound_fault` has passed, as its header says."""
    value: Any = row.fields["audio"]
    if isinstance(value, dict) and value.get("array") is not None:
        return int(value["sampling_rate"])
    opened = resolve_media_file(value, row.folder) or io.BytesIO(_get_bytes(value) or b"")
    return int(_import_soundfile().info(opened).samplerate)


def to_float32(samples_T: np.ndarray) -> np.ndarray:
    """16-bit samples as fractions of full scale, float32."""
    import numpy as np

    return samples_T.astype(np.float32) / FULL_SCALE


def _decode(row: Row) -> tuple[np.ndarray, int]:
    import numpy as np

    value: Any = row.fields["audio"]
    if isinstance(value, dict) and value.get("array") is not None:
        array = np.asarray(value["array"], dtype=np.float32)
        return (array[:, None] if array.ndim == 1 else array), int(value["sampling_rate"])
    opened = resolve_media_file(value, row.folder) or io.BytesIO(_get_bytes(value) or b"")
    found = _import_soundfile()
    try:
        with found.SoundFile(opened) as sound:
            offset, duration = (
                _parse_seconds(row.fields.get(name)) for name in ("offset", "duration")
            )
            frames = -1
            if offset is not None:
                sound.seek(min(round(offset * sound.samplerate), sound.frames))
                frames = -1 if duration is None else round(duration * sound.samplerate)
            return sound.read(frames, dtype="float32", always_2d=True), sound.samplerate
    except (found.LibsndfileError, RuntimeError) as fault:
        raise MediaDecodeError(_decode_fault(row, fault)) from None


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
        return Fault(row.location, "`audio` has an array, but no sampling_rate", "add it, in hertz")
    return (
        None if len(value["array"]) else Fault(row.location, "`audio` is empty", "remove the row")
    )


def _no_audio_fault(row: Row, value: Any) -> Fault:
    named = ", ".join(map(repr, row.fields)) or "nothing"
    return Fault(
        row.location,
        f"there is no `audio` (the row has {named})"
        if value is None
        else f"`audio` is {type(value).__name__}, neither a file name nor sound",
        "name a file, or map its column in data.columns: {audio: ...}",
    )


def _decode_fault(row: Row, fault: Exception) -> Fault:
    reason = str(fault).rpartition(": ")[2].rstrip(".")
    return Fault(
        row.location,
        f"`audio` cannot be decoded ({reason})",
        "give WAV, FLAC, OGG or MP3: `ffmpeg -i IN OUT.flac` makes one of what it reads",
    )


def _import_soundfile() -> Any:
    try:
        import soundfile
        import soxr  # noqa: F401  found out here, and not at the first file of another rate
    except ImportError as fault:
        raise DtlError.of(
            "task",
            f"sounds are read by {fault.name}, which is not installed",
            "pip install 'dtl[speech]'",
        ) from None
    return soundfile
