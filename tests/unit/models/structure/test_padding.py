"""A causal model computes the same logits of a text without a mask of the padding after it."""

from __future__ import annotations

import pytest
import torch

from dtl.models.structure.padding import find_mask_reason, right_padded_inputs
from tests.architectures import ARCHITECTURES, CAUSAL, GROUPED, Architecture, changed, text

MODELS = (
    *(each for each in ARCHITECTURES if each.name.endswith(("CausalLM", "LMHeadModel"))),
    *CAUSAL,
    text("FalconForCausalLM", alibi=True),
    text("Mamba2ForCausalLM", state_size=4, num_heads=4, head_dim=8, n_groups=1, chunk_size=4),
    text("FalconMambaForCausalLM", state_size=4),
    text("RecurrentGemmaForCausalLM", attention_window_size=4, num_key_value_heads=1),
    text("Lfm2ForCausalLM", num_key_value_heads=1, layer_types=["conv", "full_attention", "conv"]),
    text("MistralForCausalLM", num_key_value_heads=1, sliding_window=3),
)
LENGTHS = (8, 3)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", MODELS, ids=lambda each: each.name)
def test_logits_of_tokens_do_not_depend_on_the_mask(
    architecture: Architecture, attention: str
) -> None:
    torch.manual_seed(0)
    model = architecture.build()
    if attention == "eager":
        model.set_attn_implementation("eager")
    tokens = torch.arange(16).reshape(2, 8) + 3
    mask = torch.tensor([[int(index < length) for index in range(8)] for length in LENGTHS])

    with torch.no_grad():
        plain = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
        found = model(**right_padded_inputs(model, tokens, mask)).logits

    for row, length in enumerate(LENGTHS):
        torch.testing.assert_close(found[row, :length], plain[row, :length], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", ["MixtralForCausalLM", "Qwen3MoeForCausalLM"])
def test_routers_get_the_mask_because_they_count_tokens(name: str) -> None:
    architecture = next(each for each in ARCHITECTURES if each.name == name)
    assert "count tokens" in str(find_mask_reason(architecture.build()))


def test_model_of_other_code_gets_the_mask() -> None:
    import transformers

    class Own(transformers.LlamaForCausalLM):
        pass

    config = changed(text("LlamaForCausalLM", **GROUPED)).build().config
    assert find_mask_reason(Own(config)) == "Own is not of transformers"
