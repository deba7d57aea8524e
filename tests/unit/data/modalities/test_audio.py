"""Sounds of any kind become samples at the model's rate, or one clear sentence."""

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
from dtl.data.sources.rows import Row, open_rows
from tests import tiny_sound

RATE = tiny_sound.RATE


def row(value: Any, *, folder: Path = Path(), **fields: Any) -> Row:
    return Row(0, "rows:1", {"audio": value, **fields}, folder)


def stored(sound: np.ndarray) -> np.ndarray:
    """As a file of 16 bits holds it."""
    return np.rint(sound[:, 0] * 32767).astype(np.int16)


def test_sixteen_bit_samples_at_the_models_rate_are_kept_to_the_bit(tmp_path):
    samples = np.random.default_rng(0).integers(-32768, 32767, 4000).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", samples, RATE)
    found = load_audio(row("a.wav", folder=tmp_path), rate=RATE)
    assert found.dtype == np.int16 and np.array_equal(found, samples)
    assert np.array_equal(to_float32(found), soundfile.read(tmp_path / "a.wav", dtype="float32")[0])


@pytest.mark.parametrize(
    ("kind", "how"),
    [("WAV", {}), ("WAV", {"subtype": "FLOAT"}), ("FLAC", {}), ("OGG", {}), ("MP3", {})],
    ids=lambda value: str(value),
)
def test_every_kind_of_file_holds_the_same_tone(kind, how):
    sound = tiny_sound.tone("middle", seed=3)
    found = load_audio(row(tiny_sound.wav(sound, kind=kind, **how)), rate=RATE)
    assert abs(len(found) - len(sound)) <= 1200  # MP3 pads
    spectrum = np.abs(np.fft.rfft(found * np.hanning(len(found))))
    pitch = np.argmax(spectrum) * RATE / len(found)
    assert pitch == pytest.approx(tiny_sound.PITCHES["middle"], rel=0.06)


def test_channels_are_averaged_and_the_rate_becomes_the_models():
    rate = 44_100
    sound = tiny_sound.tone("middle", seed=3, rate=rate, channels=2)
    sound[:, 1] = 0
    found = load_audio(row(tiny_sound.wav(sound, rate=rate)), rate=RATE)
    assert len(found) == pytest.approx(len(sound) * RATE / rate, abs=1)
    import soxr

    theirs = soxr.resample(stored(sound).astype(np.float32) / 32768 / 2, rate, RATE)
    assert np.abs(to_float32(found) - theirs).max() < 2 / 32768


def test_arrays_with_their_rate_and_bytes_in_a_record():
    sound = tiny_sound.tone("high", seed=2)
    array = {"array": sound[:, 0].tolist(), "sampling_rate": RATE}
    found = load_audio(row(array), rate=RATE)
    assert np.abs(to_float32(found) - sound[:, 0]).max() <= 0.5 / 32768 + 1e-7
    record = {"bytes": tiny_sound.wav(sound), "path": "gone.wav"}
    assert np.abs(load_audio(row(record), rate=RATE).astype(int) - stored(sound)).max() <= 1


@pytest.mark.parametrize("seconds", [3.0, 9.05, 20.0])
def test_a_long_sound_is_cut_in_its_pauses_and_nothing_is_lost(seconds):
    """Noise with 0.3 s of silence at the end of each second, in pieces of 3 s at most."""
    rate = 1000
    noise = np.random.default_rng(0).normal(0, 0.2, round(seconds * rate)).astype(np.float32)
    noise[np.arange(len(noise)) % rate >= 700] = 0
    whole = row({"array": noise, "sampling_rate": rate}, text="a", id=3)
    pieces = split_audio(whole, rate=rate, longest=3.0, shortest=0.1)
    found = [load_audio(piece, rate=rate) for piece in pieces]
    assert np.array_equal(np.concatenate(found), load_audio(whole, rate=rate))
    assert all(100 <= len(piece) <= 3000 for piece in found)
    assert (len(found) == 1) == (seconds == 3.0)
    for end in np.cumsum([len(piece) for piece in found])[:-1]:
        assert not noise[end - 90 : end + 90].any(), end
    assert all(piece.fields["text"] == "a" and piece.fields["id"] == 3 for piece in pieces)


