"""Architectures that compute packed texts as if each were alone, and those that cannot."""

from __future__ import annotations

from typing import Any

# Types of models whose packed logits and gradients test_packing.py compares with each text alone.
ISOLATING = frozenset({
    "apertus", "arcee", "cohere", "cohere2", "cohere2_moe", "cwm", "deepseek_v3", "diffllama",
    "ernie4_5", "ernie4_5_moe", "exaone4", "flex_olmo", "gemma", "gemma3_text", "glm", "glm4",
    "glm4_moe", "gpt2", "gpt_bigcode", "gpt_neox", "granite", "granitemoe", "granitemoeshared",
    "helium", "jetmoe", "llama", "llama4_text", "minicpm3", "minimax_m2", "ministral3",
    "mistral", "mixtral", "modernbert-decoder", "nanochat", "olmo", "olmo2", "olmo3", "olmoe",
    "persimmon", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe",
    "seed_oss", "smollm3", "stablelm", "starcoder2",
})  # fmt: skip
STATES = "carry a state from one text into the next"
RECURRENT = {
    "bamba": "its state-space layers",
    "falcon_h1": "its state-space layers",
    "falcon_mamba": "its state-space layers",
    "granitemoehybrid": "its state-space layers",
    "jamba": "its state-space layers",
    "kimi_linear": "its linear-attention layers",
    "mamba": "its state-space layers",
    "mamba2": "its state-space layers",
    "minimax": "its linear-attention layers",
    "nemotron_h": "its state-space layers",
    "qwen3_5_moe_text": "its linear-attention layers",
    "qwen3_5_text": "its linear-attention layers",
    "qwen3_next": "its linear-attention layers",
    "recurrent_gemma": "its recurrent layers",
    "rwkv": "its recurrent layers",
    "xlstm": "its recurrent layers",
    "zamba": "its state-space layers",
    "zamba2": "its state-space layers",
}
POSITIONS = {
    "bloom": "its attention counts distances across the texts of a row",
    "mpt": "its attention counts distances across the texts of a row",
}
ATTENTION_LAYERS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})


def find_packing_obstacle(config: Any) -> str | None:
    """Return why the model of this config cannot isolate packed texts; None where that is not
    known to be so. `config`: of transformers; None where it is unknown."""
    if config is None:
        return "the architecture of the base is unknown"
    text = config.get_text_config()
    kind = str(text.model_type)
    if kind in RECURRENT:
        return f"{RECURRENT[kind]} {STATES}"
    others = set(getattr(text, "layer_types", None) or ()) - ATTENTION_LAYERS
    if others:
        return f"its layers of type {', '.join(sorted(others))} {STATES}"
    return POSITIONS.get(kind)


def is_known_to_isolate(config: Any) -> bool:
    """Return whether models of this config are known to isolate packed texts."""
    is_own_code = not type(config).__module__.startswith("transformers.")
    return config.model_type in ISOLATING and not is_own_code
