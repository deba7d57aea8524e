"""SpecAugment: spans of time and bands of frequency that a model must do without (Park et al. 2019,
arXiv:1904.08779)."""

# M mel bands, T frames

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import numpy as np
    from numpy.random import Generator


@dataclass(frozen=True)
class SpecAugment:
    """As transformers' configs have it. `..._prob`: the share that spans cover, were there no
    overlap; `..._length`: of a span, in frames or bands."""

    mask_time_prob: float
    mask_time_length: int
    mask_time_min_masks: int
    mask_feature_prob: float
    mask_feature_length: int
    mask_feature_min_masks: int

    @classmethod
    def from_config(cls, config: Any) -> Self | None:
        """What a model's config says; None where it has no such numbers."""
        names = cls.__dataclass_fields__
        if not all(hasattr(config, name) for name in names):
            return None
        return cls(**{name: getattr(config, name) for name in names})

    def mask_features(self, features_MT: np.ndarray, *, frames: int, rng: Generator) -> np.ndarray:
        """A copy with spans of 0 among the first `frames` frames, which hold the sound."""
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
        return asdict(self)


def draw_span_starts(
    size: int, *, fraction: float, length: int, min_spans: int, rng: Generator
) -> list[int]:
    """Where spans of `length` begin, no two at one place; none where not even one fits."""
    positions = size - length + 1
    if fraction <= 0 or positions < 1:
        return []
    count = max(int(fraction * size / length + rng.random()), min_spans)
    return [
        int(start) for start in rng.choice(positions, min(count, positions, size // length), False)
    ]
