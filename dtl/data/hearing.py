"""Sounds as a speech model hears them: its own features, padded to one batch."""

# B batch, T samples or frames, F features of a frame

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dtl.data.audio import as_heard

if TYPE_CHECKING:
    from torch import Tensor

HEARD, MASKED = "heard", "masked"


def heard(samples_T: np.ndarray, extractor: Any) -> dict[str, Any]:
    """What the extractor makes of one sound: `heard`, (T,) or of its own shape, and whether padding
    beside it is to be told to the model (`masked`): models that were pretrained without a mask are
    used without one."""
    name = extractor.model_input_names[0]
    made = extractor(
        as_heard(samples_T), sampling_rate=extractor.sampling_rate, return_tensors="np"
    )[name][0]
    told = bool(getattr(extractor, "return_attention_mask", False))
    return {HEARD: np.asarray(made, dtype=np.float32), MASKED: told}


def pad_sounds(examples: list[dict[str, Any]], *, name: str) -> dict[str, Tensor]:
    """One tensor (B, T) or (B, T, F) under the model's name for it, padded with silence on the
    right; and the attention mask (B, T) where the model is told of padding."""
    import torch

    sounds = [example[HEARD] for example in examples]
    longest = max(len(sound) for sound in sounds)
    padded = np.zeros((len(sounds), longest, *sounds[0].shape[1:]), dtype=np.float32)
    mask_BT = np.zeros((len(sounds), longest), dtype=np.int64)
    for place, sound in enumerate(sounds):
        padded[place, : len(sound)] = sound
        mask_BT[place, : len(sound)] = 1
    batch = {name: torch.from_numpy(padded)}
    return {**batch, "attention_mask": torch.from_numpy(mask_BT)} if examples[0][MASKED] else batch
