"""Log-mel features of Whisper and Speech2Text, padded to one batch."""

# B batch, M mel bands, F frames, T samples

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dtl.core.errors import DtlError
from dtl.data.modalities.audio import to_float32

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

MARGIN = 8  # silent frames after each clip: as far as Speech2Text's convolutions look ahead


@dataclass(frozen=True)
class LogMel:
    """Log-mel features, float32: (M, F) of a fixed length for Whisper, (F, M) for Speech2Text.

    `frames`: those with audio, before silence.
    """

    features: np.ndarray
    frames: int
    has_fixed_length: bool


def extract_log_mel(samples_T: np.ndarray, extractor: Any) -> LogMel:
    """Return the features of 16-bit samples."""
    import numpy as np

    with np.errstate(divide="ignore", invalid="ignore"):  # silence has no variance
        output = extractor(
            to_float32(samples_T),
            sampling_rate=extractor.sampling_rate,
            return_attention_mask=True,
            return_tensors="np",
        )
    return LogMel(
        output["input_features"][0],
        int(output["attention_mask"][0].sum()),
        hasattr(extractor, "nb_max_frames"),
    )


def pad_log_mel(clips: list[LogMel]) -> dict[str, Tensor]:
    """Return input_features (B, M, F) or (B, F, M), float32, and attention_mask (B, F), int64."""
    import numpy as np
    import torch

    features = [clip.features for clip in clips]
    if clips[0].has_fixed_length:
        width = features[0].shape[1]
    else:
        width = -(-(max(map(len, features)) + MARGIN) // 8) * 8
        features = [np.pad(rows, ((0, width - len(rows)), (0, 0))) for rows in features]
    ends_B1 = torch.tensor([[clip.frames] for clip in clips])
    return {
        "input_features": torch.from_numpy(np.stack(features)),
        "attention_mask": (torch.arange(width) < ends_B1).long(),
    }


def frames_to_seconds(frames: int, extractor: Any) -> float:
    """Return the seconds of audio in the frames that the model reads at once.

    Raises DtlError where the extractor makes another number of frames.
    """
    made = getattr(extractor, "nb_max_frames", None)
    if made is not None and made != frames:
        raise DtlError.of(
            "model.path",
            f"the feature extractor makes {made} frames, and the model reads {frames}",
            "correct chunk_length in its preprocessor_config.json",
        )
    hop = getattr(extractor, "hop_length", extractor.sampling_rate // 100)
    return frames * hop / float(extractor.sampling_rate)
