"""Packed texts give each model the losses and gradients of each text alone, or are refused."""

# N tokens of all texts

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy

from dtl.losses.language_model import next_tokens, sum_token_losses
from dtl.models.packed_attention import NAME
from dtl.models.packing import packing_texts, use_packed_attention
from dtl.models.packing_support import (
    ISOLATING,
    RECURRENT,
    find_packing_obstacle,
    is_known_to_isolate,
)
from dtl.models.structure.padding import right_padded_inputs
from dtl.train.isolation import change_of_packed_logits
from tests.architectures import GROUPED, Architecture, text
from tests.zoo.tiny_configs import make_config

VOCABULARY = 60
LENGTHS = (5, 9, 1, 12)
WINDOW = 4  # shorter than two of the texts
WINDOWS = ("sliding_window", "attention_chunk_size", "local_attention")
USUAL = {
    "cohere", "gemma3_text", "gpt2", "gpt_neox", "granite", "llama", "mistral", "mixtral", "olmo2",
    "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3", "stablelm", "starcoder2",
}  # fmt: skip
STATEFUL = (
    text("MambaForCausalLM", state_size=4),
    text("Mamba2ForCausalLM", state_size=4, num_heads=4, head_dim=8, n_groups=1, chunk_size=4),
    text("FalconMambaForCausalLM", state_size=4),
    text("RecurrentGemmaForCausalLM", attention_window_size=4, num_key_value_heads=1),
    text("Lfm2ForCausalLM", num_key_value_heads=1, layer_types=["conv", "full_attention", "conv"]),
    text("RwkvForCausalLM"),
    text("JambaForCausalLM", attn_layer_period=2, attn_layer_offset=1, mamba_d_state=4, **GROUPED),
)
OF_OTHER_POSITIONS = (
    text("BloomForCausalLM", n_layer=3, n_head=2),
    text("MptForCausalLM", d_model=16, n_layers=3, n_heads=2),
)


def build(config: Any) -> Any:
    """Return a model whose attention is far from even, in evaluation mode."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def with_windows(model_type: str) -> Any:
    config = make_config(model_type, vocab_size=VOCABULARY)
    for name in WINDOWS:
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, WINDOW)
    return config


def padded_rows() -> tuple[torch.Tensor, torch.Tensor]:
    rows = [torch.randint(3, VOCABULARY, (length,)) for length in LENGTHS]
    masks = [torch.ones(length, dtype=torch.long) for length in LENGTHS]
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(rows, batch_first=True), pad(masks, batch_first=True)


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize(
    "model_type",
    [
        pytest.param(each, marks=() if each in USUAL else pytest.mark.slow)
        for each in sorted(ISOLATING)
    ],
)
def test_packed_loss_and_gradients_are_those_of_each_text_alone(model_type: str) -> None:
    if model_type not in transformers.CONFIG_MAPPING:
        pytest.skip("this version of transformers has no such model")
    model = build(with_windows(model_type))
    tokens, mask = padded_rows()
    labels = tokens.masked_fill(mask == 0, -100)
    alone = sum(
        cross_entropy(
            model(input_ids=row[None, :length], use_cache=False).logits[0, :-1],
            row[1:length],
            reduction="sum",
        )
        for row, length in zip(tokens, LENGTHS, strict=True)
    )
    expected = gradients(model, alone)
    assert model.config._attn_implementation == "sdpa"
    use_packed_attention(model)
    assert model.config._attn_implementation == NAME

    with packing_texts(is_on=True):
        inputs = right_padded_inputs(model, tokens, mask)
        loss = sum_token_losses(model, inputs, next_tokens(labels))

    torch.testing.assert_close(loss, alone, rtol=1e-5, atol=0)
    found = gradients(model, loss)
    assert found.keys() == expected.keys()
    largest = max(value.abs().max() for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5 * float(largest))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", ["gemma3_text", "gpt2", "llama", "mistral", "qwen3_moe"])
def test_masks_of_transformers_isolate_too(model_type: str, attention: str) -> None:
    model = build(with_windows(model_type))
    model.set_attn_implementation(attention)
    with torch.no_grad():
        change = change_of_packed_logits(model, vocab_size=VOCABULARY, device=torch.device("cpu"))
    assert change < 1e-5


def test_gemma_2_with_its_soft_cap_isolates_through_eager_attention() -> None:
    model = build(with_windows("gemma2"))
    use_packed_attention(model)
    assert model.config._attn_implementation == "eager"
    with torch.no_grad():
        change = change_of_packed_logits(model, vocab_size=VOCABULARY, device=torch.device("cpu"))
    assert change < 1e-5


@pytest.mark.parametrize(
    "architecture", [*STATEFUL, *OF_OTHER_POSITIONS], ids=lambda each: each.name
)
def test_models_that_are_refused_do_not_isolate(architecture: Architecture) -> None:
    config = architecture.build().config
    reason = find_packing_obstacle(config)
    assert reason is not None
    assert ("its" in reason) and not is_known_to_isolate(config)
    model = build(config)
    use_packed_attention(model)
    with torch.no_grad():
        change = change_of_packed_logits(
            model, vocab_size=config.vocab_size, device=torch.device("cpu")
        )
    assert change > 0.01


def test_no_architecture_is_both_recurrent_and_isolating() -> None:
    assert not ISOLATING & RECURRENT.keys()
    assert USUAL < ISOLATING


def test_hybrid_config_is_refused_by_its_layer_types() -> None:
    config = make_config("qwen3", vocab_size=VOCABULARY)
    assert find_packing_obstacle(config) is None
    config.layer_types = ["linear_attention", "full_attention"]
    assert find_packing_obstacle(config) == (
        "its layers of type linear_attention carry a state from one text into the next"
    )


def test_packed_attention_without_packed_texts_is_that_of_sdpa() -> None:
    model = build(with_windows("mistral"))
    tokens, mask = padded_rows()
    with torch.no_grad():
        before = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
        generated = model.generate(tokens[:1, :4], max_new_tokens=4, do_sample=False)
        use_packed_attention(model)
        assert torch.equal(
            model(input_ids=tokens, attention_mask=mask, use_cache=False).logits, before
        )
        assert torch.equal(
            model.generate(tokens[:1, :4], max_new_tokens=4, do_sample=False), generated
        )


def test_attention_of_a_run_is_not_in_the_saved_config(tmp_path: Any) -> None:
    model = build(with_windows("llama"))
    use_packed_attention(model)
    model.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()
