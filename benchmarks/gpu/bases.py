"""Bases of random weights, with tokenizers, and the rows that they train on."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from benchmarks.gpu.setup import Setup
from tests import tiny, tiny_whisper

ROWS, HELD_OUT = 32, 8


def write_bases(setup: Setup) -> None:
    """Write all bases and rows that the sections need, and no weights for the large ones."""
    sizes, folder = setup.sizes, setup.folder
    small = {"hidden_size": sizes.width, "num_hidden_layers": sizes.layers}
    decoder(folder / "decoder", {**small, "intermediate_size": 2 * sizes.width})
    decoder(folder / "wide", {"hidden_size": sizes.width, "vocab_size": sizes.vocabulary})
    decoder(folder / "large", sizes.decoder, has_weights=False)
    whisper(folder / "whisper", sizes.whisper)
    write_texts(folder / "short.jsonl", ROWS, words=24)
    write_texts(folder / "long.jsonl", HELD_OUT, words=2 * max(sizes.tokens, sizes.long_tokens))
    write_clips(folder, setup.sizes.clip_seconds)


def decoder(folder: Path, settings: dict[str, int], *, has_weights: bool = True) -> None:
    """Write a Llama of this shape with its tokenizer; tiny where `settings` says nothing."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny.tokenizer()
    config = LlamaConfig(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 8192,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **settings,
        }
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(7)
    if has_weights:
        LlamaForCausalLM(config).save_pretrained(folder)
    else:
        config.architectures = ["LlamaForCausalLM"]
        config.save_pretrained(folder)


def whisper(folder: Path, settings: dict[str, int]) -> None:
    """Write the files of a Whisper of this shape, without weights; tiny where nothing is set."""
    tiny_whisper.whisper(folder)
    (folder / "model.safetensors").unlink()
    _update_json(folder / "config.json", settings)
    if settings:
        audio_inputs = {
            "feature_size": settings["num_mel_bins"],
            "chunk_length": 30,
            "nb_max_frames": 3000,
        }
        _update_json(
            folder / "preprocessor_config.json", {**audio_inputs, "n_samples": 30 * 16_000}
        )


def _update_json(file: Path, changes: dict[str, Any]) -> None:
    values = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**values, **changes}), encoding="utf-8")


def write_texts(file: Path, rows: int, *, words: int) -> None:
    """Write rows of so many words."""
    draw = random.Random(3)
    tiny.write_rows(
        file, [{"text": " ".join(draw.choices(tiny.WORDS, k=words))} for _ in range(rows)]
    )


def write_clips(folder: Path, seconds: int) -> None:
    """Write clips of noise of so many seconds, with texts."""
    import numpy as np
    import soundfile

    noise = np.random.default_rng(3)
    rows = []
    for number, text in enumerate(tiny_whisper.texts(HELD_OUT)):
        samples = noise.normal(0, 0.1, seconds * tiny_whisper.RATE)
        soundfile.write(folder / f"{number}.wav", samples, tiny_whisper.RATE)
        rows.append({"audio": f"{number}.wav", "text": text})
    tiny.write_rows(folder / "clips.jsonl", rows)
