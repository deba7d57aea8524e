"""SpecAugment: random masks over time and frequency (Park et al. 2019, arXiv:1904.08779)."""

# M mel bands, T frames

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import numpy as np
    from numpy.random import Generator


@dataclass(frozen=True)
class SpecAugment:
    """The SpecAugment settings of transformers' configs. `..._prob`: the fraction that masks would
    cover without overlap; `..._length`: the length of a mask, in frames or bands."""

    mask_time_prob: float
    mask_time_length: int
    mask_time_min_masks: int
    mask_feature_prob: float
    mask_feature_length: int
    mask_feature_min_masks: int

    @classmethod
    def from_config(cls, config: Any) -> Self | None:
        """Return the settings of a model's config; None if it has none."""
        names = cls.__dataclass_fields__
        if not all(hasattr(config, name) for name in names):
            return None
        return cls(**{name: getattr(config, name) for name in names})

    def mask_features(self, features_MT: np.ndarray, *, frames: int, rng: Generator) -> np.ndarray:
        """Return a copy (M, T) with masks of zeros in the first `frames` frames, those of audio."""
        features_MT = features_MT.copy()
        for start in draw_span_starts(
            frames,
            fraction=self.mask_time_prob,
            length=self.mask_time_length,
            min_spans=self.mask_time_min_masks,
            rng=rng,
        ):
            features_MT[:, start : start + self.mask_time_length] = 0
        for start in draw_span_starts(
            features_MT.shape[0],
            fraction=self.mask_feature_prob,
            length=self.mask_feature_length,
            min_spans=self.mask_feature_min_masks,
            rng=rng,
        ):
            features_MT[start : start + self.mask_feature_length] = 0
        return features_MT

    def to_dict(self) -> dict[str, float]:
        """Return the settings as JSON values."""
        return asdict(self)


def draw_span_starts(
    size: int, *, fraction: float, length: int, min_spans: int, rng: Generator
) -> list[int]:
    """Return distinct start positions of spans of `length`; empty if not even one fits."""
    positions = size - length + 1
    if fraction <= 0 or positions < 1:
        return []
    count = max(int(fraction * size / length + rng.random()), min_spans)
    return [
        int(start) for start in rng.choice(positions, min(count, positions, size // length), False)
    ]
