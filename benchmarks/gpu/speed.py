"""Sections on speed: models of 8 B parameters and of Whisper large's shape, drawn on the device."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.gpu.memory import GIB, planned_share
from benchmarks.gpu.runs import Job, Measured, train_here
from benchmarks.gpu.setup import Setup

# Dense bf16 operations a second, by a part of the device's name (the data sheets of NVIDIA).
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12}
LORA = {"name": "lora", "rank": 16, "alpha": 32}


def large_lora(setup: Setup) -> str:
    """LoRA on a decoder of 8 B parameters, 4096 tokens an example."""
    return _train_large(setup, "large-lora", {"strategy": LORA}, passes=2)


def large_full(setup: Setup) -> str:
    """Full tuning of the same with 8-bit AdamW, in whose state it fits on one device."""
    return _train_large(
        setup, "large-full", {"strategy": "full", "optim": {"name": "adamw_8bit"}}, passes=3
    )


def _train_large(setup: Setup, name: str, sections: dict[str, Any], *, passes: int) -> str:
    """`passes`: over the weights, each of 2 operations for a weight and a token: forward, to the
    inputs, and where the weights are trained to the weights."""
    sizes = setup.sizes
    found = _train(
        setup,
        name,
        {
            **sections,
            "model": {"path": str(setup.folder / "large"), "dtype": "bf16"},
            "task": {"name": "causal_lm", "max_length": sizes.tokens},
            "data": {"train": str(setup.folder / "long.jsonl")},
        },
    )
    rate = 4 * sizes.tokens / found.step_seconds
    operations = _operations_per_token(sizes.decoder, sizes.tokens, passes=passes)
    return f"{rate:.0f} tokens/s{_utilization(setup, rate * operations)}; {_describe(found)}"


def whisper(setup: Setup) -> str:
    """Full tuning of a Whisper of the large shape on clips of 30 seconds."""
    found = _train(
        setup,
        "whisper",
        {
            "model": {"path": str(setup.folder / "whisper"), "dtype": "bf16"},
            "task": {"name": "asr_seq2seq", "language": "en"},
            "data": {"train": str(setup.folder / "clips.jsonl")},
            "strategy": "full",
        },
    )
    rate = 4 / found.step_seconds
    return f"{rate:.1f} clips/s of {setup.sizes.clip_seconds} s; {_describe(found)}"


def _train(setup: Setup, name: str, sections: dict[str, Any]) -> Measured:
    more = {
        "train": {"steps": setup.sizes.speed_steps, "global_batch": 4},
        "layout": {"micro_batch": 1},
        "run": {"deterministic": False},
    }
    found = train_here(setup, Job(name, {**sections, **more}, is_random=True))
    assert all(math.isfinite(value) for value in (*found.losses, *found.norms)), found.lines
    assert min(found.norms) > 0, "there is no gradient"
    return found


def _operations_per_token(shape: dict[str, int], tokens: int, *, passes: int) -> float:
    """Return the operations of a decoder for a token: products with the weights, and attention over
    half of the positions on average (arXiv:2204.02311, appendix B)."""
    attention = shape["num_hidden_layers"] * shape["hidden_size"] * tokens
    return 2 * passes * count_weights(shape) + 2 * 3 * attention


def count_weights(shape: dict[str, int]) -> int:
    """Return the weights of a decoder that are factors of products: all but the embeddings."""
    width, inner = shape["hidden_size"], shape["intermediate_size"]
    keys = width * shape["num_key_value_heads"] // shape["num_attention_heads"]
    block = 2 * width * width + 2 * width * keys + 3 * width * inner
    return shape["num_hidden_layers"] * block + width * shape["vocab_size"]


def _utilization(setup: Setup, operations: float) -> str:
    """Return the share of the device's peak that so many operations a second are."""
    if setup.is_dry:
        return ""
    import torch

    name = torch.cuda.get_device_name()
    peak = next((value for part, value in PEAK_FLOPS.items() if part in name), None)
    share = "" if peak is None else f", {operations / peak:.0%} of the peak"
    return f", {operations / 1e12:.0f} TFLOP/s{share}"


def _describe(found: Measured) -> str:
    norms = f"gradient norms {min(found.norms):.2f} to {max(found.norms):.2f}"
    state = f"state is {planned_share(found):.2f} of planned"
    peak = f", peak {found.peak_bytes / GIB:.1f} GiB" if found.peak_bytes else ""
    return f"{norms}; {state}{peak}"
