"""Sounds as a speech model hears them: its own features, padded to one batch."""

# B batch, T samples or frames, F features of a frame

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dtl.data.modalities.audio import to_float32

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

AUDIO_FEATURES, USES_MASK = "heard", "masked"


def extract_features(samples_T: np.ndarray, extractor: Any) -> dict[str, Any]:
    """What the extractor makes of one sound: `heard`, (T,) or of its own shape, and whether padding
    beside it is to be told to the model (`masked`): models that were pretrained without a mask are
    used without one."""
    import numpy as np

    name = extractor.model_input_names[0]
    made = extractor(
        to_float32(samples_T), sampling_rate=extractor.sampling_rate, return_tensors="np"
    )[name][0]
    return {
        AUDIO_FEATURES: np.asarray(made, dtype=np.float32),
        USES_MASK: _uses_attention_mask(extractor),
    }


def blank_features(samples_T: np.ndarray, extractor: Any) -> dict[str, Any] | None:
    """Silence in the place of what `heard` makes; None where it would not tell how long that is."""
    import numpy as np

    if not _outputs_waveform(extractor):
        return None
    return {
        AUDIO_FEATURES: np.zeros(len(samples_T), dtype=np.float32),
        USES_MASK: _uses_attention_mask(extractor),
    }


def explain_batch_dependence(sample_counts: np.ndarray, extractor: Any) -> str | None:
    """Why what a model makes of a sound depends on those beside it in a batch; None: it does not.
    `samples`: how many each sound has (N,)."""
    if (
        _uses_attention_mask(extractor)
        or not _outputs_waveform(extractor)
        or (sample_counts == sample_counts[0]).all()
    ):
        return None
    return (
        "sounds are of different lengths and the base was pretrained without a mask for padding, "
        "so that what it makes of one depends on those beside it"
    )


def _outputs_waveform(extractor: Any) -> bool:
    """And not a spectrogram."""
    samples = extractor.model_input_names[0] == "input_values"
    return samples and not hasattr(extractor, "num_mel_bins")  # AST calls its spectrogram so too


def _uses_attention_mask(extractor: Any) -> bool:
    return bool(getattr(extractor, "return_attention_mask", False))


def pad_audio(examples: list[dict[str, Any]], *, name: str) -> dict[str, Tensor]:
    """One tensor (B, T) or (B, T, F) under the model's name for it, padded with silence on the
    right; and the attention mask (B, T) where the model is told of padding."""
    import numpy as np
    import torch

    sounds = [example[AUDIO_FEATURES] for example in examples]
    longest = max(len(sound) for sound in sounds)
    padded = np.zeros((len(sounds), longest, *sounds[0].shape[1:]), dtype=np.float32)
    mask_BT = np.zeros((len(sounds), longest), dtype=np.int64)
    for place, sound in enumerate(sounds):
        padded[place, : len(sound)] = sound
        mask_BT[place, : len(sound)] = 1
    batch = {name: torch.from_numpy(padded)}
    return (
        {**batch, "attention_mask": torch.from_numpy(mask_BT)} if examples[0][USES_MASK] else batch
    )
