"""Speech into text, letter by letter: wav2vec2, HuBERT, WavLM, wav2vec2-BERT and MMS by CTC."""

# B batch, T samples or features, F frames, L labels, V vocabulary

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from dtl.config.record import Record
from dtl.core.errors import DtlError, Fault
from dtl.data.example import Encoded, Skip
from dtl.data.modalities.audio import pieces_of, sound_fault, sound_of
from dtl.data.modalities.audio_features import HEARD, blank, heard, pad_sounds, why_beside
from dtl.data.modalities.spec_augment import spans
from dtl.data.modalities.spelling import How, case_of, count_characters, speller
from dtl.metrics.transcripts import counts_of, rate_of, speech_scores
from dtl.models.anatomy import unwrapped
from dtl.models.load import SpeechProcessor
from dtl.models.speech import ctc_vocabulary as letters
from dtl.models.speech.encoder import (
    ctc_frames,
    fixed_parameters,
    frames_of,
    frames_read,
    samples_for,
    without_layerdrop,
)
from dtl.tasks.base import (
    IGNORE_INDEX,
    MAX_TEXT_CHARACTERS,
    DatasetStats,
    EvalRecord,
    Task,
    find_text_fault,
    pad_sequences,
)

if TYPE_CHECKING:
    from numpy import ndarray
    from numpy.random import Generator
    from torch import Tensor, nn

    from dtl.data.cache.encoded import EncodedData
    from dtl.data.sources.rows import Row

MOST_UNKNOWN = 0.1  # of the characters of the training rows, in a vocabulary that nobody asked for
ENGLISH = ("en", "eng", "english")
UNKNOWN_SHOWN = 10
GEOMETRY = (4_000, 16_001, 99_999)  # samples, whose frames tell which convolutions the base has


class Options(Record):
    """Options of `task: asr_ctc`."""

    language: str | None = Field(
        None,
        description="Language of the texts; MMS needs it, as ISO 639-3 has it (swh, eng). English "
        "has a text normaliser of its own for the normalised scores.",
    )
    vocabulary: Literal["data", "model"] | None = Field(
        None,
        description="Whose letters are written: the model's own, or those of the training rows, "
        "with a new head; left out: the model's own where it has letters and a head for them.",
    )
    normalise: How = Field(
        "basic",
        description="How texts are spelt for training: basic (one case, no punctuation) or none "
        "(as written). Scores are taken against the texts as written, and against both normalised.",
    )
    shortest_seconds: float = Field(
        0.1, ge=0, description="Shorter clips are left out, and counted, also in scoring."
    )
    longest_seconds: float = Field(
        20.0, gt=0, description="Longer clips are left out, and counted, also in scoring."
    )
    train_features: bool = Field(
        False, description="Learn the convolutions that turn samples into frames as well."
    )
    mask_time_prob: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="SpecAugment: share of the frames that training hides; left out: as the "
        "model's config says. Bands of features are not hidden.",
    )
    mask_time_length: int | None = Field(
        None, ge=1, description="Frames of a hidden span; left out: as the model's config says."
    )


@dataclass
class _Listener(SpeechProcessor):
    """Extractor and tokenizer, and what training hides of a sound."""

    mask: dict[str, Any]


class Plugin(Task):
    """Connectionist temporal classification (Graves et al. 2006); each label is one target, so that
    the mean loss is in nats a letter."""

    auto_class = "AutoModelForCTC"
    required_columns = "`audio` and `text`"
    best = "-wer"
    single_forward = True
    processor_kind = "speech"
    media_column = "audio"
    options: Options

    def find_row_fault(self, row: Row) -> Fault | None:
        return find_text_fault(row, "text") or sound_fault(row)

    def collect_dataset_stats(self, rows: Iterable[Row], base_config: Any) -> DatasetStats:
        """The characters of the training rows, in lower case; and what the base has."""
        spell = speller(self.options.normalise)
        architectures = getattr(base_config, "architectures", None) or []
        return {
            "characters": count_characters(spell(_text(row)) for row in rows),
            "has_head": any(name.endswith("ForCTC") for name in architectures),
            "head_size": getattr(base_config, "vocab_size", None),
            "mask": self._mask(base_config),
            "settings": without_layerdrop(base_config),
            "geometry": [ctc_frames(frames_of(n, base_config), base_config) for n in GEOMETRY],
            "adapters": getattr(base_config, "adapter_attn_dim", None) is not None,
        }

    def _mask(self, base: Any) -> dict[str, Any]:
        asked, length = self.options.mask_time_prob, self.options.mask_time_length
        applies = getattr(base, "apply_spec_augment", True)
        share = getattr(base, "mask_time_prob", 0.0) if applies else 0.0
        return {
            "share": share if asked is None else asked,
            "length": length or getattr(base, "mask_time_length", 10),
            "least": getattr(base, "mask_time_min_masks", 0),
        }

    def adapt_processor(
        self, processor: Any, dataset_stats: DatasetStats
    ) -> tuple[Any, DatasetStats]:
        """The tokenizer that the letters ask for, and the size of the head for it. What was fitted
        once, as an export is, stays."""
        if "blank" in dataset_stats:
            return _Listener(
                processor.feature_extractor, processor.tokenizer, dataset_stats["mask"]
            ), dataset_stats
        asked, language = self.options.vocabulary, self.options.language
        takes_own = asked == "model" or (
            asked is None and _has_letters(processor, dataset_stats, language)
        )
        if takes_own:
            tokenizer = letters.own(processor.tokenizer, language)
        else:
            tokenizer = letters.of_rows(
                dataset_stats["characters"], base=processor.tokenizer, language=language
            )
        size, case = tokenizer.vocab_size, case_of(tokenizer.get_vocab())
        if takes_own and asked is None:
            _refuse_foreign(dataset_stats["characters"], tokenizer, case)
        knows = takes_own and dataset_stats["has_head"]
        nested = letters.is_nested(tokenizer)
        if knows and not nested:
            size = max(size, dataset_stats["head_size"])
        if not takes_own and size == dataset_stats["head_size"]:
            size += 1  # a head of the same size would be taken for that of these letters
        fitted = _Listener(processor.feature_extractor, tokenizer, dataset_stats["mask"])
        found = {
            **dataset_stats,
            "case": case,
            "vocabulary_size": size,
            "blank": tokenizer.pad_token_id,
            "letter": _any_letter(tokenizer),
            "new_head": not knows,
            "target_lang": language if knows and nested and dataset_stats["adapters"] else None,
        }
        del found["characters"]  # the tokenizer has them
        return fitted, {**found, "loading": _loading(found)}

    def head_config(self, dataset_stats: DatasetStats) -> dict[str, Any]:
        mask = dataset_stats["mask"]
        return {
            **dataset_stats["settings"],
            "vocab_size": dataset_stats["vocabulary_size"],
            "pad_token_id": dataset_stats["blank"],
            "ctc_zero_infinity": True,
            "apply_spec_augment": mask["share"] > 0,
            "mask_time_prob": mask["share"],
            "mask_time_length": mask["length"],
            "mask_feature_prob": 0.0,  # the model would draw other bands on each layout
            **(
                {"target_lang": dataset_stats["target_lang"]}
                if dataset_stats["target_lang"]
                else {}
            ),
        }

    def max_length(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> int:
        extractor = processor.feature_extractor
        samples = int(self.options.longest_seconds * extractor.sampling_rate)
        return frames_read(samples, base_config, extractor)

    def encoder(
        self, processor: Any, dataset_stats: DatasetStats, base_config: Any
    ) -> Callable[[Row], Encoded | Skip]:
        import numpy as np

        extractor, tokenizer = processor.feature_extractor, processor.tokenizer
        spell = speller(self.options.normalise, case=dataset_stats["case"])
        rate, longest = extractor.sampling_rate, self.options.longest_seconds
        shortest = max(self.options.shortest_seconds, samples_for(1, base_config) / rate)

        def encode(row: Row) -> Encoded | Skip:
            text = _text(row)
            labels = letters.read(spell(text), tokenizer)
            if not labels:
                return Skip("no letters in the text")
            samples_T = sound_of(row, rate=rate)
            if len(samples_T) > longest * rate:
                return Skip(f"longer than {longest:g} s")
            read = frames_read(len(samples_T), base_config, extractor)
            frames = ctc_frames(read, base_config)
            if len(samples_T) < shortest * rate or frames < 1:
                return Skip(f"shorter than {shortest:g} s")
            if frames < needed_frames(labels):
                return Skip("more letters than frames")
            values = {
                "samples": samples_T,
                "labels": labels,
                "read": read,
                "frames": frames,
                "reference": np.frombuffer(" ".join(text.split()).encode(), dtype=np.uint8),
            }
            return Encoded(values, read, len(labels))

        return encode

    def transform(
        self, values: dict[str, Any], *, processor: Any, rng: Generator | None
    ) -> dict[str, Any]:
        import numpy as np

        extractor, mask, read = processor.feature_extractor, processor.mask, values["read"]
        shown = heard(values["samples"], extractor)
        name = extractor.model_input_names[0]
        if name != "input_values":  # a last frame that is half padding is none
            shown[HEARD] = shown[HEARD][:read]
        hidden_F = np.zeros(read, dtype=bool)
        if rng is not None:
            for start in spans(**mask, size=read, draw=rng):
                hidden_F[start : start + mask["length"]] = True
        return {**values, **shown, "name": name, "hidden": hidden_F}

    def transform_without_input(self, values: dict[str, Any], *, processor: Any) -> dict[str, Any]:
        import numpy as np

        extractor = processor.feature_extractor
        silence = blank(values["samples"], extractor)
        if silence is None:
            return self.transform(values, processor=processor, rng=None)
        hidden_F = np.zeros(values["read"], dtype=bool)
        return {**values, **silence, "name": extractor.model_input_names[0], "hidden": hidden_F}

    def uncacheable_reason(self, data: EncodedData, *, processor: Any) -> str | None:
        """Nothing is hidden of a sound while the base is in evaluation mode."""
        return why_beside(data.counts("samples"), processor.feature_extractor)

    def collate(self, examples: list[dict[str, Any]], *, pad_token_id: int) -> dict[str, Tensor]:
        import torch

        def padded(name: str) -> Tensor:
            return pad_sequences([example[name] for example in examples], value=IGNORE_INDEX)

        return {
            **pad_sounds(examples, name=examples[0]["name"]),
            "labels": padded("labels"),
            "reference": padded("reference"),
            "frames": torch.tensor([int(example["frames"]) for example in examples]),
            "hidden": pad_sequences(
                [example["hidden"] for example in examples], value=0, multiple=1
            )
            > 0,
        }

    def always_frozen(self, model: nn.Module, *, random_init: bool) -> Iterable[nn.Parameter]:
        return fixed_parameters(model, random=random_init or self.options.train_features)

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
                "reference": bytes(byte for byte in reference if byte != IGNORE_INDEX).decode(),
                "hypothesis": text,
            }
            for loss, targets, reference, text in zip(
                _losses(model, logits_BFV, batch).tolist(),
                (batch["labels"] != IGNORE_INDEX).sum(1).tolist(),
                batch["reference"].tolist(),
                _heard(logits_BFV, batch, processor.tokenizer),
                strict=True,
            )
        ]

    def score(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> dict[str, float]:
        """Loss a letter (nats), and the errors of what is written."""
        targets = sum(outcome["targets"] for outcome in records)
        return {
            "loss": math.fsum(outcome["loss"] for outcome in records) / targets,
            **speech_scores(
                [outcome["reference"] for outcome in records],
                [outcome["hypothesis"] for outcome in records],
                language="en" if self.options.language in ENGLISH else None,
            ),
        }

    def with_placeholder_target(
        self, fields: dict[str, Any], dataset_stats: DatasetStats
    ) -> dict[str, Any]:
        return {**fields, "text": dataset_stats["letter"]}

    def chunk_row(self, row: Row, *, processor: Any, dataset_stats: DatasetStats) -> list[Row]:
        """A recording longer than a clip of training, cut in pauses."""
        rate, options = processor.feature_extractor.sampling_rate, self.options
        longest, shortest = options.longest_seconds, options.shortest_seconds
        return pieces_of(row, rate=rate, longest=longest, shortest=shortest)

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
            {"predicted": text}
            for text in _heard(_logits(model, batch), batch, processor.tokenizer)
        ]

    def metric_counts(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> ndarray:
        """Errors by words, and words that were said."""
        return counts_of(
            [outcome["reference"] for outcome in records],
            [outcome["hypothesis"] for outcome in records],
        )

    def metric_from_counts(self, counts: ndarray) -> ndarray:
        return rate_of(counts)


def _heard(logits_BFV: Tensor, batch: dict[str, Tensor], tokenizer: Any) -> list[str]:
    """Of each frame the most likely token, of which repeats and blanks are dropped."""
    paths, ends = logits_BFV.argmax(-1).tolist(), batch["frames"].tolist()
    return [letters.write(path[:end], tokenizer) for path, end in zip(paths, ends, strict=True)]


def needed_frames(labels: list[int]) -> int:
    """The fewest frames that CTC can align with labels: between two equal ones stands a blank."""
    repeats = sum(one == other for one, other in pairwise(labels))
    return len(labels) + repeats


def _any_letter(tokenizer: Any) -> str:
    """One that the tokenizer can write; a row without a text is given it."""
    marks = sorted(mark for mark in tokenizer.get_vocab() if len(mark) == 1 and mark.isalpha())
    return marks[0] if marks else "a"


def _text(row: Row) -> str:
    return str(row.fields["text"])[:MAX_TEXT_CHARACTERS]


def _has_letters(processor: Any, facts: DatasetStats, language: str | None) -> bool:
    """Whether the model can write by itself; of many languages, whether it knows this one."""
    tokenizer = processor.tokenizer
    if tokenizer is None or not facts["has_head"]:
        return False
    letters.refuse_unnamed(tokenizer, language)
    return not letters.is_nested(tokenizer) or language in tokenizer.vocab


def _refuse_foreign(characters: dict[str, int], tokenizer: Any, case: str) -> None:
    """The model's own letters were taken unasked: they must be those of the rows."""
    known = tokenizer.get_vocab()
    spelt = {mark: (mark.upper() if case == "upper" else mark) for mark in characters}
    lacking = {
        mark: count
        for mark, count in characters.items()
        if not mark.isspace() and spelt[mark] not in known
    }
    total = sum(count for mark, count in characters.items() if not mark.isspace())
    if sum(lacking.values()) <= MOST_UNKNOWN * total:
        return
    shown = " ".join(sorted(lacking, key=lambda mark: (-lacking[mark], mark))[:UNKNOWN_SHOWN])
    raise DtlError.of(
        "task.vocabulary",
        f"the model's vocabulary lacks {sum(lacking.values()) / total:.0%} of the characters of "
        f"the training rows ({shown})",
        "take data, for a head of the letters of the rows, or model, to write without these",
    )


def _loading(facts: DatasetStats) -> dict[str, Any]:
    """What from_pretrained must be told for the base to have the head that was learnt."""
    if facts["target_lang"]:
        return {"target_lang": facts["target_lang"], "ignore_mismatched_sizes": True}
    if facts["new_head"]:
        return {"vocab_size": facts["vocabulary_size"], "ignore_mismatched_sizes": True}
    return {}


def _logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Scores of all tokens (B, F, V) in fp32.

    What SpecAugment hides is given, not drawn here: it is then the same on every layout.
    """
    from torch.nn.functional import pad

    name = next(name for name in ("input_values", "input_features") if name in batch)
    inputs = {key: batch[key] for key in (name, "attention_mask") if key in batch}
    settings: Any = unwrapped(model).config
    if unwrapped(model).training and settings.mask_time_prob > 0:
        length = batch[name].shape[1]
        frames = frames_read(length, settings, None) if name == "input_values" else length
        hidden_BF = batch["hidden"]
        inputs["mask_time_indices"] = pad(hidden_BF, (0, frames - hidden_BF.shape[1]))
    logits: Tensor = model(**inputs).logits
    return logits.float()


def _losses(model: nn.Module, logits_BFV: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Of each example (B,), in fp32; where nothing can be aligned, 0."""
    import torch
    from torch.nn.functional import ctc_loss

    settings: Any = unwrapped(model).config
    labels_BL = batch["labels"]
    with torch.backends.cudnn.flags(enabled=False):  # cuDNN wants labels of 256 at most
        return ctc_loss(
            logits_BFV.log_softmax(-1).transpose(0, 1),
            labels_BL.clamp(min=0),
            batch["frames"],
            (labels_BL != IGNORE_INDEX).sum(1),
            blank=settings.pad_token_id,
            reduction="none",
            zero_infinity=True,
        )
