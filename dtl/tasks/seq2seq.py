"""One text into another with an encoder and a decoder: summaries, translations."""

# B batch, S source tokens, T target tokens

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from dtl.config.schema.base import Record
from dtl.core.errors import Fault
from dtl.data.example import EncodedExample, Skip
from dtl.data.modalities.text import (
    decode_reference,
    encode_reference,
    find_text_fault,
    get_text,
    limit_to_positions,
)
from dtl.data.padding import pad_sequences, pad_token_inputs
from dtl.losses.cross_entropy import IGNORE_INDEX
from dtl.losses.language_model import score_tokens, sum_token_losses
from dtl.metrics.base import EvalRecord, Metric
from dtl.metrics.generation import (
    bleu_counts,
    bleu_from_counts,
    bleu_scores,
    rouge_counts,
    rouge_scores,
)
from dtl.metrics.perplexity import loss_counts, perplexity_scores, token_records
from dtl.models.structure.wrappers import unwrap
from dtl.models.translation_languages import first_token_settings, set_languages
from dtl.tasks.base import DatasetStats, Encoder, ExamplePreview, Task, TokenSpan

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor, nn

    from dtl.data.sources.rows import Row

COLUMNS = ("source", "target")
METRICS = {
    "rouge": Metric("rougeLsum"),
    "bleu": Metric("bleu"),
    "none": Metric("loss", higher_is_better=False),
}


class Options(Record):
    """Options of `task: seq2seq`."""

    source_prefix: str = Field(
        "", description="Text before each source, such as `summarize: ` for T5."
    )
    max_source_length: int = Field(
        512, ge=2, description="Longest source in tokens; the rest is truncated."
    )
    max_target_length: int = Field(
        128,
        ge=2,
        description="Longest target in tokens; the rest is truncated. Scores compare with the full "
        "target.",
    )
    source_language: str | None = Field(
        None, description="Language of the sources, by the tokenizer's name (en_XX, eng_Latn)."
    )
    target_language: str | None = Field(
        None, description="Language of the targets; each generated text begins with its token."
    )
    metric: Literal["rouge", "bleu", "none"] = Field(
        "rouge",
        description="Metric of generated texts: rouge (ROUGE-1, 2, L and Lsum, of a-z "
        "and 0-9), bleu (sacreBLEU and chrF), or none: nothing is generated.",
    )
    max_new_tokens: int | None = Field(
        None, ge=1, description="Longest generated text in tokens. Default: max_target_length."
    )
    num_beams: int | None = Field(
        None, ge=1, description="Beams of beam search. Default: the model's own, usually 1."
    )


