"""Audio classification: a class, labels or numbers for a recording, such as keyword or emotion."""

# B batch, T samples or frames

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pydantic import Field

from dtl.config.schema.batch_size import COUNTS_PER_UNIT
from dtl.core.errors import Fault
from dtl.data.example import EncodedExample, Skip
from dtl.data.modalities.audio import find_audio_fault, load_audio
from dtl.data.modalities.audio_features import (
    blank_features,
    explain_batch_dependence,
    extract_features,
    pad_audio,
)
from dtl.models.speech.encoder import (
    always_frozen_parameters,
    count_frames,
    get_layerdrop_overrides,
    get_spec_augment_overrides,
    min_samples,
)
from dtl.tasks._classification import Classification, LabelOptions
from dtl.tasks.base import DatasetStats, Encoder

if TYPE_CHECKING:
    import numpy as np
    from numpy.random import Generator
    from torch import Tensor, nn

    from dtl.data.cache.encoded import EncodedData
    from dtl.data.sources.rows import Row


class Options(LabelOptions):
    """Options of `task: audio_classification`."""

    max_seconds: float = Field(
        20.0,
        gt=0,
        description="Longest input. Of a longer recording, training reads another random part in "
        "each epoch, and scoring the beginning.",
    )
    min_seconds: float = Field(
        0.05, ge=0, description="Shorter recordings are skipped, and counted."
    )


class Plugin(Classification):
    """Classification or regression of recordings."""

    auto_class = "AutoModelForAudioClassification"
    required_columns = "`audio` and `label`"
    processor_kind = "feature_extractor"
    media_column = "audio"
    options: Options

    def find_row_fault(self, row: Row) -> Fault | None:
        return find_audio_fault(row) or self.head.find_fault(row)

    def collect_dataset_stats(self, rows: Iterable[Row], base_config: Any) -> DatasetStats:
        """Return the labels, and changes to the base's config."""
        return {
            **self.head.collect_stats(rows, base_config),
            "settings": get_layerdrop_overrides(base_config)
            | get_spec_augment_overrides(base_config),
        }

    def max_length(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> int:
        return count_frames(round(self.options.max_seconds * processor.sampling_rate), base_config)

    def encoder(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> Encoder:
        encode_target = self.head.target_encoder(dataset_stats)
        rate = processor.sampling_rate
        max_samples = round(self.options.max_seconds * rate)
        fewest_samples = max(min_samples(1, base_config), round(self.options.min_seconds * rate))

        def encode(row: Row) -> EncodedExample | Skip:
            target = encode_target(row)
            samples_T = load_audio(row, sampling_rate=rate)
            if len(samples_T) < fewest_samples:
                return Skip(f"shorter than {fewest_samples / rate:g} s")
            length = count_frames(min(len(samples_T), max_samples), base_config)
            return EncodedExample({"samples": samples_T, **target.values}, length, target.count)

        return encode

    def example_sizes(self, data: EncodedData, *, processor: Any) -> np.ndarray:
        """Return milliseconds (N,); of a longer recording only a part is read each time."""
        import numpy as np

        max_milliseconds = math.ceil(self.options.max_seconds * COUNTS_PER_UNIT["seconds"])
        return np.minimum(super().example_sizes(data, processor=processor), max_milliseconds)

    def transform(
        self, values: dict[str, Any], *, processor: Any, rng: Generator | None
    ) -> dict[str, Any]:
        samples_T = values["samples"]
        max_samples = round(self.options.max_seconds * processor.sampling_rate)
        spare = len(samples_T) - max_samples
        start = int(rng.integers(spare + 1)) if rng is not None and spare > 0 else 0
        features = extract_features(samples_T[start : start + max_samples], processor)
        return {**values, **features, "name": processor.model_input_names[0]}

    def transform_without_input(self, values: dict[str, Any], *, processor: Any) -> dict[str, Any]:
        max_samples = round(self.options.max_seconds * processor.sampling_rate)
        silence = blank_features(values["samples"][:max_samples], processor)
        if silence is None:
            return self.transform(values, processor=processor, rng=None)
        return {**values, **silence, "name": processor.model_input_names[0]}

    def uncacheable_reason(self, data: EncodedData, *, processor: Any) -> str | None:
        samples = data.count_values("samples")
        max_samples = round(self.options.max_seconds * processor.sampling_rate)
        if samples.max() > max_samples:
            return (
                "training reads another random part in each epoch of recordings longer than "
                f"{self.options.max_seconds:g} s (task.max_seconds)"
            )
        return explain_batch_dependence(samples, processor)

    def collate(self, examples: list[dict[str, Any]], *, pad_token_id: int) -> dict[str, Tensor]:
        return {**pad_audio(examples, name=examples[0]["name"]), **self.head.collate(examples)}

    def always_frozen(self, model: nn.Module, *, random_init: bool) -> Iterable[nn.Parameter]:
        return always_frozen_parameters(model, random_init=random_init)
