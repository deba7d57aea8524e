"""Tiny mixtures of experts of several families, with their tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests import tiny

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
ENCODER_DECODER = {
    "d_model": 32,
    "d_ff": 48,
    "dropout_rate": 0.0,
    "num_experts": 4,
}
FAMILIES: dict[str, dict[str, Any]] = {  # by the model type: what differs from SIZES
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": EXPERTS | {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    "qwen3_moe": EXPERTS | {"moe_intermediate_size": 16, "head_dim": 8},
    "olmoe": EXPERTS,
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16},
    "jetmoe": {"num_local_experts": 4, "num_experts_per_tok": 2, "kv_channels": 8},
}


def experts(folder: Path, family: str, *, seed: int = 7, **changes: Any) -> Path:
    """A decoder of 2 blocks with 4 experts, saved with its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    made = tiny.tokenizer()
    config = AutoConfig.for_model(
        family,
        vocab_size=len(made),
        **(SIZES | FAMILIES[family] | changes),
        bos_token_id=made.bos_token_id,
        eos_token_id=made.eos_token_id,
        pad_token_id=made.pad_token_id,
    )
    return save(AutoModelForCausalLM.from_config(config), made, folder)


def switch(folder: Path, *, seed: int = 7, **changes: Any) -> Path:
    """A Switch Transformer of 2 blocks a side, saved with its tokenizer."""
    import torch
    from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

    torch.manual_seed(seed)
    made = tiny.closing_tokenizer()
    config = SwitchTransformersConfig(
        vocab_size=len(made),
        **ENCODER_DECODER,
        d_kv=8,
        num_layers=2,
        num_decoder_layers=2,
        num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1,
        num_heads=4,
        router_jitter_noise=0.0,
        expert_capacity=64,
        add_router_probs=True,
        pad_token_id=made.pad_token_id,
        eos_token_id=made.eos_token_id,
        decoder_start_token_id=made.pad_token_id,
        **changes,
    )
    return save(SwitchTransformersForConditionalGeneration(config), made, folder)


def nllb_moe(folder: Path, *, seed: int = 7, **changes: Any) -> Path:
    """An NLLB-MoE of 2 blocks a side, saved with its tokenizer."""
    import torch
    from transformers import NllbMoeConfig, NllbMoeForConditionalGeneration

    torch.manual_seed(seed)
    made = tiny.closing_tokenizer()
    config = NllbMoeConfig(
        vocab_size=len(made),
        d_model=32,
        num_experts=4,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        encoder_sparse_step=1,
        decoder_sparse_step=1,
        max_position_embeddings=128,
        dropout=0.0,
        activation_dropout=0.0,
        attention_dropout=0.0,
        encoder_layerdrop=0.0,
        decoder_layerdrop=0.0,
        moe_token_dropout=0.0,
        router_jitter_noise=0.0,
        second_expert_policy="all",
        output_router_logits=True,
        pad_token_id=made.pad_token_id,
        eos_token_id=made.eos_token_id,
        bos_token_id=made.bos_token_id,
        decoder_start_token_id=made.eos_token_id,
        **changes,
    )
    return save(NllbMoeForConditionalGeneration(config), made, folder)


def save(model: Any, made: Any, folder: Path) -> Path:
    """Give the routers weights that spread their logits, and save."""
    import torch

    for name, parameter in model.named_parameters():
        if any(
            word in name for word in ("router", "mlp.gate.weight", ".gate.weight", "classifier")
        ):
            torch.nn.init.normal_(parameter, std=1.0)
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder
