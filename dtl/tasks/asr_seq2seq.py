"""Speech recognition and translation with an encoder and a decoder: Whisper, Speech2Text."""

# B batch, M mel bands, F frames, T label tokens

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from dtl.config.schema.base import Record
from dtl.core.errors import DtlError, Fault
from dtl.data.example import EncodedExample, Skip
from dtl.data.modalities.audio import find_audio_fault, load_audio, split_audio
from dtl.data.modalities.log_mel import extract_log_mel, frames_to_seconds, pad_log_mel
from dtl.data.modalities.spec_augment import SpecAugment
from dtl.data.modalities.text import (
    decode_reference,
    encode_reference,
    find_text_fault,
    get_text,
)
from dtl.data.padding import pad_sequences
from dtl.losses.cross_entropy import IGNORE_INDEX
from dtl.losses.language_model import score_tokens, sum_token_losses
from dtl.metrics.base import EvalRecord, Metric
from dtl.metrics.error_rates import text_normalizer, transcript_scores, wer_counts, wer_from_counts
from dtl.metrics.perplexity import mean_loss, token_accuracy, token_records
from dtl.models.speech.decoder_prompt import (
    configure_generation,
    configure_prompt,
    generate_texts,
    read_is_multilingual,
)
from dtl.models.speech.seq2seq_processor import (
    Seq2SeqSpeechProcessor,
    max_input_frames,
    spec_augment_settings,
)
from dtl.models.structure.wrappers import unwrap
from dtl.tasks.base import DatasetStats, Encoder, Task

if TYPE_CHECKING:
    from numpy import ndarray
    from numpy.random import Generator
    from torch import Tensor, nn

    from dtl.data.sources.rows import Row

FAMILIES = ("whisper", "speech_to_text")


class Options(Record):
    """Options of `task: asr_seq2seq`."""

    language: str | None = Field(
        None,
        description="Language of the speech, by its code or English name (de, german); for "
        "Speech2Text, that of the text. Models of one language need none.",
    )
    action: Literal["transcribe", "translate"] = Field(
        "transcribe",
        description="Task of a multilingual Whisper: transcribe, or translate into English.",
    )
    max_seconds: float | None = Field(
        None,
        gt=0,
        description="Longer clips are skipped, and counted. Default: what the model reads at once "
        "(Whisper 30 s).",
    )
    min_seconds: float = Field(0.1, ge=0.05, description="Shorter clips are skipped, and counted.")
    max_new_tokens: int = Field(
        225, ge=1, description="Longest generated text in tokens, within the model's positions."
    )
    num_beams: int | None = Field(
        None, ge=1, description="Beams of beam search. Default: the model's own, usually 1."
    )
    spec_augment: bool | None = Field(
        None,
        description="Mask spans of time and bands of frequency in training, as many as the model's "
        "config says. Default: its apply_spec_augment.",
    )
    normalizer_language: str | None = Field(
        None,
        description="Language of the text normalizer for the normalized scores. Default: that of "
        "the texts.",
    )


class Plugin(Task):
    """Teacher forcing; each label token, including language and end, is one target."""

    auto_class = "AutoModelForSpeechSeq2Seq"
    predicts_tokens = True
    required_columns = "`audio` and `text`"
    metric = Metric("wer", higher_is_better=False)
    processor_kind = "processor"
    media_column = "audio"
    supervises_eos = True
    options: Options

    @property
    def evaluation_beams(self) -> int:
        return self.options.num_beams or 1

    def find_row_fault(self, row: Row) -> Fault | None:
        return find_text_fault(row, "text") or find_audio_fault(row)

    def collect_dataset_stats(self, rows: Iterable[Row], base_config: Any) -> DatasetStats:
        """Return what tokenizer and extractor do not know of the base; nothing of the rows."""
        if base_config.model_type not in FAMILIES:
            raise DtlError.of(
                "model.path",
                f"the task does not support {base_config.model_type} models",
                f"use a model of {' or '.join(FAMILIES)}, or task asr_ctc",
            )
        return {
            "start": base_config.decoder_start_token_id,
            "positions": base_config.max_target_positions,
            "frames": max_input_frames(base_config),
            "multilingual": read_is_multilingual(base_config),
            "spec_augment": spec_augment_settings(base_config, is_on=self.options.spec_augment),
        }

    def adapt_processor(
        self, processor: Any, dataset_stats: DatasetStats
    ) -> tuple[Any, DatasetStats]:
        """Return a processor with prompt and SpecAugment, and the language of the texts."""
        if processor.tokenizer is None:
            raise DtlError.of(
                "model.path",
                "the model has no tokenizer",
                "add the files of its tokenizer to the folder of its weights",
            )
        options, augment = self.options, dataset_stats["spec_augment"]
        text_language = configure_prompt(
            processor.tokenizer,
            language=options.language,
            action=options.action,
            multilingual=dataset_stats["multilingual"],
        )
        language = options.normalizer_language or text_language
        text_normalizer(language)  # raises now for an unknown language
        adapted = Seq2SeqSpeechProcessor(
            processor.feature_extractor,
            processor.tokenizer,
            SpecAugment(**augment) if augment else None,
        )
        return adapted, {**dataset_stats, "language": language}

    def head_config(self, dataset_stats: DatasetStats) -> dict[str, Any]:
        """Return a config without LayerDrop, which ZeRO-3 cannot run, and without the model's own
        SpecAugment, whose masks would differ between layouts."""
        no_layerdrop = {"encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}
        if not dataset_stats["spec_augment"]:
            return no_layerdrop
        return {**no_layerdrop, "apply_spec_augment": False}

    def configure_model(self, model: nn.Module, *, processor: Any) -> None:
        configure_generation(model, processor.tokenizer)

    def max_length(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> int:
        """Return the most encoder positions and label tokens together."""
        positions = base_config.max_source_positions
        if base_config.model_type != "whisper":
            positions = -(-dataset_stats["frames"] // 2**base_config.num_conv_layers)
        return int(positions + dataset_stats["positions"])

    def encoder(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> Encoder:
        import numpy as np

        extractor, tokenizer = processor.feature_extractor, processor.tokenizer
        rate, min_seconds = extractor.sampling_rate, self.options.min_seconds
        max_seconds = self._max_seconds(extractor, dataset_stats)
        max_tokens = dataset_stats["positions"]

        def encode(row: Row) -> EncodedExample | Skip:
            text = get_text(row, "text", max_tokens=max_tokens).strip()
            if not text:
                return Skip("empty text")
            samples_T = load_audio(row, sampling_rate=rate)
            if len(samples_T) > max_seconds * rate:
                return Skip(f"longer than {max_seconds:g} s")
            if len(samples_T) < min_seconds * rate:
                return Skip(f"shorter than {min_seconds:g} s")
            labels = target_tokens(text, tokenizer, start=dataset_stats["start"])
            if len(labels) > max_tokens:
                return Skip(f"text of more than {max_tokens} tokens")
            positions = base_config.max_source_positions
            if base_config.model_type != "whisper":
                log_mel = extract_log_mel(samples_T, extractor)
                if not np.isfinite(log_mel.features).all():
                    return Skip("no audible sound")
                positions = -(-log_mel.frames // 2**base_config.num_conv_layers)
            values = {
                "samples": samples_T,
                "labels": labels,
                "reference": encode_reference(text),
            }
            return EncodedExample(values, positions + len(labels), len(labels))

        return encode

    def _max_seconds(self, extractor: Any, dataset_stats: DatasetStats) -> float:
        """Return the longest clip in seconds. Raises DtlError for more than the model reads."""
        limit = frames_to_seconds(dataset_stats["frames"], extractor)
        requested = self.options.max_seconds
        if requested is None:
            return limit
        if requested > limit:
            raise DtlError.of(
                "task.max_seconds",
                f"{requested:g} s are more than the model reads at once ({limit:g} s)",
                f"split longer recordings into clips of up to {limit:g} s, each with its text",
            )
        return requested

    def transform(
        self, values: dict[str, Any], *, processor: Any, rng: Generator | None
    ) -> dict[str, Any]:
        log_mel = extract_log_mel(values["samples"], processor.feature_extractor)
        if rng is not None and processor.augment is not None:
            masked = processor.augment.mask_features(
                log_mel.features, frames=log_mel.frames, rng=rng
            )
            log_mel = replace(log_mel, features=masked)
        return {**values, "log_mel": log_mel}

    def collate(self, examples: list[dict[str, Any]], *, pad_token_id: int) -> dict[str, Tensor]:
        # Not to a multiple of 8: the decoder may have no positions beyond the longest labels.
        labels = [example["labels"] for example in examples]
        return {
            **pad_log_mel([example["log_mel"] for example in examples]),
            "labels": pad_sequences(labels, value=IGNORE_INDEX, multiple=1),
            "reference": pad_sequences(
                [example["reference"] for example in examples], value=IGNORE_INDEX
            ),
        }

    def always_frozen(self, model: nn.Module, *, random_init: bool) -> Iterable[nn.Parameter]:
        """Return the positions of the encoder: Whisper's are sinusoids and not trained."""
        return [
            parameter
            for name, parameter in model.named_parameters()
            if name.endswith("encoder.embed_positions.weight")
        ]

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return sum_token_losses(model, _model_inputs(model, batch), batch["labels"])

    def eval_records(
        self, model: nn.Module, batch: dict[str, Tensor], *, processor: Any
    ) -> list[EvalRecord]:
        scores = score_tokens(model, _model_inputs(model, batch), batch["labels"])
        texts = self._generate(model, batch, processor, None)
        return [
            {**record, "reference": decode_reference(reference), "hypothesis": text}
            for record, reference, text in zip(
                token_records(scores, batch["labels"]),
                batch["reference"].tolist(),
                texts,
                strict=True,
            )
        ]

    def _generate(
        self,
        model: nn.Module,
        batch: dict[str, Tensor],
        processor: Any,
        max_new_tokens: int | None,
    ) -> list[str]:
        return generate_texts(
            unwrap(model),
            {name: batch[name] for name in ("input_features", "attention_mask")},
            processor.tokenizer,
            max_new_tokens=max_new_tokens or self.options.max_new_tokens,
            beams=self.options.num_beams,
        )

    def score(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> dict[str, float]:
        """Return loss (nats a token), token accuracy under teacher forcing, WER and CER."""
        return {
            "loss": mean_loss(records),
            "accuracy": token_accuracy(records),
            **transcript_scores(records, language=dataset_stats["language"]),
        }

    def with_placeholder_target(
        self, fields: dict[str, Any], dataset_stats: DatasetStats
    ) -> dict[str, Any]:
        return {**fields, "text": "a"}

    def chunk_row(self, row: Row, *, processor: Any, dataset_stats: DatasetStats) -> list[Row]:
        """Return a recording longer than the model's input as several, split at pauses."""
        extractor, min_seconds = processor.feature_extractor, self.options.min_seconds
        max_seconds = self._max_seconds(extractor, dataset_stats)
        rate = extractor.sampling_rate
        return split_audio(
            row, sampling_rate=rate, max_seconds=max_seconds, min_seconds=min_seconds
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
        """Return the transcripts or translations."""
        return [
            {"predicted": text} for text in self._generate(model, batch, processor, max_new_tokens)
        ]

    def metric_counts(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> ndarray:
        return wer_counts(records)

    def metric_from_counts(self, counts: ndarray) -> ndarray:
        return wer_from_counts(counts)


def target_tokens(text: str, tokenizer: Any, *, start: int) -> list[int]:
    """Return the labels of the decoder: its prompt and the text, without the start token."""
    labels: list[int] = list(tokenizer(text)["input_ids"])
    return labels[1:] if labels[0] == start else labels


def _model_inputs(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of the model: the inputs of its decoder, and not the labels, of which it
    would compute a loss of its own."""
    from torch.nn.functional import pad

    config: Any = unwrap(model).config
    labels_BT = batch["labels"]
    inputs_BT = pad(labels_BT[:, :-1], (1, 0), value=config.decoder_start_token_id)
    return {
        "input_features": batch["input_features"],
        "attention_mask": batch["attention_mask"],
        "decoder_input_ids": inputs_BT.masked_fill(inputs_BT == IGNORE_INDEX, config.pad_token_id),
        "use_cache": False,
    }
