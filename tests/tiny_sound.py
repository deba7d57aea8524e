"""Tiny models that hear, with their feature extractors, and tones whose pitch tells the label."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

RATE = 16_000
PITCHES = {"deep": 200.0, "high": 2400.0, "middle": 700.0}  # hertz
CONVOLUTIONS = {
    "conv_dim": (16, 16),
    "conv_kernel": (10, 8),
    "conv_stride": (20, 16),
    "num_feat_extract_layers": 2,
}
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "mask_time_prob": 0.0,
    **dict.fromkeys(
        (
            *("hidden_dropout", "attention_dropout", "activation_dropout"),
            *("feat_proj_dropout", "final_dropout"),
        ),
        0.0,
    ),
}


def wav2vec2(folder: Path, *, norm: str = "layer", seed: int = 7) -> Path:
    """20 ms a frame; with `norm` layer it gets a padding mask, with `group` none."""
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    torch.manual_seed(seed)
    config = Wav2Vec2Config(
        **SMALL, **CONVOLUTIONS, feat_extract_norm=norm, classifier_proj_size=32
    )
    Wav2Vec2Model(config).save_pretrained(folder)
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer")
    extractor.save_pretrained(folder)
    return folder


def spectrogram(folder: Path, *, seed: int = 7) -> Path:
    """A transformer over spectrograms of a fixed length."""
    import torch
    from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

    torch.manual_seed(seed)
    config = ASTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_length=64,
        num_mel_bins=32,
    )
    ASTModel(config).save_pretrained(folder)
    ASTFeatureExtractor(max_length=64, num_mel_bins=32).save_pretrained(folder)
    return folder


def tone(label: str, *, seed: int, rate: int = RATE, channels: int = 1) -> np.ndarray:
    """A noisy tone (T, channels) of 0.3 to 0.6 s."""
    draw = np.random.default_rng(seed)
    time_T = np.arange(int(rate * draw.uniform(0.3, 0.6))) / rate
    pitch = PITCHES[label] * draw.uniform(0.95, 1.05)
    sound_T = 0.4 * np.sin(2 * np.pi * pitch * time_T) + 0.02 * draw.standard_normal(len(time_T))
    return np.repeat(sound_T[:, None], channels, axis=1)


def wav(sound: np.ndarray, *, rate: int = RATE, kind: str = "WAV", **how: Any) -> bytes:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, sound, rate, format=kind, **how)
    return file.getvalue()


def tones(count: int, *, seed: int = 1) -> list[dict[str, Any]]:
    """Rows of sounds as bytes, each with its label; the last one is the longest."""
    labels = sorted(PITCHES)
    made = [(labels[n % 3], tone(labels[n % 3], seed=seed * 1000 + n)) for n in range(count)]
    label, last = made[-1]
    longest = max(len(sound) for _, sound in made)
    made[-1] = label, np.resize(last, (longest + RATE // 4, 1))
    return [{"audio": wav(sound), "label": label} for label, sound in made]


def write_folder(folder: Path, count: int, *, seed: int = 1) -> Path:
    """A folder a class."""
    for number, row in enumerate(tones(count, seed=seed)):
        kind = folder / row["label"]
        kind.mkdir(parents=True, exist_ok=True)
        (kind / f"{number:03}.wav").write_bytes(row["audio"])
    return folder
