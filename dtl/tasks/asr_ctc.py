"""Speech recognition by CTC: wav2vec2, HuBERT, WavLM, wav2vec2-BERT and MMS."""

# B batch, T samples or features, F frames, L labels, V vocabulary

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from dtl.config.schema.base import Record
from dtl.core.errors import Fault
from dtl.data.example import EncodedExample, Skip
from dtl.data.modalities.audio import find_audio_fault, load_audio, split_audio
from dtl.data.modalities.audio_features import (
    AUDIO_FEATURES,
    blank_features,
    explain_batch_dependence,
    extract_features,
    pad_audio,
)
from dtl.data.modalities.spec_augment import draw_span_starts
from dtl.data.modalities.text import (
    MAX_TEXT_CHARACTERS,
    decode_reference,
    encode_reference,
    find_text_fault,
)
from dtl.data.modalities.text_normalization import (
    Normalization,
    count_characters,
    create_text_normalizer,
)
from dtl.data.padding import pad_sequences
from dtl.losses.cross_entropy import IGNORE_INDEX
from dtl.losses.ctc import ctc_losses, min_frames
from dtl.metrics.base import EvalRecord, Metric
from dtl.metrics.error_rates import transcript_scores, wer_counts, wer_from_counts
from dtl.metrics.perplexity import mean_loss
from dtl.models.speech import ctc_vocabulary
from dtl.models.speech.ctc_processor import (
    adapt_ctc_processor,
    ctc_head_config,
    time_mask_settings,
)
from dtl.models.speech.encoder import (
    always_frozen_parameters,
    count_ctc_frames,
    count_frames,
    count_input_frames,
    get_layerdrop_overrides,
    min_samples,
)
from dtl.models.structure.wrappers import unwrap
from dtl.tasks.base import DatasetStats, Encoder, Task

if TYPE_CHECKING:
    from numpy import ndarray
    from numpy.random import Generator
    from torch import Tensor, nn

    from dtl.data.cache.encoded import EncodedData
    from dtl.data.sources.rows import Row

ENGLISH = ("en", "eng", "english")
PROBE_LENGTHS = (4_000, 16_001, 99_999)  # samples; their frame counts identify the convolutions


class Options(Record):
    """Options of `task: asr_ctc`."""

    language: str | None = Field(
        None,
        description="Language of the texts. MMS needs it, as an ISO 639-3 code (swh, eng). English "
        "has its own text normalizer for the normalized scores.",
    )
    vocabulary: Literal["data", "model"] | None = Field(
        None,
        description="Characters of the output: the model's own, or those of the training rows, "
        "with a new head. Default: the model's own where it has a tokenizer and a head.",
    )
    text_normalization: Normalization = Field(
        "basic",
        description="Normalization of the training texts: basic (one case, no punctuation) or none "
        "(as written). Scores compare with the texts as written, and both normalized.",
    )
    min_seconds: float = Field(
        0.1, ge=0, description="Shorter clips are skipped, and counted, also in scoring."
    )
    max_seconds: float = Field(
        20.0, gt=0, description="Longer clips are skipped, and counted, also in scoring."
    )
    train_feature_encoder: bool = Field(
        False, description="Train also the convolutions that turn samples into frames."
    )
    mask_time_prob: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="SpecAugment: share of the frames that training masks. Default: that of the "
        "model's config. Bands of features are not masked.",
    )
    mask_time_length: int | None = Field(
        None,
        ge=1,
        description="SpecAugment: frames of a masked span. Default: that of the model's config.",
    )


