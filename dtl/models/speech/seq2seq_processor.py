"""The processor of a speech encoder-decoder, and the limits and augmentation of its base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dtl.core.errors import DtlError
from dtl.data.modalities.spec_augment import SpecAugment
from dtl.models.processor import SpeechProcessor


@dataclass
class Seq2SeqSpeechProcessor(SpeechProcessor):
    """Feature extractor and tokenizer, and the SpecAugment of training."""

    augment: SpecAugment | None


def spec_augment_settings(base_config: Any, *, is_on: bool | None) -> dict[str, float] | None:
    """Return the settings of SpecAugment, as JSON; None: training does not use it.

    `is_on`: None means the base's apply_spec_augment. Raises DtlError where the base has none.
    """
    if is_on is None:
        is_on = getattr(base_config, "apply_spec_augment", False)
    if not is_on:
        return None
    settings = SpecAugment.from_config(base_config)
    if settings is None:
        raise DtlError.of(
            "task.spec_augment",
            f"the config of a {base_config.model_type} model has no settings for it",
            "leave the key out",
        )
    return settings.to_dict()


def max_input_frames(base_config: Any) -> int:
    """Return the most frames that the encoder reads; Whisper's always reads as many."""
    stride = 2 if base_config.model_type == "whisper" else 2**base_config.num_conv_layers
    return int(base_config.max_source_positions * stride)