def test_a_part_of_a_file(tmp_path):
    samples = np.arange(RATE, dtype=np.int16)
    soundfile.write(tmp_path / "a.wav", samples, RATE)
    part = row("a.wav", folder=tmp_path, offset=0.25, duration="0.5")
    assert np.array_equal(load_audio(part, rate=RATE), samples[4000:12000])
    whole = row("a.wav", folder=tmp_path, duration=0.5)  # tells how long the file is, and no more
    assert len(load_audio(whole, rate=RATE)) == RATE


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "there is no `audio`"),
        (3.5, "`audio` is float"),
        ("nowhere.wav", "there is no file"),
        (b"no sound", "cannot be decoded"),
        (tiny_sound.wav(np.zeros((0, 1))), "no samples"),
        ({"array": [0.0]}, "no sampling_rate"),
        ({"array": [], "sampling_rate": 8000}, "is empty"),
    ],
)
def test_a_row_at_fault_is_told_at_the_desk(value, said, tmp_path):
    fault = find_audio_fault(row(value, folder=tmp_path))
    assert fault is not None and fault.location == "rows:1" and said in fault.problem


def test_a_torn_file_is_told_with_its_row():
    torn = tiny_sound.wav(tiny_sound.tone("high", seed=2), kind="FLAC")
    torn = torn[: len(torn) // 2] + bytes(len(torn) // 2)
    assert find_audio_fault(row(torn)) is None, "its header is whole"
    with pytest.raises(DtlError, match=r"rows:1: `audio` cannot be decoded"):
        load_audio(row(torn), rate=RATE)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(DtlError, match=r"soundfile, which is not installed.*dtl\[speech\]"):
        find_audio_fault(row(b"RIFF"))


# Folders as others lay them out -----------------------------------------------------------------


def opened(folder: Path, split: str | None = None) -> list[Row]:
    source = Source(path=str(folder), split=split)
    return list(open_rows(source, {}, check=find_audio_fault, media="audio"))


def write(path: Path, *, seed: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = path.suffix[1:].upper()
    path.write_bytes(tiny_sound.wav(tiny_sound.tone("deep", seed=seed), kind=kind))


def test_a_tree_as_librispeech_has_it(tmp_path):
    for name in ("84-121123-0000", "84-121123-0001"):
        write(tmp_path / "dev" / "84" / "121123" / f"{name}.flac")
    text = "84-121123-0000 GO DO YOU HEAR\n84-121123-0001 BUT IN LESS THAN FIVE MINUTES\n"
    (tmp_path / "dev" / "84" / "121123" / "84-121123.trans.txt").write_text(text)
    first, second = opened(tmp_path, "dev")
    assert first.fields["text"] == "GO DO YOU HEAR" and first.fields["speaker"] == "84"
    assert second.location.endswith("84-121123.trans.txt:2")
    assert len(load_audio(second, rate=RATE)) > 4000


def test_a_folder_as_common_voice_has_it(tmp_path):
    write(tmp_path / "clips" / "a.mp3")
    table = "client_id\tpath\tsentence\taccents\nx\ta.mp3\tHello there.\tScottish\n"
    (tmp_path / "train.tsv").write_text(table)
    (only,) = opened(tmp_path, "train")
    assert only.fields["text"] == "Hello there." and only.fields["accents"] == "Scottish"
    assert len(load_audio(only, rate=RATE)) > 4000


def test_a_manifest_as_nemo_writes_it(tmp_path):
    write(tmp_path / "wavs" / "a.wav")
    line = '{"audio_filepath": "wavs/a.wav", "text": "hello", "duration": 0.4}\n'
    (tmp_path / "manifest.json").write_text(line)
    (only,) = opened(tmp_path / "manifest.json")
    assert only.fields["audio"] == "wavs/a.wav" and only.fields["text"] == "hello"


def test_a_folder_with_a_metadata_file_and_a_folder_a_class(tmp_path):
    write(tmp_path / "one" / "train" / "a.ogg")
    (tmp_path / "one" / "train" / "metadata.jsonl").write_text(
        '{"file_name": "a.ogg", "text": "x"}\n'
    )
    (only,) = opened(tmp_path / "one", "train")
    assert only.fields == {"audio": "a.ogg", "text": "x"}
    tiny_sound.write_folder(tmp_path / "classes", 6)
    labels = [one.fields["label"] for one in opened(tmp_path / "classes")]
    assert labels == ["deep"] * 2 + ["high"] * 2 + ["middle"] * 2


def test_a_missing_file_is_told_with_its_line(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"audio": "gone.wav", "text": "x"}\n')
    with pytest.raises(DtlError, match=r"rows.jsonl:1: there is no file .*gone.wav"):
        opened(tmp_path / "rows.jsonl")
