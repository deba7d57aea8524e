"""`dtl predict` on audio files and images as users have them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from dtl import api
from dtl.cli.app import main
from dtl.config.load import load_config
from dtl.data.modalities.audio import load_audio, split_audio
from dtl.data.sources.rows import Row
from dtl.run.folder import RunFolder
from tests import tiny_sound, tiny_speech, tiny_vision

QUIET = np.zeros(8_000)
CHUNKS = ("chunk-0", "chunk-1")  # of a recording of 24 s; asr_ctc reads at most 20 s


def train(
    folder: Path, base: Path, task: str, rows: list[dict[str, Any]], **more: str
) -> RunFolder:
    """Train a few steps on rows with the bytes of media."""
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    (folder / "config.yaml").write_text(
        f"run: {{dir: {folder}, name: run}}\nmodel: {{path: {base}, dtype: fp32}}\n"
        f"task: {task}\nstrategy: {more.get('strategy', 'full')}\n"
        f"data: {{train: {folder / 'rows.parquet'}}}\noptim: {{learning_rate: 0.01}}\n"
        f"train: {{steps: {more.get('steps', '12')}, global_batch: 12}}\n"
        "layout: {processes_per_node: 1, zero_stage: 0}\n"
    )
    outcome = api.train(load_config(folder / "config.yaml"), print_line=lambda _: None)
    assert outcome.exit_code == 0
    return outcome.run


def test_png_with_alpha_channel_and_rows_are_predicted(resnet, tmp_path, cache, capsys):
    run = train(tmp_path, resnet, "image_classification", tiny_vision.pictures(24))
    pixels = np.concatenate(
        [
            tiny_vision.pixels("green", seed=5),
            np.full((*tiny_vision.pixels("green", seed=5).shape[:2], 1), 255, np.uint8),
        ],
        axis=2,
    )
    file = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(file, format="PNG")
    (tmp_path / "green.png").write_bytes(file.getvalue())
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"image": "green.png", "id": 7}\n' * 3)
    predictions = list(api.predict(run.path, [tmp_path / "green.png", rows], batch=2))
    assert [row["predicted"] for row in predictions] == ["green"] * 4
    assert sum(predictions[0]["probabilities"].values()) == pytest.approx(1.0)
    assert [row.get("id") for row in predictions] == [None, 7, 7, 7]
    assert main(["predict", str(run.path), str(tmp_path / "gone.png")]) == 2
    assert "gone.png: no such file" in capsys.readouterr().err


def test_stereo_wav_at_44100_hertz_is_predicted(wav2vec2, tmp_path, cache):
    run = train(tmp_path, wav2vec2, "audio_classification", tiny_sound.tones(24), steps="30")
    audio = tiny_sound.tone("high", seed=77, rate=44_100, channels=2)
    (tmp_path / "high.wav").write_bytes(tiny_sound.wav(audio, rate=44_100))
    (only,) = api.predict(run.export, [tmp_path / "high.wav"])
    assert only["predicted"] == "high" and only["audio"] == "high.wav"


@pytest.mark.parametrize("strategy", ["full", "{name: lora, rank: 4}"])
def test_exported_ctc_model_transcribes_files_and_rows_alike(wav2vec2, tmp_path, cache, strategy):
    """A model and an adapter; also 44.1 kHz in stereo, and a recording longer than a chunk."""
    rows = tiny_speech.transcribed(8)
    run = train(tmp_path, wav2vec2, "asr_ctc", rows, strategy=strategy, steps="3")
    names = []
    for number, row in enumerate(rows[:3]):
        (tmp_path / f"{number}.wav").write_bytes(row["audio"])
        names.append(tmp_path / f"{number}.wav")
    predictions = list(api.predict(run.path, [*names, tmp_path / "rows.parquet"]))
    assert len(predictions) == 11
    assert [row["predicted"] for row in predictions[:3]] == [
        row["predicted"] for row in predictions[3:6]
    ]
    assert all(isinstance(row["predicted"], str) for row in predictions)
    assert json.loads(json.dumps(predictions)) == predictions
    wide = tiny_sound.wav(tiny_speech.spoken("tea", rate=44_100).repeat(2, axis=1), rate=44_100)
    (tmp_path / "wide.wav").write_bytes(wide)
    (only,) = api.predict(run.path, [tmp_path / "wide.wav"])
    assert isinstance(only["predicted"], str)
    segments = [part for row in rows for part in (tiny_speech.spoken(row["text"])[:, 0], QUIET)]
    audio = np.resize(np.concatenate(segments), 24 * 16_000)
    (tmp_path / "long.wav").write_bytes(tiny_sound.wav(audio, rate=16_000))
    long = Row(0, "long", {"audio": "long.wav"}, tmp_path)
    for number, chunk in enumerate(
        split_audio(long, sampling_rate=16_000, max_seconds=20, min_seconds=0.1)
    ):
        file = tmp_path / f"chunk-{number}.wav"
        soundfile.write(file, load_audio(chunk, sampling_rate=16_000), 16_000)
    rows_of_files = api.predict(run.path, [tmp_path / f"{name}.wav" for name in ("long", *CHUNKS)])
    joined, *parts = (row["predicted"] for row in rows_of_files)
    assert joined == " ".join(filter(None, parts))
