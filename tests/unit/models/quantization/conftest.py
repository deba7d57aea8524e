"""A tiny base with transposed weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory) -> Path:
    """A GPT-2: its layers are Conv1D, with transposed weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("models") / "gpt2"
    torch.manual_seed(7)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    ).save_pretrained(folder)
    return folder
