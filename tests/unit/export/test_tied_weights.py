"""An export has the logits of the trained model, whatever the architecture ties."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from dtl.core.errors import RunFailed
from dtl.export.weights import local_state_dict, write_model
from dtl.strategies.lora import Options, Plugin

LAYERS = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
T5 = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 4}
BART = {
    "vocab_size": 64,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
}
ENCODER_DECODERS = {
    "t5": T5 | {"decoder_start_token_id": 0},
    "t5gemma": {"encoder": LAYERS, "decoder": LAYERS, "vocab_size": 64},
    "bart": BART | {"decoder_start_token_id": 2},
}
FAMILIES = {"llama": LAYERS, "gemma2": LAYERS, **ENCODER_DECODERS}


def build(kind, *, ties):
    torch.manual_seed(3)
    config = AutoConfig.for_model(kind, **FAMILIES[kind], tie_word_embeddings=ties)
    auto = AutoModelForSeq2SeqLM if kind in ENCODER_DECODERS else AutoModelForCausalLM
    return auto.from_config(config).eval()


def logits(model):
    tokens = torch.tensor([[5, 6, 7, 9]])
    more = {"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model.eval()(input_ids=tokens, **more).logits


def train(model):
    """Move all that is trained."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape)


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("kind", FAMILIES)
def test_the_export_has_the_logits_of_the_trained_model(kind, ties, tmp_path):
    full = build(kind, ties=ties)
    train(full)
    adapted = Plugin(Options(rank=2)).apply(build(kind, ties=ties), new_parameters=frozenset())
    train(adapted)
    for name, model in (("full", full), ("merged", adapted)):
        expected = logits(model)
        plain = Plugin(Options()).merge(model) if name == "merged" else model
        state = local_state_dict(plain, trainable_only=False)
        write_model(plain, state, tmp_path / name, dtype=torch.float32)
        reopened = type(plain).from_pretrained(tmp_path / name)
        torch.testing.assert_close(logits(reopened), expected, rtol=1e-4, atol=1e-4)


def test_a_tensor_that_would_be_drawn_at_random_fails_the_export(tmp_path):
    model = build("t5gemma", ties=True)
    model.config.tie_word_embeddings = False
    state = local_state_dict(model, trainable_only=False)
    with pytest.raises(RunFailed, match=r"1 tensors are missing .* lm_head\.out_proj\.weight"):
        write_model(model, state, tmp_path / "export", dtype=torch.float32)
