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
    def of(cls, settings: Any) -> Self | None:
        """What a model's config says; None where it has no such numbers."""
        names = cls.__dataclass_fields__
        if not all(hasattr(settings, name) for name in names):
            return None
        return cls(**{name: getattr(settings, name) for name in names})

    def masked(self, features_MT: np.ndarray, *, frames: int, draw: Generator) -> np.ndarray:
        """A copy with spans of 0 among the first `frames` frames, which hold the sound."""
        features_MT = features_MT.copy()
        for start in spans(
            frames,
            share=self.mask_time_prob,
            length=self.mask_time_length,
            least=self.mask_time_min_masks,
            draw=draw,
        ):
            features_MT[:, start : start + self.mask_time_length] = 0
        for start in spans(
            features_MT.shape[0],
            share=self.mask_feature_prob,
            length=self.mask_feature_length,
            least=self.mask_feature_min_masks,
            draw=draw,
        ):
            features_MT[start : start + self.mask_feature_length] = 0
        return features_MT

    def as_json(self) -> dict[str, float]:
        return asdict(self)


def spans(size: int, *, share: float, length: int, least: int, draw: Generator) -> list[int]:
    """Where spans of `length` begin, no two at one place; none where not even one fits."""
    places = size - length + 1
    if share <= 0 or places < 1:
        return []
    count = max(int(share * size / length + draw.random()), least)
    return [int(start) for start in draw.choice(places, min(count, places, size // length), False)]
