"""Write a tiny base of a model type for a task, with its tokenizer or extractor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests import tiny, tiny_whisper
from tests.zoo.tiny_configs import MOST_PARAMETERS, make_config

TEXT_TASKS = ("causal_lm", "text_classification", "token_classification", "seq2seq")
SPREAD = 0.05  # of the noise on each weight: tables that start at zero take part as well


class NotBuildable(Exception):
    """The rule gives no model of this type that is small and complete."""


def write_base(model_type: str, task: str, auto_class: str, folder: Path) -> None:
    """Write the base. Raises NotBuildable where the rule gives none."""
    import torch
    import transformers

    processor = _make_processor(model_type, task)
    try:
        config = make_config(model_type, vocab_size=_vocab_size(processor))
        if task in TEXT_TASKS and config.is_encoder_decoder:
            processor = tiny.closing_tokenizer()
            config.decoder_start_token_id = 0
        has_head = task in ("causal_lm", "seq2seq", "asr_seq2seq")
        auto = getattr(transformers, auto_class if has_head else "AutoModel")
        if type(config) not in auto._model_mapping:
            auto = getattr(transformers, auto_class)
        classes = auto._model_mapping[type(config)]
        if isinstance(classes, tuple):  # transformers takes the one that the config names
            config.architectures = [classes[0].__name__]
        torch.manual_seed(7)
        with torch.device("meta"):
            size = sum(value.numel() for value in auto.from_config(config).parameters())
        if size > MOST_PARAMETERS:
            raise NotBuildable(f"{size / 1e6:.1f} million parameters")
        model = auto.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for value in model.parameters():
                value += SPREAD * torch.randn_like(value)
        model.save_pretrained(folder)
    except NotBuildable:
        raise
    except Exception as fault:
        raise NotBuildable(f"{type(fault).__name__}: {str(fault).splitlines()[:1]}") from fault
    processor.save_pretrained(folder)


def _vocab_size(processor: Any) -> int:
    tokenizer = getattr(processor, "tokenizer", processor)
    return len(tokenizer) if hasattr(tokenizer, "vocab_size") else 48


def _make_processor(model_type: str, task: str) -> Any:
    if task in TEXT_TASKS:
        return tiny.tokenizer()
    if task == "image_classification":
        from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

        return ViTImageProcessorPil(size={"height": 32, "width": 32})
    return _make_extractor(model_type, task)


def _make_extractor(model_type: str, task: str) -> Any:
    import transformers

    if model_type == "whisper" and task == "asr_seq2seq":
        return transformers.WhisperProcessor(
            transformers.WhisperFeatureExtractor(), tiny_whisper.tokenizer()
        )
    if model_type == "whisper":
        return transformers.WhisperFeatureExtractor()
    if model_type == "wav2vec2-bert":
        return transformers.SeamlessM4TFeatureExtractor()
    if model_type == "audio-spectrogram-transformer":
        return transformers.ASTFeatureExtractor(max_length=64, num_mel_bins=16)
    if task == "asr_seq2seq" or model_type in ("granite_speech5_ctc", "lasr_ctc", "parakeet_ctc"):
        raise NotBuildable("it has a processor of its own")
    config = transformers.CONFIG_MAPPING[model_type]()
    has_mask = getattr(config, "feat_extract_norm", "layer") == "layer"
    return transformers.Wav2Vec2FeatureExtractor(return_attention_mask=has_mask)
