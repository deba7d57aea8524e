"""Tiny models of many architectures, built from their configs, with a batch that they run on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

TEXT = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {"num_key_value_heads": 1, "head_dim": 8}
SIDES = {
    "vocab_size": 48,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 2,
}
SOUND = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": (8, 8),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 8),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 24,
    "mask_time_prob": 0.0,
    "layerdrop": 0.0,
}
IMAGE = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 8,
}


@dataclass(frozen=True)
class Architecture:
    """A class of transformers with the settings of a tiny config. `blocks`: how many the settings
    say; `shows`: what is held up to it, text, pairs of texts, sound, features or image."""

    name: str
    blocks: int
    shows: str
    settings: dict[str, Any] = field(default_factory=dict)

    def build(self) -> Any:
        """With random weights, or without any inside `torch.device("meta")`."""
        import transformers

        kind = getattr(transformers, self.name)
        return kind(kind.config_class(**self.settings)).eval()

    def batch(self) -> dict[str, Any]:
        import torch

        ids = torch.arange(12).reshape(2, 6) + 3
        return {
            "text": lambda: {"input_ids": ids},
            "pairs of texts": lambda: {"input_ids": ids, "decoder_input_ids": ids[:, :4]},
            "sound": lambda: {"input_values": torch.randn(2, 400)},
            "features": lambda: {"input_features": torch.randn(2, 12, 8)},
            "spectrogram": lambda: {"input_values": torch.randn(2, 24, 16)},
            "mel and text": lambda: {
                "input_features": torch.randn(2, 8, 20),
                "decoder_input_ids": ids[:, :4],
            },
            "features and text": lambda: {
                "input_features": torch.randn(2, 20, 8),
                "decoder_input_ids": ids[:, :4],
            },
            "mel": lambda: {"input_features": torch.randn(2, 8, 20)},
            "image": lambda: {"pixel_values": torch.randn(2, 3, 16, 16)},
            "large image": lambda: {"pixel_values": torch.randn(2, 3, 64, 64)},
        }[self.shows]()


def changed(architecture: Architecture, **settings: Any) -> Architecture:
    """The same with other settings."""
    return replace(architecture, settings={**architecture.settings, **settings})


def text(name: str, blocks: int = 3, **settings: Any) -> Architecture:
    return Architecture(name, blocks, "text", {**TEXT, **settings})


def pair(name: str, **settings: Any) -> Architecture:
    return Architecture(name, 5, "pairs of texts", {**SIDES, **settings})


def sound(name: str, **settings: Any) -> Architecture:
    return Architecture(name, 3, "sound", {**SOUND, **settings})


def image(name: str, **settings: Any) -> Architecture:
    return Architecture(name, 3, "image", {**IMAGE, **settings})


T5 = {
    "vocab_size": 48,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 2,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}
MEL = {
    **SIDES,
    "num_mel_bins": 8,
    "max_source_positions": 10,
    "max_target_positions": 10,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
CAUSAL = (
    text("CohereForCausalLM", logit_scale=0.3),
    text("Cohere2ForCausalLM", logit_scale=0.3, **GROUPED),
    text("GraniteForCausalLM", logits_scaling=7.0, num_key_value_heads=1),
    text("Gemma3ForCausalLM", layer_types=["full_attention"] * 3, **GROUPED),
    text("Olmo2ForCausalLM"),
    text("StableLmForCausalLM", num_key_value_heads=2),
    text("GlmForCausalLM", **GROUPED),
    text("Starcoder2ForCausalLM", num_key_value_heads=1),
    text("GPTJForCausalLM", n_embd=16, n_layer=3, n_head=2, rotary_dim=4),
    text("MptForCausalLM", d_model=16, n_layers=3, n_heads=2),
)
STAGED = {"image_size": 16, "depths": [1, 2], "num_heads": [2, 2], "embed_dim": 8, "patch_size": 2}

ARCHITECTURES = (
    text("LlamaForCausalLM"),
    text("LlamaForSequenceClassification"),
    text("MistralForCausalLM", num_key_value_heads=1),
    text("MixtralForCausalLM", num_local_experts=2, num_key_value_heads=1),
    text("Qwen2ForCausalLM", num_key_value_heads=1),
    text("Qwen3ForCausalLM", **GROUPED),
    text("Qwen3MoeForCausalLM", num_experts=2, num_experts_per_tok=1, **GROUPED),
    text("GemmaForCausalLM", **GROUPED),
    text("Gemma2ForCausalLM", **GROUPED),
    text("PhiForCausalLM"),
    text("Phi3ForCausalLM"),
    text("FalconForCausalLM"),
    text("GPTNeoXForCausalLM"),
    text("OlmoForCausalLM"),
    text("OPTForCausalLM", ffn_dim=24, word_embed_proj_dim=8),
    text("GPT2LMHeadModel", n_embd=16, n_layer=3, n_head=2, n_positions=40),
    text("BloomForCausalLM", n_layer=3, n_head=2),
    text("MambaForCausalLM", state_size=4),
    text("BertForSequenceClassification"),
    text("RobertaForTokenClassification"),
    text("XLMRobertaForSequenceClassification"),
    text("ElectraForSequenceClassification", embedding_size=8),
    text(
        "DebertaV2ForSequenceClassification",
        relative_attention=True,
        position_buckets=8,
        norm_rel_ebd="layer_norm",
        pos_att_type=["p2c", "c2p"],
        conv_kernel_size=3,
    ),
    text("ModernBertForSequenceClassification", cls_token_id=1, sep_token_id=2),
    text("DistilBertForSequenceClassification", dim=16, n_layers=3, n_heads=2, hidden_dim=24),
    text("MobileBertForSequenceClassification", embedding_size=8, intra_bottleneck_size=8),
    text("RoFormerForSequenceClassification"),
    Architecture("T5ForConditionalGeneration", 5, "pairs of texts", T5),
    Architecture("MT5ForConditionalGeneration", 5, "pairs of texts", T5),
    pair("BartForConditionalGeneration"),
    pair("MBartForConditionalGeneration"),
    pair("PegasusForConditionalGeneration"),
    pair("MarianMTModel"),
    pair("M2M100ForConditionalGeneration"),
    sound("Wav2Vec2ForCTC"),
    sound(
        "Wav2Vec2ForSequenceClassification", feat_extract_norm="layer", do_stable_layer_norm=True
    ),
    sound("HubertForCTC"),
    sound("WavLMForCTC"),
    sound("UniSpeechSatForCTC"),
    sound("Data2VecAudioForCTC"),
    Architecture(
        "Wav2Vec2BertForCTC",
        3,
        "features",
        {**SOUND, "feature_projection_input_dim": 8, "conv_depthwise_kernel_size": 3},
    ),
    Architecture("WhisperForConditionalGeneration", 5, "mel and text", MEL),
    Architecture("WhisperForAudioClassification", 2, "mel", MEL),
    Architecture(
        "Speech2TextForConditionalGeneration",
        5,
        "features and text",
        {**MEL, "input_feat_per_channel": 8, "conv_channels": 16, "max_source_positions": 40},
    ),
    Architecture(
        "ASTForAudioClassification",
        3,
        "spectrogram",
        {
            **IMAGE,
            "max_length": 24,
            "num_mel_bins": 16,
            "patch_size": 8,
            "time_stride": 8,
            "frequency_stride": 8,
        },
    ),
    image("ViTForImageClassification"),
    image("DeiTForImageClassification"),
    image("BeitForImageClassification", use_relative_position_bias=True),
    image("Dinov2ForImageClassification"),
    Architecture("SwinForImageClassification", 3, "image", {**STAGED, "window_size": 2}),
    Architecture("Swinv2ForImageClassification", 3, "image", {**STAGED, "window_size": 2}),
    Architecture(
        "ConvNextForImageClassification",
        6,
        "large image",
        {"hidden_sizes": [4, 8, 8, 8], "depths": [1, 2, 1, 2]},
    ),
    Architecture(
        "ConvNextV2ForImageClassification",
        6,
        "large image",
        {"hidden_sizes": [4, 8, 8, 8], "depths": [1, 2, 1, 2]},
    ),
    Architecture(
        "ResNetForImageClassification",
        6,
        "large image",
        {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 16], "depths": [1, 2, 1, 2]},
    ),
    Architecture(
        "RegNetForImageClassification",
        6,
        "large image",
        {
            "embedding_size": 8,
            "hidden_sizes": [8, 16, 16, 16],
            "depths": [1, 2, 1, 2],
            "groups_width": 8,
        },
    ),
    Architecture("MobileNetV1ForImageClassification", 26, "large image", {"depth_multiplier": 0.1}),
    Architecture("MobileNetV2ForImageClassification", 16, "large image", {"depth_multiplier": 0.1}),
    Architecture(
        "SegformerForImageClassification",
        4,
        "large image",
        {
            "depths": [1, 1, 1, 1],
            "hidden_sizes": [4, 8, 8, 8],
            "num_attention_heads": [1, 2, 2, 2],
            "decoder_hidden_size": 8,
        },
    ),
)
