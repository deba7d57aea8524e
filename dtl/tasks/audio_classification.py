"""One label for a sound: keyword, accent, language, emotion."""

# B batch, T samples or frames, C classes

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from pydantic import Field

from dtl.config.batch_size import COUNTED
from dtl.config.record import Record
from dtl.core.errors import Fault
from dtl.data.example import Encoded, Skip
from dtl.data.labels import label_fault, labels_of, place_of
from dtl.data.modalities.audio import sound_fault, sound_of
from dtl.data.modalities.audio_features import blank, heard, pad_sounds, why_beside
from dtl.models.speech.encoder import (
    fixed_parameters,
    frames_of,
    samples_for,
    without_layerdrop,
    without_masks,
)
from dtl.tasks.base import Classification, DatasetStats

if TYPE_CHECKING:
    import numpy as np
    from numpy.random import Generator
    from torch import Tensor, nn

    from dtl.data.cache.encoded import EncodedData
    from dtl.data.sources.rows import Row


class Options(Record):
    """Options of `task: audio_classification`."""

    labels: tuple[str, ...] | None = Field(
        None, description="The labels in order; left out: those of the training rows, sorted."
    )
    longest_seconds: float = Field(
        20.0,
        gt=0,
        description="Most that is heard of a sound: of a longer one, training hears another part "
        "each time, and scoring the beginning.",
    )
    shortest_seconds: float = Field(
        0.05, ge=0, description="Sounds that are shorter are left out, and counted."
    )


class Plugin(Classification):
    """Single-label classification; each sound is one target."""

    auto_class = "AutoModelForAudioClassification"
    required_columns = "`audio` and `label`"
    processor_kind = "features"
    media_column = "audio"
    options: Options

    def find_row_fault(self, row: Row) -> Fault | None:
        return sound_fault(row) or label_fault(row, self.options.labels)

    def collect_dataset_stats(self, rows: Iterable[Row], base_config: Any) -> DatasetStats:
        """The labels, and what of the base is to be set otherwise."""
        return {
            "labels": labels_of(rows, base_config, self.options.labels),
            "settings": without_layerdrop(base_config) | without_masks(base_config),
        }

    def max_length(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> int:
        return frames_of(round(self.options.longest_seconds * processor.sampling_rate), base_config)

    def encoder(
        self, processor: Any, dataset_stats: DatasetStats, base_config: Any
    ) -> Callable[[Row], Encoded | Skip]:
        places = {label: place for place, label in enumerate(dataset_stats["labels"])}
        rate = processor.sampling_rate
        longest = round(self.options.longest_seconds * rate)
        shortest = max(samples_for(1, base_config), round(self.options.shortest_seconds * rate))

        def encode(row: Row) -> Encoded | Skip:
            place = place_of(row, places)
            samples_T = sound_of(row, rate=rate)
            if len(samples_T) < shortest:
                return Skip(f"shorter than {shortest / rate:g} s")
            values = {"samples": samples_T, "labels": place}
            return Encoded(values, frames_of(min(len(samples_T), longest), base_config), 1)

        return encode

    def example_sizes(self, data: EncodedData, *, processor: Any) -> np.ndarray:
        """Of a longer sound, only a part is heard each time."""
        import numpy as np

        longest = math.ceil(self.options.longest_seconds * COUNTED["seconds"])
        return np.minimum(super().example_sizes(data, processor=processor), longest)

    def transform(
        self, values: dict[str, Any], *, processor: Any, rng: Generator | None
    ) -> dict[str, Any]:
        samples_T = values["samples"]
        longest = round(self.options.longest_seconds * processor.sampling_rate)
        spare = len(samples_T) - longest
        start = int(rng.integers(spare + 1)) if rng is not None and spare > 0 else 0
        shown = heard(samples_T[start : start + longest], processor)
        return {**values, **shown, "name": processor.model_input_names[0]}

    def transform_without_input(self, values: dict[str, Any], *, processor: Any) -> dict[str, Any]:
        longest = round(self.options.longest_seconds * processor.sampling_rate)
        silence = blank(values["samples"][:longest], processor)
        if silence is None:
            return self.transform(values, processor=processor, rng=None)
        return {**values, **silence, "name": processor.model_input_names[0]}

    def uncacheable_reason(self, data: EncodedData, *, processor: Any) -> str | None:
        samples = data.counts("samples")
        longest = round(self.options.longest_seconds * processor.sampling_rate)
        if samples.max() > longest:
            return (
                "training hears another part each time of sounds longer than "
                f"{self.options.longest_seconds:g} s (task.longest_seconds)"
            )
        return why_beside(samples, processor)

    def collate(self, examples: list[dict[str, Any]], *, pad_token_id: int) -> dict[str, Tensor]:
        import torch

        labels = torch.tensor([int(example["labels"]) for example in examples])
        first = examples[0]
        return {**pad_sounds(examples, name=first["name"]), "labels": labels}

    def always_frozen(self, model: nn.Module, *, random_init: bool) -> Iterable[nn.Parameter]:
        return fixed_parameters(model, random=random_init)
