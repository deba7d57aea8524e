"""The start of a run refuses a model that does not isolate packed examples."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dtl.core.errors import DtlError
from dtl.models.packing import use_packed_attention
from dtl.train.isolation import check_isolation
from tests.architectures import Architecture, text

REFUSED = (
    text("MambaForCausalLM", state_size=4),
    text("BloomForCausalLM", n_layer=3, n_head=2),
    text("FalconForCausalLM"),
    text("OPTForCausalLM", ffn_dim=24, word_embed_proj_dim=8),
)


def run_check(architecture: Architecture, *, packs_attention: bool = True) -> None:
    torch.manual_seed(0)
    model = architecture.build()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    if packs_attention:
        use_packed_attention(model)
    engine: Any = SimpleNamespace(
        model=model,
        unwrapped_model=model,
        autocast=nullcontext,
        device=torch.device("cpu"),
        settings=SimpleNamespace(dtype="fp32"),
    )
    check_isolation(engine, vocab_size=48)


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "Qwen2ForCausalLM", "GPT2LMHeadModel"])
def test_model_that_isolates_passes(name: str) -> None:
    gpt = {"n_embd": 16, "n_layer": 3, "n_head": 2}
    more = gpt if name.startswith("GPT2") else {"num_key_value_heads": 1}
    run_check(text(name, **more))


@pytest.mark.parametrize("architecture", REFUSED, ids=lambda each: each.name)
def test_model_that_does_not_isolate_is_refused(architecture: Architecture) -> None:
    with pytest.raises(DtlError) as fault:
        run_check(architecture, packs_attention=False)
    message = str(fault.value)
    assert message.startswith("train.packing: ")
    assert architecture.name in message
    assert "Fix: set train.packing to false" in message