class Plugin(Task):
    """Teacher forcing; each token of the target, its end included, is one target."""

    auto_class = "AutoModelForSeq2SeqLM"
    predicts_tokens = True
    passes_labels = True
    required_columns = "`source` and `target`"
    truncation_options: ClassVar = {
        "max_source_length": ("input_ids",),
        "max_target_length": ("labels",),
    }
    supervises_eos = True
    options: Options

    @property
    def metric(self) -> Metric:  # type: ignore[override]
        return METRICS[self.options.metric]

    @property
    def evaluation_beams(self) -> int:
        return 0 if self.options.metric == "none" else self.options.num_beams or 1

    def find_row_fault(self, row: Row) -> Fault | None:
        return next((fault for name in COLUMNS if (fault := find_text_fault(row, name))), None)

    def preview(self, row: Row) -> ExamplePreview:
        return ExamplePreview(str(row.fields["source"]), str(row.fields["target"]))

    def token_spans(self, values: dict[str, Any]) -> list[TokenSpan]:
        return [
            TokenSpan(list(values["input_ids"]), False),
            TokenSpan(list(values["labels"]), True),
        ]

    def collect_dataset_stats(self, rows: Iterable[Row], base_config: Any) -> DatasetStats:
        return {}

    def head_config(self, dataset_stats: DatasetStats) -> dict[str, Any]:
        return {}

    def max_length(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> int:
        """Return the length of source and target together."""
        source, target = self._limits(base_config)
        return source + target

    def _limits(self, base_config: Any) -> tuple[int, int]:
        """Return the most tokens of a source and of a target."""
        return (
            limit_to_positions(self.options.max_source_length, base_config),
            limit_to_positions(self.options.max_target_length, base_config),
        )

    def encoder(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> Encoder:
        options = self.options
        set_languages(processor, source=options.source_language, target=options.target_language)
        max_source, max_target = self._limits(base_config)

        def encode(row: Row) -> EncodedExample | Skip:
            max_tokens = max(max_source, max_target)
            source, target = (get_text(row, name, max_tokens=max_tokens) for name in COLUMNS)
            if not source.strip() or not target.strip():
                return Skip("empty text")
            prefixed = options.source_prefix + source
            tokens = processor(prefixed, truncation=True, max_length=max_source)["input_ids"]
            labels = _target_tokens(target, processor, max_target)
            values = {
                "input_ids": list(tokens),
                "labels": labels,
                "reference": encode_reference(target),
            }
            return EncodedExample(values, len(tokens) + len(labels), len(labels))

        return encode

    def collate(self, examples: list[dict[str, Any]], *, pad_token_id: int) -> dict[str, Tensor]:
        padded = {
            name: pad_sequences([example[name] for example in examples], value=IGNORE_INDEX)
            for name in ("labels", "reference")
        }
        return {**pad_token_inputs(examples, pad_token_id=pad_token_id), **padded}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return sum_token_losses(model, _model_inputs(batch), batch["labels"])

    def eval_records(
        self, model: nn.Module, batch: dict[str, Tensor], *, processor: Any
    ) -> list[EvalRecord]:
        """Return loss, targets, correct tokens, the reference and, for a metric, the generated
        text."""
        scores = score_tokens(model, _model_inputs(batch), batch["labels"])
        records = token_records(scores, batch["labels"])
        for record, reference in zip(records, batch["reference"].tolist(), strict=True):
            record["reference"] = decode_reference(reference)
        if self.options.metric != "none":
            texts = self._generate(unwrap(model), batch, processor, None)
            for record, text in zip(records, texts, strict=True):
                record["generated"] = text
        return records

    def _generate(
        self,
        model: Any,
        batch: dict[str, Tensor],
        tokenizer: Any,
        max_new_tokens: int | None,
    ) -> list[str]:
        """Generate a text for each source; under ZeRO-3, transformers keeps all ranks in step."""
        options = self.options
        limit = max_new_tokens or options.max_new_tokens or options.max_target_length
        settings = copy.deepcopy(model.generation_config)
        settings.update(
            max_length=None,
            max_new_tokens=limit,
            min_length=settings.min_length if (settings.min_length or 0) < limit else 0,
            num_beams=options.num_beams or settings.num_beams,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            **first_token_settings(tokenizer),
        )
        tokens_BT = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            generation_config=settings,
        )
        texts: list[str] = tokenizer.batch_decode(tokens_BT, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def score(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> dict[str, float]:
        """Return loss (nats a token), perplexity, token accuracy under teacher forcing, and the
        metrics of the generated texts."""
        scores = perplexity_scores(records)
        if self.options.metric == "none":
            return scores
        of_texts = {"rouge": rouge_scores, "bleu": bleu_scores}[self.options.metric]
        return {**scores, **of_texts(records)}

    def with_placeholder_target(
        self, fields: dict[str, Any], dataset_stats: DatasetStats
    ) -> dict[str, Any]:
        return {**fields, "target": "-"}

    def predict(
        self,
        model: nn.Module,
        batch: dict[str, Tensor],
        *,
        processor: Any,
        dataset_stats: DatasetStats,
        max_new_tokens: int | None,
    ) -> list[dict[str, Any]]:
        texts = self._generate(unwrap(model), batch, processor, max_new_tokens)
        return [{"predicted": text} for text in texts]

    def metric_counts(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> ndarray:
        """Return loss and targets, or ROUGE-Lsum and 1, or what sacreBLEU counts of a text."""
        count = {"none": loss_counts, "rouge": rouge_counts, "bleu": bleu_counts}
        return count[self.options.metric](records)

    def metric_from_counts(self, counts: ndarray) -> ndarray:
        if self.options.metric == "bleu":
            return bleu_from_counts(counts)
        return counts[..., 0] / counts[..., 1]


def _model_inputs(batch: dict[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of the model: each family itself shifts labels into the input of its
    decoder."""
    names = ("input_ids", "attention_mask", "labels")
    return {**{name: batch[name] for name in names}, "use_cache": False}


def _target_tokens(target: str, tokenizer: Any, limit: int) -> list[int]:
    """Return the target's tokens with an end: without it, a model would not learn to stop."""
    end = tokenizer.eos_token_id
    labels = list(tokenizer(text_target=target, truncation=True, max_length=limit)["input_ids"])
    return labels if end is None or end in labels else [*labels[: limit - 1], end]
