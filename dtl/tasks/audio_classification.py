"""Audio classification: one label for a recording, such as keyword, accent, language, emotion."""

# B batch, T samples or frames, C classes

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pydantic import Field

from dtl.config.schema.base import Record
from dtl.config.schema.batch_size import COUNTS_PER_UNIT
from dtl.core.errors import Fault
from dtl.data.example import EncodedExample, Skip
from dtl.data.labels import collect_labels, find_label_fault, get_label_index
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
from dtl.tasks.base import Classification, DatasetStats, Encoder

if TYPE_CHECKING:
    import numpy as np
    from numpy.random import Generator
    from torch import Tensor, nn

    from dtl.data.cache.encoded import EncodedData
    from dtl.data.sources.rows import Row


class Options(Record):
    """Options of `task: audio_classification`."""

    labels: tuple[str, ...] | None = Field(
        None, description="The labels in order. Default: those of the training rows, sorted."
    )
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
    """Single-label classification; each recording is one target."""

    auto_class = "AutoModelForAudioClassification"
    required_columns = "`audio` and `label`"
    processor_kind = "feature_extractor"
    media_column = "audio"
    options: Options

    def find_row_fault(self, row: Row) -> Fault | None:
        return find_audio_fault(row) or find_label_fault(row, self.options.labels)

    def collect_dataset_stats(self, rows: Iterable[Row], base_config: Any) -> DatasetStats:
        """Return the labels, and changes to the base's config."""
        return {
            "labels": collect_labels(rows, base_config, self.options.labels),
            "settings": get_layerdrop_overrides(base_config)
            | get_spec_augment_overrides(base_config),
        }

    def max_length(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> int:
        return count_frames(round(self.options.max_seconds * processor.sampling_rate), base_config)

    def encoder(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> Encoder:
        class_indices = {label: index for index, label in enumerate(dataset_stats["labels"])}
        rate = processor.sampling_rate
        max_samples = round(self.options.max_seconds * rate)
        fewest_samples = max(min_samples(1, base_config), round(self.options.min_seconds * rate))

        def encode(row: Row) -> EncodedExample | Skip:
            class_index = get_label_index(row, class_indices)
            samples_T = load_audio(row, sampling_rate=rate)
            if len(samples_T) < fewest_samples:
                return Skip(f"shorter than {fewest_samples / rate:g} s")
            values = {"samples": samples_T, "labels": class_index}
            return EncodedExample(
                values, count_frames(min(len(samples_T), max_samples), base_config), 1
            )

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
        import torch

        labels = torch.tensor([int(example["labels"]) for example in examples])
        return {**pad_audio(examples, name=examples[0]["name"]), "labels": labels}

    def always_frozen(self, model: nn.Module, *, random_init: bool) -> Iterable[nn.Parameter]:
        return always_frozen_parameters(model, random_init=random_init)
