"""Tiny models that write what they hear, with their tokenizers, and speech in which each word is a
sound of its own."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from tests import tiny

RATE = 16_000
WORD_SECONDS = 0.1
SECONDS = 2  # that a tiny Whisper hears at once
WORDS = tiny.WORDS[:16]
AFTER_LANGUAGES = ("translate", "transcribe", "startoflm", "startofprev", "nospeech")


def tokenizer(*, times: int = 3) -> Any:
    """Whisper's, with 317 pieces; as in the true ones, the languages' tokens follow the start."""
    from transformers import WhisperTokenizer
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    inner = json.loads(tiny.tokenizer().backend_tokenizer.to_str())["model"]
    pieces = {piece: number - 3 for piece, number in inner["vocab"].items() if number >= 3}
    made = WhisperTokenizer(
        vocab={**pieces, "<|endoftext|>": len(pieces)},
        merges=[tuple(pair) for pair in inner["merges"]],
        pad_token="<|endoftext|>",
    )
    names = ["startoftranscript", *LANGUAGES, *AFTER_LANGUAGES, "notimestamps"]
    made.add_special_tokens({"additional_special_tokens": [f"<|{name}|>" for name in names]})
    made.add_tokens([f"<|{0.02 * step:.2f}|>" for step in range(times)])
    made.set_prefix_tokens()
    return made


def whisper(
    folder: Path, *, english_only: bool = False, width: int = 32, seed: int = 7, **settings: Any
) -> Path:
    """A Whisper of 2 blocks a side that hears 2 seconds, as its authors have saved theirs."""
    import torch
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
    )

    torch.manual_seed(seed)
    made = tokenizer()
    numbers = made.get_vocab()
    start = numbers["<|startoftranscript|>"]
    config = WhisperConfig(
        **{
            "vocab_size": len(made),
            "num_mel_bins": 16,
            "d_model": width,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 2 * width,
            "decoder_ffn_dim": 2 * width,
            "max_source_positions": 50 * SECONDS,
            "max_target_positions": 64,
            "dropout": 0.0,
            "pad_token_id": made.pad_token_id,
            "bos_token_id": made.eos_token_id,
            "eos_token_id": made.eos_token_id,
            "decoder_start_token_id": start,
            **settings,
        }
    )
    model = WhisperForConditionalGeneration(config)
    generation: dict[str, Any] = {
        "bos_token_id": made.eos_token_id,
        "eos_token_id": made.eos_token_id,
        "pad_token_id": made.eos_token_id,
        "decoder_start_token_id": start,
        "no_timestamps_token_id": numbers["<|notimestamps|>"],
        "is_multilingual": not english_only,
        "max_length": 64,
        "return_timestamps": False,
    }
    if not english_only:
        generation["lang_to_id"] = {name: numbers[name] for name in ("<|en|>", "<|de|>", "<|hi|>")}
        generation["task_to_id"] = {
            name: numbers[f"<|{name}|>"] for name in ("translate", "transcribe")
        }
    model.generation_config = GenerationConfig(**generation)
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=SECONDS)
    return _save(folder, model, made, extractor)


def speech_to_text(folder: Path, *, seed: int = 7) -> Path:
    """A Speech2Text of 2 blocks a side; its tokenizer is not the one of sentencepiece."""
    import torch
    from transformers import (
        Speech2TextConfig,
        Speech2TextFeatureExtractor,
        Speech2TextForConditionalGeneration,
    )

    torch.manual_seed(seed)
    made = tiny.closing_tokenizer()
    config = Speech2TextConfig(
        vocab_size=len(made),
        input_feat_per_channel=16,
        conv_channels=64,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        max_source_positions=200,
        max_target_positions=64,
        dropout=0.0,
        pad_token_id=made.pad_token_id,
        bos_token_id=made.bos_token_id,
        eos_token_id=made.eos_token_id,
        decoder_start_token_id=made.eos_token_id,
    )
    extractor = Speech2TextFeatureExtractor(feature_size=16, num_mel_bins=16)
    return _save(folder, Speech2TextForConditionalGeneration(config), made, extractor)


def _save(folder: Path, model: Any, made: Any, extractor: Any) -> Path:
    for part in (model, made, extractor):
        part.save_pretrained(folder)
    return folder


def speak(text: str) -> np.ndarray:
    """Samples of a text, int16: a pair of tones for each word, after a short silence."""
    times = np.arange(round(WORD_SECONDS * RATE)) / RATE
    window = np.hanning(len(times))
    words = [
        window * sum(np.sin(2 * np.pi * hertz * times) for hertz in _pitches(word))
        for word in text.split()
    ]
    silence = np.zeros(RATE // 50)
    return np.round(8000 * np.concatenate([silence, *words])).astype(np.int16)


def _pitches(word: str) -> tuple[float, float]:
    place = tiny.WORDS.index(word)
    return 300.0 + 250.0 * (place % 7), 2300.0 + 500.0 * (place // 7)


def texts(count: int, *, seed: int = 3, longest: int = 8) -> list[str]:
    """Of uneven length; the last one is the longest."""
    draw = random.Random(seed)
    made = [
        " ".join(draw.choice(WORDS) for _ in range(draw.randint(2, longest - 1)))
        for _ in range(count - 1)
    ]
    return [*made, " ".join(draw.choice(WORDS) for _ in range(longest))]


def spoken(count: int, **how: Any) -> tuple[dict[str, Any], ...]:
    """Rows that hold their sound."""
    return tuple(
        {"audio": {"array": speak(text) / 32768, "sampling_rate": RATE}, "text": text}
        for text in texts(count, **how)
    )


def write_clips(folder: Path, count: int, **how: Any) -> Path:
    """The same as files, with a list of them."""
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for place, text in enumerate(texts(count, **how)):
        soundfile.write(folder / f"{place}.wav", speak(text), RATE)
        rows.append({"audio": f"{place}.wav", "text": text})
    return tiny.write_rows(folder / "clips.jsonl", rows)