class Plugin(Task):
    """Connectionist temporal classification; each label is one target, so that the mean loss is in
    nats a character."""

    auto_class = "AutoModelForCTC"
    required_columns = "`audio` and `text`"
    metric = Metric("wer", higher_is_better=False)
    single_forward = True
    learning_rate_below_new_head = 3e-4  # as in transformers' examples of CTC
    processor_kind = "processor"
    media_column = "audio"
    options: Options

    def find_row_fault(self, row: Row) -> Fault | None:
        return find_text_fault(row, "text") or find_audio_fault(row)

    def collect_dataset_stats(self, rows: Iterable[Row], base_config: Any) -> DatasetStats:
        """Return the characters of the normalized training rows, and what the base has."""
        normalize = create_text_normalizer(self.options.text_normalization)
        architectures = getattr(base_config, "architectures", None) or []
        return {
            "characters": count_characters(normalize(_text(row)) for row in rows),
            "has_head": any(name.endswith("ForCTC") for name in architectures),
            "head_size": getattr(base_config, "vocab_size", None),
            "mask": time_mask_settings(
                base_config,
                fraction=self.options.mask_time_prob,
                length=self.options.mask_time_length,
            ),
            "settings": get_layerdrop_overrides(base_config),
            "frame_counts": [
                count_ctc_frames(count_frames(samples, base_config), base_config)
                for samples in PROBE_LENGTHS
            ],
            "has_language_adapters": getattr(base_config, "adapter_attn_dim", None) is not None,
        }

    def adapt_processor(
        self, processor: Any, dataset_stats: DatasetStats
    ) -> tuple[Any, DatasetStats]:
        """Return the processor with the tokenizer of the vocabulary, and the stats of its head."""
        return adapt_ctc_processor(
            processor,
            dataset_stats,
            vocabulary=self.options.vocabulary,
            language=self.options.language,
        )

    def head_config(self, dataset_stats: DatasetStats) -> dict[str, Any]:
        return ctc_head_config(dataset_stats)

    def max_length(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> int:
        extractor = processor.feature_extractor
        samples = int(self.options.max_seconds * extractor.sampling_rate)
        return count_input_frames(samples, base_config, extractor)

    def encoder(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> Encoder:
        extractor, tokenizer = processor.feature_extractor, processor.tokenizer
        normalize = create_text_normalizer(
            self.options.text_normalization, case=dataset_stats["case"]
        )
        rate, max_seconds = extractor.sampling_rate, self.options.max_seconds
        min_seconds = max(self.options.min_seconds, min_samples(1, base_config) / rate)

        def encode(row: Row) -> EncodedExample | Skip:
            text = _text(row)
            labels = ctc_vocabulary.encode_labels(normalize(text), tokenizer)
            if not labels:
                return Skip("no characters in the text")
            samples_T = load_audio(row, sampling_rate=rate)
            if len(samples_T) > max_seconds * rate:
                return Skip(f"longer than {max_seconds:g} s")
            input_frames = count_input_frames(len(samples_T), base_config, extractor)
            frames = count_ctc_frames(input_frames, base_config)
            if len(samples_T) < min_seconds * rate or frames < 1:
                return Skip(f"shorter than {min_seconds:g} s")
            if frames < min_frames(labels):
                return Skip("more characters than frames")
            values = {
                "samples": samples_T,
                "labels": labels,
                "input_frames": input_frames,
                "frames": frames,
                "reference": encode_reference(" ".join(text.split())),
            }
            return EncodedExample(values, input_frames, len(labels))

        return encode

    def transform(
        self, values: dict[str, Any], *, processor: Any, rng: Generator | None
    ) -> dict[str, Any]:
        import numpy as np

        extractor, mask = processor.feature_extractor, processor.mask
        input_frames = values["input_frames"]
        features = extract_features(values["samples"], extractor)
        name = extractor.model_input_names[0]
        if name != "input_values":  # drop a last frame that is half padding
            features[AUDIO_FEATURES] = features[AUDIO_FEATURES][:input_frames]
        time_mask_F = np.zeros(input_frames, dtype=bool)
        if rng is not None:
            for start in draw_span_starts(**mask, size=input_frames, rng=rng):
                time_mask_F[start : start + mask["length"]] = True
        return {**values, **features, "name": name, "time_mask": time_mask_F}

    def transform_without_input(self, values: dict[str, Any], *, processor: Any) -> dict[str, Any]:
        import numpy as np

        extractor = processor.feature_extractor
        silence = blank_features(values["samples"], extractor)
        if silence is None:
            return self.transform(values, processor=processor, rng=None)
        time_mask_F = np.zeros(values["input_frames"], dtype=bool)
        return {
            **values,
            **silence,
            "name": extractor.model_input_names[0],
            "time_mask": time_mask_F,
        }

    def uncacheable_reason(self, data: EncodedData, *, processor: Any) -> str | None:
        """Return a reason only for padding: in evaluation mode the base masks nothing."""
        return explain_batch_dependence(data.count_values("samples"), processor.feature_extractor)

    def collate(self, examples: list[dict[str, Any]], *, pad_token_id: int) -> dict[str, Tensor]:
        import torch

        padded = {
            name: pad_sequences([example[name] for example in examples], value=IGNORE_INDEX)
            for name in ("labels", "reference")
        }
        return {
            **pad_audio(examples, name=examples[0]["name"]),
            **padded,
            "frames": torch.tensor([int(example["frames"]) for example in examples]),
            "time_mask": pad_sequences(
                [example["time_mask"] for example in examples], value=0, multiple=1
            )
            > 0,
        }

    def always_frozen(self, model: nn.Module, *, random_init: bool) -> Iterable[nn.Parameter]:
        return always_frozen_parameters(
            model, random_init=random_init or self.options.train_feature_encoder
        )

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return _losses(model, _logits(model, batch), batch).sum()

    def eval_records(
        self, model: nn.Module, batch: dict[str, Tensor], *, processor: Any
    ) -> list[EvalRecord]:
        logits_BFV = _logits(model, batch)
        return [
            {
                "loss": loss,
                "targets": targets,
                "reference": decode_reference(reference),
                "hypothesis": text,
            }
            for loss, targets, reference, text in zip(
                _losses(model, logits_BFV, batch).tolist(),
                (batch["labels"] != IGNORE_INDEX).sum(1).tolist(),
                batch["reference"].tolist(),
                ctc_vocabulary.decode_greedily(logits_BFV, batch, processor.tokenizer),
                strict=True,
            )
        ]

    def score(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> dict[str, float]:
        """Return loss (nats a character), WER and CER."""
        language = "en" if self.options.language in ENGLISH else None
        return {"loss": mean_loss(records), **transcript_scores(records, language=language)}

    def with_placeholder_target(
        self, fields: dict[str, Any], dataset_stats: DatasetStats
    ) -> dict[str, Any]:
        return {**fields, "text": dataset_stats["placeholder"]}

    def chunk_row(self, row: Row, *, processor: Any, dataset_stats: DatasetStats) -> list[Row]:
        """Return a recording longer than a training clip as several, split at pauses."""
        rate, options = processor.feature_extractor.sampling_rate, self.options
        return split_audio(
            row,
            sampling_rate=rate,
            max_seconds=options.max_seconds,
            min_seconds=options.min_seconds,
        )

    def predict(
        self,
        model: nn.Module,
        batch: dict[str, Tensor],
        *,
        processor: Any,
        dataset_stats: DatasetStats,
        max_new_tokens: int | None,
    ) -> list[dict[str, Any]]:
        """Return the transcripts."""
        return [
            {"predicted": text}
            for text in ctc_vocabulary.decode_greedily(
                _logits(model, batch), batch, processor.tokenizer
            )
        ]

    def metric_counts(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> ndarray:
        return wer_counts(records)

    def metric_from_counts(self, counts: ndarray) -> ndarray:
        return wer_from_counts(counts)


def _text(row: Row) -> str:
    return str(row.fields["text"])[:MAX_TEXT_CHARACTERS]


def _logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the logits of each frame (B, F, V), fp32.

    The masks of SpecAugment come with the batch, so that they are the same on every layout.
    """
    from torch.nn.functional import pad

    name = next(name for name in ("input_values", "input_features") if name in batch)
    inputs = {key: batch[key] for key in (name, "attention_mask") if key in batch}
    settings: Any = unwrap(model).config
    if unwrap(model).training and settings.mask_time_prob > 0:
        length = batch[name].shape[1]
        frames = count_input_frames(length, settings, None) if name == "input_values" else length
        time_mask_BF = batch["time_mask"]
        inputs["mask_time_indices"] = pad(time_mask_BF, (0, frames - time_mask_BF.shape[1]))
    logits: Tensor = model(**inputs).logits
    return logits.float()


def _losses(model: nn.Module, logits_BFV: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Return the loss of each example (B,), fp32."""
    config: Any = unwrap(model).config
    return ctc_losses(logits_BFV, batch["labels"], batch["frames"], blank=config.pad_token_id)
