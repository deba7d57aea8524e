"""Speech into text with an encoder and a decoder: Whisper and Speech2Text write, or translate."""

# B batch, M mel bands, F frames, T label tokens, V vocabulary

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from dtl.config.record import Record
from dtl.core.errors import DtlError, Fault
from dtl.data.example import Encoded, Skip
from dtl.data.modalities.audio import as_heard, pieces_of, sound_fault, sound_of
from dtl.data.modalities.spec_augment import SpecAugment
from dtl.metrics.transcripts import counts_of, normaliser, rate_of, speech_scores
from dtl.models.anatomy import unwrapped
from dtl.models.load import SpeechProcessor
from dtl.models.speech.decoder_prompt import (
    generate_texts,
    says_multilingual,
    set_generation,
    set_prompt,
)
from dtl.tasks.base import (
    IGNORE_INDEX,
    DatasetStats,
    EvalRecord,
    Task,
    find_text_fault,
    get_text,
    pad_sequences,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy import ndarray
    from numpy.random import Generator
    from torch import Tensor, nn

    from dtl.data.sources.rows import Row

FAMILIES = ("whisper", "speech_to_text")
MARGIN = 8  # frames of silence after each sound: as far as Speech2Text's convolutions look ahead


class Options(Record):
    """Options of `task: asr_seq2seq`."""

    language: str | None = Field(
        None,
        description="Language that is spoken, by its code or English name (de, german); for "
        "Speech2Text, the one that is written. Models of one language need none.",
    )
    action: Literal["transcribe", "translate"] = Field(
        "transcribe",
        description="What a multilingual Whisper is told to do: transcribe, or translate into "
        "English.",
    )
    longest_seconds: float | None = Field(
        None,
        gt=0,
        description="Longer clips are left out, and counted; left out: what the model hears at "
        "once (Whisper 30 s).",
    )
    shortest_seconds: float = Field(
        0.1, ge=0.05, description="Shorter clips are left out, and counted."
    )
    generate_length: int = Field(
        225, ge=1, description="Longest generated text in tokens, within what the model can write."
    )
    beams: int | None = Field(
        None, ge=1, description="Beams of the search; left out: as the model is set, usually 1."
    )
    spec_augment: bool | None = Field(
        None,
        description="Hide spans of time and bands of frequency in training, as many as the model's "
        "config says; left out: if its config says so (apply_spec_augment).",
    )
    normalise: str | None = Field(
        None,
        description="Language whose text normaliser the normalised scores take; left out: that of "
        "the texts.",
    )


class Plugin(Task):
    """Teacher forcing; each label token, the language's and the end included, is one target."""

    auto_class = "AutoModelForSpeechSeq2Seq"
    required_columns = "`audio` and `text`"
    best = "-wer"
    processor_kind = "speech"
    media_column = "audio"
    supervises_eos = True
    options: Options

    def find_row_fault(self, row: Row) -> Fault | None:
        return find_text_fault(row, "text") or sound_fault(row)

    def collect_dataset_stats(self, rows: Iterable[Row], base_config: Any) -> DatasetStats:
        """Nothing of the rows; of the base, what its tokenizer and extractor do not know."""
        if base_config.model_type not in FAMILIES:
            raise DtlError.of(
                "model.path",
                f"a {base_config.model_type} model is not one that this task knows",
                f"take a model of {' or '.join(FAMILIES)}, or task asr_ctc",
            )
        return {
            "start": base_config.decoder_start_token_id,
            "positions": base_config.max_target_positions,
            "frames": _frames(base_config),
            "multilingual": says_multilingual(base_config),
            "spec_augment": self._spec_augment(base_config),
        }

    def _spec_augment(self, base: Any) -> dict[str, float] | None:
        asked = self.options.spec_augment
        if not (getattr(base, "apply_spec_augment", False) if asked is None else asked):
            return None
        found = SpecAugment.of(base)
        if found is None:
            raise DtlError.of(
                "task.spec_augment",
                f"the config of a {base.model_type} model has no numbers for it",
                "leave the key out",
            )
        return found.as_json()

    def adapt_processor(
        self, processor: Any, dataset_stats: DatasetStats
    ) -> tuple[Any, DatasetStats]:
        """The tokenizer begins its texts as asked; the processor knows what to hide."""
        if processor.tokenizer is None:
            raise DtlError.of(
                "model.path",
                "the model has no tokenizer",
                "put the files of its tokenizer beside its weights",
            )
        options, augment = self.options, dataset_stats["spec_augment"]
        written = set_prompt(
            processor.tokenizer,
            language=options.language,
            action=options.action,
            multilingual=dataset_stats["multilingual"],
        )
        language = options.normalise or written
        normaliser(language)  # so that a language it does not know is told now
        fitted = _Listener(
            processor.feature_extractor,
            processor.tokenizer,
            SpecAugment(**augment) if augment else None,
        )
        return fitted, {**dataset_stats, "language": language}

    def head_config(self, dataset_stats: DatasetStats) -> dict[str, Any]:
        """Whisper's LayerDrop is no match for ZeRO-3, and masks of its own differ by layout."""
        drops = {"encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}
        return {**drops, "apply_spec_augment": False} if dataset_stats["spec_augment"] else drops

    def configure_model(self, model: nn.Module, *, processor: Any) -> None:
        set_generation(model, processor.tokenizer)

    def max_length(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> int:
        """What is heard and what is written, each at its most."""
        heard = base_config.max_source_positions
        if base_config.model_type != "whisper":
            heard = -(-dataset_stats["frames"] // 2**base_config.num_conv_layers)
        return int(heard + dataset_stats["positions"])

    def encoder(
        self, processor: Any, dataset_stats: DatasetStats, base_config: Any
    ) -> Callable[[Row], Encoded | Skip]:
        import numpy as np

        extractor, tokenizer = processor.feature_extractor, processor.tokenizer
        rate, shortest = extractor.sampling_rate, self.options.shortest_seconds
        longest = self._longest(_hears_seconds(extractor, dataset_stats["frames"]))
        most = dataset_stats["positions"]

        def encode(row: Row) -> Encoded | Skip:
            text = get_text(row, "text", max_tokens=most).strip()
            if not text:
                return Skip("empty text")
            samples_T = sound_of(row, rate=rate)
            if len(samples_T) > longest * rate:
                return Skip(f"longer than {longest:g} s")
            if len(samples_T) < shortest * rate:
                return Skip(f"shorter than {shortest:g} s")
            labels = labels_of(text, tokenizer, start=dataset_stats["start"])
            if len(labels) > most:
                return Skip(f"text of more than {most} tokens")
            positions = base_config.max_source_positions
            if base_config.model_type != "whisper":
                found = _features(extractor, samples_T)
                if not np.isfinite(found.features).all():
                    return Skip("nothing to hear")
                positions = -(-found.frames // 2**base_config.num_conv_layers)
            values = {
                "samples": samples_T,
                "labels": labels,
                "reference": np.frombuffer(text.encode(), dtype=np.uint8),
            }
            return Encoded(values, positions + len(labels), len(labels))

        return encode

    def _longest(self, heard: float) -> float:
        """Seconds of the longest clip. Raises DtlError where more is asked for than is heard."""
        asked = self.options.longest_seconds
        if asked is None:
            return heard
        if asked > heard:
            raise DtlError.of(
                "task.longest_seconds",
                f"the model hears {heard:g} s at once, and {asked:g} s are asked for",
                f"cut longer recordings into clips of up to {heard:g} s, each with its text",
            )
        return asked

    def transform(
        self, values: dict[str, Any], *, processor: Any, rng: Generator | None
    ) -> dict[str, Any]:
        heard = _features(processor.feature_extractor, values["samples"])
        if rng is not None and processor.augment is not None:
            shown = processor.augment.masked(heard.features, frames=heard.frames, draw=rng)
            heard = replace(heard, features=shown)
        return {**values, "heard": heard}

    def collate(self, examples: list[dict[str, Any]], *, pad_token_id: int) -> dict[str, Tensor]:
        # By 1 and not by 8: the decoder has no positions beyond those of the longest labels.
        labels = [example["labels"] for example in examples]
        return {
            **_padded([example["heard"] for example in examples]),
            "labels": pad_sequences(labels, value=IGNORE_INDEX, multiple=1),
            "reference": pad_sequences(
                [example["reference"] for example in examples], value=IGNORE_INDEX
            ),
        }

    def always_frozen(self, model: nn.Module, *, random_init: bool) -> Iterable[nn.Parameter]:
        """Whisper's encoder has positions that were computed and not learnt."""
        return [
            parameter
            for name, parameter in model.named_parameters()
            if name.endswith("encoder.embed_positions.weight")
        ]

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return _losses(model, batch)[0].sum()

    def eval_records(
        self, model: nn.Module, batch: dict[str, Tensor], *, processor: Any
    ) -> list[EvalRecord]:
        losses_BT, logits_BTV = _losses(model, batch)
        labels_BT = batch["labels"]
        texts = self._generate(model, batch, processor, None)
        return [
            {
                "loss": loss,
                "targets": targets,
                "hits": hits,
                "reference": bytes(byte for byte in reference if byte != IGNORE_INDEX).decode(),
                "generated": text,
            }
            for loss, targets, hits, reference, text in zip(
                losses_BT.double().sum(1).tolist(),
                (labels_BT != IGNORE_INDEX).sum(1).tolist(),
                (logits_BTV.argmax(-1) == labels_BT).sum(1).tolist(),
                batch["reference"].tolist(),
                texts,
                strict=True,
            )
        ]

    def _generate(
        self, model: nn.Module, batch: dict[str, Tensor], processor: Any, longest: int | None
    ) -> list[str]:
        return generate_texts(
            unwrapped(model),
            {name: batch[name] for name in ("input_features", "attention_mask")},
            processor.tokenizer,
            longest=longest or self.options.generate_length,
            beams=self.options.beams,
        )

    def score(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> dict[str, float]:
        """Loss a token (nats), share of tokens guessed right after the right ones, and the errors
        of the generated texts."""
        targets = sum(outcome["targets"] for outcome in records)
        return {
            "loss": math.fsum(outcome["loss"] for outcome in records) / targets,
            "accuracy": sum(outcome["hits"] for outcome in records) / targets,
            **speech_scores(
                [outcome["reference"] for outcome in records],
                [outcome["generated"] for outcome in records],
                language=dataset_stats["language"],
            ),
        }

    def with_placeholder_target(
        self, fields: dict[str, Any], dataset_stats: DatasetStats
    ) -> dict[str, Any]:
        return {**fields, "text": "a"}

    def chunk_row(self, row: Row, *, processor: Any, dataset_stats: DatasetStats) -> list[Row]:
        """A long recording, cut in pauses into what the model hears at once."""
        extractor, shortest = processor.feature_extractor, self.options.shortest_seconds
        longest = self._longest(_hears_seconds(extractor, dataset_stats["frames"]))
        return pieces_of(row, rate=extractor.sampling_rate, longest=longest, shortest=shortest)

    def predict(
        self,
        model: nn.Module,
        batch: dict[str, Tensor],
        *,
        processor: Any,
        dataset_stats: DatasetStats,
        max_new_tokens: int | None,
    ) -> list[dict[str, Any]]:
        """What is heard."""
        return [
            {"predicted": text} for text in self._generate(model, batch, processor, max_new_tokens)
        ]

    def metric_counts(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> ndarray:
        """Errors by words, and words that were said."""
        return counts_of(
            [outcome["reference"] for outcome in records],
            [outcome["generated"] for outcome in records],
        )

    def metric_from_counts(self, counts: ndarray) -> ndarray:
        return rate_of(counts)


@dataclass
class _Listener(SpeechProcessor):
    """Extractor and tokenizer, and what training hides of the sound."""

    augment: SpecAugment | None


def labels_of(text: str, tokenizer: Any, *, start: int) -> list[int]:
    """What the decoder is to write. It is given its start token, which it need not write; what
    stands before the text after that, such as the language, it must."""
    labels: list[int] = list(tokenizer(text)["input_ids"])
    return labels[1:] if labels[0] == start else labels


def _frames(base: Any) -> int:
    """Frames that the encoder reads at most; Whisper's reads no fewer either."""
    layers = 2 if base.model_type == "whisper" else 2**base.num_conv_layers
    return int(base.max_source_positions * layers)


def _hears_seconds(extractor: Any, frames: int) -> float:
    """Raises DtlError where the extractor's frames are not as many as the model reads."""
    made = getattr(extractor, "nb_max_frames", None)
    if made is not None and made != frames:
        raise DtlError.of(
            "model.path",
            f"its feature extractor makes {made} frames, and the model reads {frames}",
            "correct chunk_length in its preprocessor_config.json",
        )
    hop = getattr(extractor, "hop_length", extractor.sampling_rate // 100)
    return frames * hop / float(extractor.sampling_rate)


@dataclass(frozen=True)
class _Heard:
    """Log-mel features, (M, F) for Whisper, which always hears as much, and (F, M) for Speech2Text.
    `frames`: those that hold sound, before silence."""

    features: np.ndarray
    frames: int
    always_as_long: bool


def _features(extractor: Any, samples_T: np.ndarray) -> _Heard:
    import numpy as np

    with np.errstate(divide="ignore", invalid="ignore"):  # of silence, which has no variance
        found = extractor(
            as_heard(samples_T),
            sampling_rate=extractor.sampling_rate,
            return_attention_mask=True,
            return_tensors="np",
        )
    return _Heard(
        found["input_features"][0],
        int(found["attention_mask"][0].sum()),
        hasattr(extractor, "nb_max_frames"),
    )


def _padded(heard: list[_Heard]) -> dict[str, Tensor]:
    """Features and which of their frames hold sound."""
    import numpy as np
    import torch

    features = [one.features for one in heard]
    if heard[0].always_as_long:
        width = features[0].shape[1]
    else:
        width = -(-(max(map(len, features)) + MARGIN) // 8) * 8
        features = [np.pad(rows, ((0, width - len(rows)), (0, 0))) for rows in features]
    ends_B1 = torch.tensor([[one.frames] for one in heard])
    return {
        "input_features": torch.from_numpy(np.stack(features)),
        "attention_mask": (torch.arange(width) < ends_B1).long(),
    }


def _losses(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Loss of each label token (B, T), 0 where it is padded, and the logits (B, T, V).

    The model is given what its decoder reads, and not the labels: it would take a loss of its own,
    which needs the logits in fp32 once more.
    """
    from torch.nn.functional import cross_entropy, pad

    settings: Any = unwrapped(model).config
    labels_BT = batch["labels"]
    read_BT = pad(labels_BT[:, :-1], (1, 0), value=settings.decoder_start_token_id)
    logits_BTV = model(
        input_features=batch["input_features"],
        attention_mask=batch["attention_mask"],
        decoder_input_ids=read_BT.masked_fill(read_BT == IGNORE_INDEX, settings.pad_token_id),
        use_cache=False,
    ).logits
    losses_BT = cross_entropy(
        logits_BTV.flatten(0, 1).float(),
        labels_BT.flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="none",
    ).view(labels_BT.shape)
    return losses_BT, logits_BTV
