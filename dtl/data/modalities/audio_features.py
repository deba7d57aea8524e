"""Audio features: extracted by a model's feature extractor, padded to one batch."""

# B batch, T samples or frames, F features of a frame

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dtl.data.modalities.audio import to_float32

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

AUDIO_FEATURES, USES_MASK = "audio_features", "uses_mask"


def extract_features(samples_T: np.ndarray, extractor: Any) -> dict[str, Any]:
    """Return the features of one recording, float32: `audio_features`, (T,) or (T, F), and
    `uses_mask`: whether the model takes an attention mask for padding. Models that were pretrained
    without a mask are used without one."""
    import numpy as np

    name = extractor.model_input_names[0]
    features = extractor(
        to_float32(samples_T), sampling_rate=extractor.sampling_rate, return_tensors="np"
    )[name][0]
    return {
        AUDIO_FEATURES: np.asarray(features, dtype=np.float32),
        USES_MASK: _uses_attention_mask(extractor),
    }


def blank_features(samples_T: np.ndarray, extractor: Any) -> dict[str, Any] | None:
    """Return silence instead of the output of `extract_features`; None if the extractor outputs a
    spectrogram, whose length is not known without extracting it."""
    import numpy as np

    if not _outputs_waveform(extractor):
        return None
    return {
        AUDIO_FEATURES: np.zeros(len(samples_T), dtype=np.float32),
        USES_MASK: _uses_attention_mask(extractor),
    }


def explain_batch_dependence(sample_counts: np.ndarray, extractor: Any) -> str | None:
    """Return why a model's output for a recording depends on the others in its batch, or None.
    `sample_counts`: the number of samples of each recording, shape (N,)."""
    if (
        _uses_attention_mask(extractor)
        or not _outputs_waveform(extractor)
        or (sample_counts == sample_counts[0]).all()
    ):
        return None
    return (
        "recordings differ in length and the base was pretrained without an attention mask, so "
        "that its output for one depends on the others in the batch"
    )


def _outputs_waveform(extractor: Any) -> bool:
    """Return whether the extractor outputs a waveform and not a spectrogram."""
    has_input_values = extractor.model_input_names[0] == "input_values"
    # AST uses the same name for its spectrogram.
    return has_input_values and not hasattr(extractor, "num_mel_bins")


def _uses_attention_mask(extractor: Any) -> bool:
    return bool(getattr(extractor, "return_attention_mask", False))


def pad_audio(examples: list[dict[str, Any]], *, name: str) -> dict[str, Tensor]:
    """Return the features (B, T) or (B, T, F) float32 under the model's name for them, padded with
    zeros on the right, and the attention mask (B, T) int64 if the model takes one."""
    import numpy as np
    import torch

    features = [example[AUDIO_FEATURES] for example in examples]
    longest = max(map(len, features))
    padded = np.zeros((len(features), longest, *features[0].shape[1:]), dtype=np.float32)
    mask_BT = np.zeros((len(features), longest), dtype=np.int64)
    for index, values in enumerate(features):
        padded[index, : len(values)] = values
        mask_BT[index, : len(values)] = 1
    batch = {name: torch.from_numpy(padded)}
    if examples[0][USES_MASK]:
        batch["attention_mask"] = torch.from_numpy(mask_BT)
    return batch
