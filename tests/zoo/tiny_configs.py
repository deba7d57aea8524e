"""Tiny configs of every model type that transformers' auto classes list, made by rule."""

from __future__ import annotations

from typing import Any

TASK_MAPPINGS = {
    "causal_lm": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "text_classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "token_classification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "image_classification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "audio_classification": "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES",
    "asr_ctc": "MODEL_FOR_CTC_MAPPING_NAMES",
    "asr_seq2seq": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
}
MOST_PARAMETERS = 3_000_000
HIDDEN, HEADS, KEY_HEADS, HEAD_SIZE, FEED_FORWARD, LAYERS, POSITIONS = 32, 4, 2, 8, 64, 2, 128


def _sizes(value: int, names: str) -> dict[str, int]:
    return dict.fromkeys(names.split(), value)


SIZES: dict[str, Any] = {
    **_sizes(
        HIDDEN,
        "hidden_size d_model n_embd dim embed_dim emb_dim embedding_size hidden_dim "
        "word_embed_proj_dim d_latents encoder_hidden_size decoder_hidden_size lru_width "
        "attention_hidden_size output_hidden_size pooler_hidden_size width",
    ),
    **_sizes(
        FEED_FORWARD,
        "intermediate_size encoder_ffn_dim decoder_ffn_dim ffn_dim d_ff n_inner d_inner "
        "moe_intermediate_size shared_expert_intermediate_size ffn_hidden_size dff dim_ff "
        "shared_intermediate_size feed_forward_size expert_ffn_hidden_size mlp_dim "
        "intermediate_size_mlp dense_intermediate_size",
    ),
    **_sizes(
        LAYERS,
        "num_hidden_layers encoder_layers decoder_layers n_layer n_layers num_layers "
        "num_decoder_layers num_encoder_layers depth encoder_num_hidden_layers "
        "decoder_num_hidden_layers",
    ),
    **_sizes(
        HEADS,
        "num_attention_heads encoder_attention_heads decoder_attention_heads n_head n_heads "
        "num_heads encoder_num_attention_heads decoder_num_attention_heads attention_heads "
        "num_encoder_attention_heads num_decoder_attention_heads",
    ),
    **_sizes(
        KEY_HEADS,
        "num_key_value_heads num_kv_heads encoder_num_key_value_heads "
        "decoder_num_key_value_heads kv_n_heads",
    ),
    **_sizes(HEAD_SIZE, "head_dim d_kv v_head_dim kv_channels d_head dim_head attention_head_size"),
    **_sizes(
        POSITIONS,
        "max_position_embeddings n_positions max_seq_len n_ctx max_source_positions "
        "max_target_positions max_encoder_position_embeddings max_decoder_position_embeddings",
    ),
    **_sizes(4, "num_experts num_local_experts n_routed_experts moe_num_experts"),
    **_sizes(2, "num_experts_per_tok top_k moe_topk moe_top_k num_experts_per_token moe_k"),
    **_sizes(1, "n_shared_experts num_shared_experts moe_num_shared_experts n_group topk_group"),
    **_sizes(16, "q_lora_rank kv_lora_rank index_head_dim"),
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "qk_head_dim": 16,
    "rotary_dim": 4,
    "index_n_heads": 2,
    "index_topk": 64,
    "sliding_window": 64,
    "mamba_d_state": 8,
    "state_size": 8,
    "ssm_state_size": 8,
    "image_size": 32,
    "patch_size": 8,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 16,
    "num_mel_bins": 16,
    "codebook_size": 16,
}
LISTS: dict[str, Any] = {
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [16, 24, 32, 40],
    "conv_dim": (16, 16),
    "conv_stride": (20, 16),
    "conv_kernel": (10, 8),
}
NO_DROPOUT = ("dropout", "pdrop", "drop_path_rate", "layerdrop", "mask_time_prob", "dropout_prob")
# What the rule leaves inconsistent.
BY_TYPE: dict[str, dict[str, Any]] = {
    "bigbird_pegasus": {"attention_type": "original_full"},
    "big_bird": {"attention_type": "original_full"},
    "funnel": {"block_sizes": [1, 1], "num_decoder_layers": 1},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    **{
        key: {"num_hidden_layers": 4}
        for key in ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "bailing_hybrid")
    },
    "lilt": {"hidden_size": 48, "max_2d_position_embeddings": 64},
    "bit": {"num_groups": 2, "embedding_size": 8},
    "reformer": {"axial_pos_shape": [8, 16], "axial_pos_embds_dim": [16, 16]},
    "resnet": {"hidden_sizes": [8, 16], "depths": [1, 1], "embedding_size": 8},
    "regnet": {"hidden_sizes": [16, 32], "depths": [1, 1], "embedding_size": 8, "groups_width": 8},
    "convnext": {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "convnextv2": {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.2, "hidden_dim": 32},
    "siglip2_vision_model": {"num_patches": 16},
    **{key: {"attention_window": 4} for key in ("led", "longformer")},
    "opt": {"word_embed_proj_dim": HIDDEN},
    "swin": {"embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "patch_size": 2},
    "swinv2": {"embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "patch_size": 2},
    "donut-swin": {"embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "patch_size": 2},
    "whisper": {"max_source_positions": 1500, "num_mel_bins": 80},
    "audio-spectrogram-transformer": {"max_length": 64, "patch_size": 16},
    "wav2vec2-bert": {"feature_projection_input_dim": 160},
}


def make_config(model_type: str, *, vocab_size: int) -> Any:
    """Return a small config of this type. Raises whatever its class raises."""
    from transformers import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[model_type]
    return _shrink(config_class(), vocab_size=vocab_size)


def _shrink(config: Any, *, vocab_size: int) -> Any:
    changes: dict[str, Any] = {}
    subs = {name: value for name, value in vars(config).items() if hasattr(value, "to_dict")}
    for name, value in config.to_dict().items():
        if name in subs:
            changes[name] = _shrink(subs[name], vocab_size=vocab_size)
        elif name in LISTS and isinstance(value, list | tuple):
            changes[name] = LISTS[name]
        elif isinstance(value, bool):
            continue
        elif isinstance(value, int) and name in SIZES:
            changes[name] = SIZES[name]
        elif isinstance(value, int) and name.endswith("vocab_size"):
            changes[name] = vocab_size
        elif isinstance(value, float) and name.endswith(NO_DROPOUT):
            changes[name] = 0.0
        elif isinstance(value, int) and name.endswith("token_id"):
            changes[name] = {"pad": 0, "bos": 1, "eos": 2}.get(name.partition("_")[0], 2)
    if "kv_lora_rank" in changes:  # latent attention has as many keys as queries
        changes["num_key_value_heads"] = HEADS
    changes |= BY_TYPE.get(config.model_type, {})
    return type(config)(**changes)
