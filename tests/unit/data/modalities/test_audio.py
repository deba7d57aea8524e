"""Audio of any format becomes samples at the model's sampling rate, or a fault."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from dtl.config.schema import Source
from dtl.core.errors import DtlError
from dtl.data.modalities.audio import find_audio_fault, load_audio, split_audio, to_float32
from dtl.data.modalities.media_files import MediaDecodeError
from dtl.data.row_formats.base import RowInput
from dtl.data.sources.rows import Row, open_rows
from tests import tiny_sound

RATE = tiny_sound.RATE


def row(value: Any, *, folder: Path = Path(), **fields: Any) -> Row:
    return Row(0, "rows:1", {"audio": value, **fields}, folder)


def stored(audio: np.ndarray) -> np.ndarray:
    """Return audio as a 16-bit file has it."""
    return np.rint(audio[:, 0] * 32767).astype(np.int16)


def test_16_bit_samples_at_the_model_rate_are_bit_equal(tmp_path):
    samples = np.random.default_rng(0).integers(-32768, 32767, 4000).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", samples, RATE)
    samples_T = load_audio(row("a.wav", folder=tmp_path), sampling_rate=RATE)
    assert samples_T.dtype == np.int16 and np.array_equal(samples_T, samples)
    assert np.array_equal(
        to_float32(samples_T), soundfile.read(tmp_path / "a.wav", dtype="float32")[0]
    )


@pytest.mark.parametrize(
    ("kind", "how"),
    [("WAV", {}), ("WAV", {"subtype": "FLOAT"}), ("FLAC", {}), ("OGG", {}), ("MP3", {})],
    ids=lambda value: str(value),
)
def test_every_format_decodes_to_the_same_tone(kind, how):
    audio = tiny_sound.tone("middle", seed=3)
    samples_T = load_audio(row(tiny_sound.wav(audio, kind=kind, **how)), sampling_rate=RATE)
    assert abs(len(samples_T) - len(audio)) <= 1200  # MP3 pads
    spectrum = np.abs(np.fft.rfft(samples_T * np.hanning(len(samples_T))))
    pitch = np.argmax(spectrum) * RATE / len(samples_T)
    assert pitch == pytest.approx(tiny_sound.PITCHES["middle"], rel=0.06)


def test_channels_are_averaged_and_resampled():
    rate = 44_100
    audio = tiny_sound.tone("middle", seed=3, rate=rate, channels=2)
    audio[:, 1] = 0
    samples_T = load_audio(row(tiny_sound.wav(audio, rate=rate)), sampling_rate=RATE)
    assert len(samples_T) == pytest.approx(len(audio) * RATE / rate, abs=1)
    import soxr

    theirs = soxr.resample(stored(audio).astype(np.float32) / 32768 / 2, rate, RATE)
    assert np.abs(to_float32(samples_T) - theirs).max() < 2 / 32768


def test_arrays_and_bytes_are_decoded():
    audio = tiny_sound.tone("high", seed=2)
    array = {"array": audio[:, 0].tolist(), "sampling_rate": RATE}
    samples_T = load_audio(row(array), sampling_rate=RATE)
    assert np.abs(to_float32(samples_T) - audio[:, 0]).max() <= 0.5 / 32768 + 1e-7
    record = {"bytes": tiny_sound.wav(audio), "path": "gone.wav"}
    assert (
        np.abs(load_audio(row(record), sampling_rate=RATE).astype(int) - stored(audio)).max() <= 1
    )


@pytest.mark.parametrize("seconds", [3.0, 9.05, 20.0])
def test_long_audio_is_split_in_pauses_and_complete(seconds):
    """Noise with 0.3 s of silence at the end of each second, in pieces of 3 s at most."""
    rate = 1000
    noise = np.random.default_rng(0).normal(0, 0.2, round(seconds * rate)).astype(np.float32)
    noise[np.arange(len(noise)) % rate >= 700] = 0
    full = row({"array": noise, "sampling_rate": rate}, text="a", id=3)
    pieces = split_audio(full, sampling_rate=rate, max_seconds=3.0, min_seconds=0.1)
    samples_T = [load_audio(piece, sampling_rate=rate) for piece in pieces]
    assert np.array_equal(np.concatenate(samples_T), load_audio(full, sampling_rate=rate))
    assert all(100 <= len(piece) <= 3000 for piece in samples_T)
    assert (len(samples_T) == 1) == (seconds == 3.0)
    for end in np.cumsum([len(piece) for piece in samples_T])[:-1]:
        assert not noise[end - 90 : end + 90].any(), end
    assert all(piece.fields["text"] == "a" and piece.fields["id"] == 3 for piece in pieces)


def test_offset_and_duration_select_a_segment(tmp_path):
    samples = np.arange(RATE, dtype=np.int16)
    soundfile.write(tmp_path / "a.wav", samples, RATE)
    part = row("a.wav", folder=tmp_path, offset=0.25, duration="0.5")
    assert np.array_equal(load_audio(part, sampling_rate=RATE), samples[4000:12000])
    full = row("a.wav", folder=tmp_path, duration=0.5)  # without an offset, the length of the file
    assert len(load_audio(full, sampling_rate=RATE)) == RATE


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "the column `audio` is missing"),
        (3.5, "`audio` is float"),
        ("nowhere.wav", "audio file not found"),
        (b"no audio", "cannot be decoded"),
        (tiny_sound.wav(np.zeros((0, 1))), "no samples"),
        ({"array": [0.0]}, "no sampling_rate"),
        ({"array": [], "sampling_rate": 8000}, "is empty"),
    ],
)
def test_invalid_audio_has_a_fault(value, message, tmp_path):
    fault = find_audio_fault(row(value, folder=tmp_path))
    assert fault is not None and fault.location == "rows:1" and message in fault.problem


def test_truncated_file_raises_with_its_row():
    torn = tiny_sound.wav(tiny_sound.tone("high", seed=2), kind="FLAC")
    torn = torn[: len(torn) // 2] + bytes(len(torn) // 2)
    assert find_audio_fault(row(torn)) is None, "its header is valid"
    with pytest.raises(DtlError, match=r"rows:1: `audio` cannot be decoded"):
        load_audio(row(torn), sampling_rate=RATE)


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(DtlError, match=r"soundfile, which is not installed.*dtl\[speech\]"):
        find_audio_fault(row(b"RIFF"))


# Folders in common layouts -----------------------------------------------------------------


def read_folder(folder: Path, split: str | None = None) -> list[Row]:
    source = Source(path=str(folder), split=split)
    return list(open_rows(source, {}, check=find_audio_fault, reads=RowInput(media="audio")))


def write(path: Path, *, seed: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = path.suffix[1:].upper()
    path.write_bytes(tiny_sound.wav(tiny_sound.tone("deep", seed=seed), kind=kind))


def test_librispeech_folder_is_read(tmp_path):
    for name in ("84-121123-0000", "84-121123-0001"):
        write(tmp_path / "dev" / "84" / "121123" / f"{name}.flac")
    text = "84-121123-0000 GO DO YOU HEAR\n84-121123-0001 BUT IN LESS THAN FIVE MINUTES\n"
    (tmp_path / "dev" / "84" / "121123" / "84-121123.trans.txt").write_text(text)
    first, second = read_folder(tmp_path, "dev")
    assert first.fields["text"] == "GO DO YOU HEAR" and first.fields["speaker"] == "84"
    assert second.location.endswith("84-121123.trans.txt:2")
    assert len(load_audio(second, sampling_rate=RATE)) > 4000


def test_common_voice_folder_is_read(tmp_path):
    write(tmp_path / "clips" / "a.mp3")
    table = "client_id\tpath\tsentence\taccents\nx\ta.mp3\tHello there.\tScottish\n"
    (tmp_path / "train.tsv").write_text(table)
    (only,) = read_folder(tmp_path, "train")
    assert only.fields["text"] == "Hello there." and only.fields["accents"] == "Scottish"
    assert len(load_audio(only, sampling_rate=RATE)) > 4000


def test_nemo_manifest_is_read(tmp_path):
    write(tmp_path / "wavs" / "a.wav")
    line = '{"audio_filepath": "wavs/a.wav", "text": "hello", "duration": 0.4}\n'
    (tmp_path / "manifest.json").write_text(line)
    (only,) = read_folder(tmp_path / "manifest.json")
    assert only.fields["audio"] == "wavs/a.wav" and only.fields["text"] == "hello"


def test_metadata_file_and_class_folders_are_read(tmp_path):
    write(tmp_path / "one" / "train" / "a.ogg")
    (tmp_path / "one" / "train" / "metadata.jsonl").write_text(
        '{"file_name": "a.ogg", "text": "x"}\n'
    )
    (only,) = read_folder(tmp_path / "one", "train")
    assert only.fields == {"audio": "a.ogg", "text": "x"}
    tiny_sound.write_folder(tmp_path / "classes", 6)
    labels = [one.fields["label"] for one in read_folder(tmp_path / "classes")]
    assert labels == ["deep"] * 2 + ["high"] * 2 + ["middle"] * 2


def test_missing_audio_file_has_its_line(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"audio": "gone.wav", "text": "x"}\n')
    with pytest.raises(DtlError, match=r"rows.jsonl:1: audio file not found: .*gone.wav"):
        read_folder(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
@pytest.mark.parametrize("kind", ["array", "file"])
def test_a_sample_that_is_not_finite_is_a_fault_of_the_row(tmp_path, value, kind):
    samples = np.zeros(160)
    samples[7] = value
    audio = {"array": samples.tolist(), "sampling_rate": 16000}
    if kind == "file":
        with np.errstate(over="ignore"):
            soundfile.write(tmp_path / "a.wav", samples.astype(np.float32), 16000, subtype="FLOAT")
        audio = str(tmp_path / "a.wav")
    row = Row(0, "rows:1", {"audio": audio}, tmp_path)
    assert find_audio_fault(row) is None  # only the header is read
    with pytest.raises(MediaDecodeError, match=r"rows:1: `audio` has samples that are not finite"):
        load_audio(row, sampling_rate=16000)


@pytest.mark.parametrize("array", [["a"], [[0.1], [0.1, 0.2]], [{}]])
def test_an_array_that_is_not_of_numbers_is_a_fault_of_the_row(tmp_path, array):
    row = Row(0, "rows:1", {"audio": {"array": array, "sampling_rate": 16000}}, tmp_path)
    with pytest.raises(MediaDecodeError, match="`audio` cannot be decoded"):
        load_audio(row, sampling_rate=16000)
