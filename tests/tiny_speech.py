"""Tiny models for spoken characters: each character is a tone of its own."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from tests import tiny_sound
from tests.tiny_sound import CONVOLUTIONS, RATE, SMALL

CHARACTERS = "aeimnost"
PITCHES = {letter: 300.0 * 1.28**place for place, letter in enumerate(CHARACTERS)}  # hertz
SECONDS = 0.12  # of a letter


def spoken(text: str, *, seconds: float = SECONDS, rate: int = RATE) -> np.ndarray:
    """Samples (T, 1): a tone a letter with a short silence after it, and silence for a blank."""
    time_T = np.arange(int(rate * seconds)) / rate
    gap_T = np.zeros(int(rate * seconds / 3))
    parts = [
        part
        for letter in text
        for part in (
            0.4 * np.sin(2 * np.pi * PITCHES[letter] * time_T)
            if letter in PITCHES
            else np.zeros_like(time_T),
            gap_T,
        )
    ]
    noise_T = np.random.default_rng(len(text)).standard_normal(sum(map(len, parts)))
    return (np.concatenate(parts) + 0.01 * noise_T)[:, None]


def row(text: str, **how: Any) -> dict[str, Any]:
    return {"audio": tiny_sound.wav(spoken(text, **how)), "text": text}


def transcribed(count: int, *, seed: int = 1, longest: int = 3) -> list[dict[str, Any]]:
    """Rows of one to three words; the last one is the longest."""
    draw = random.Random(seed)
    words = ["tea", "net", "moon", "sea", "mat", "no", "in", "as"]
    texts = [" ".join(draw.choices(words, k=draw.randint(1, longest))) for _ in range(count - 1)]
    return [row(text) for text in [*texts, "seamen sat on mats in moss"]]


def hubert(folder: Path, *, norm: str = "group", seed: int = 7) -> Path:
    """It gets a padding mask with `norm` layer only."""
    import torch
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

    torch.manual_seed(seed)
    config = HubertConfig(**SMALL, **CONVOLUTIONS, feat_extract_norm=norm)
    HubertModel(config).save_pretrained(folder)
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer")
    extractor.save_pretrained(folder)
    return folder


def wav2vec2_bert(folder: Path, *, adapter: bool = False, seed: int = 7) -> Path:
    """It reads log-mel features, two 10 ms frames at once."""
    import torch
    from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2BertConfig, Wav2Vec2BertModel

    torch.manual_seed(seed)
    config = Wav2Vec2BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        feature_projection_input_dim=160,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        conformer_conv_dropout=0.0,
        final_dropout=0.0,
        mask_time_prob=0.0,
        conv_depthwise_kernel_size=7,
        add_adapter=adapter,
        output_hidden_size=32,
        vocab_size=32,
    )
    Wav2Vec2BertModel(config).save_pretrained(folder)
    SeamlessM4TFeatureExtractor().save_pretrained(folder)
    return folder


def writing(
    folder: Path, vocabulary: dict[str, Any], *, language: str | None = None, seed: int = 7
) -> Path:
    """A wav2vec2 with a head and characters of its own; with a language it has adapters, as MMS."""
    import torch
    from safetensors.torch import save_file
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
    )

    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    tokenizer = Wav2Vec2CTCTokenizer(
        str(folder / "vocab.json"), target_lang=language, bos_token=None, eos_token=None
    )
    config = Wav2Vec2Config(
        **SMALL,
        **CONVOLUTIONS,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        adapter_attn_dim=4 if language else None,
        vocab_size=tokenizer.vocab_size,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Wav2Vec2ForCTC(config)
    model.save_pretrained(folder)
    for name in vocabulary if language else ():
        model.lm_head = torch.nn.Linear(32, len(vocabulary[name]))
        model.init_adapter_layers()
        given = {key: value.detach().clone() for key, value in model._get_adapters().items()}
        save_file(given, folder / f"adapter.{name}.safetensors")
    tokenizer.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    return folder
