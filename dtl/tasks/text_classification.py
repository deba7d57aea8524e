"""Text classification: a class, labels or numbers for a text or a pair of texts, with any model."""

# B batch, T tokens

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, model_validator

from dtl.config.schema.base import ConfigFault, raise_config_faults
from dtl.core.errors import DtlError, Fault
from dtl.data.example import EncodedExample, Skip
from dtl.data.modalities.text import find_text_fault, get_text, limit_to_tokenizer
from dtl.data.padding import pad_token_inputs
from dtl.tasks._classification import (
    MULTI_LABEL,
    QUERY_IDS,
    Classification,
    LabelOptions,
    query_id,
)
from dtl.tasks.base import DatasetStats, Encoder, ExamplePreview

if TYPE_CHECKING:
    from torch import Tensor

    from dtl.data.sources.rows import Row

TEXT_COLUMNS = ("text", "text_pair")


class Options(LabelOptions):
    """Options of `task: text_classification`."""

    max_length: int = Field(256, ge=2, description="Longest text in tokens; the rest is truncated.")
    ranking: bool = Field(
        False,
        description="Also score the held-out rows as a ranking of the documents (`text_pair`) of "
        "each query (`text`): by the number, or by the second of two labels. Relevant are those "
        "with a number above 0, or the second label.",
    )

    @model_validator(mode="after")
    def _check_ranking(self) -> Self:
        if self.ranking and self.problem_type == MULTI_LABEL:
            fix = "set task.problem_type to regression or single_label_classification"
            problem = f"problem_type {self.problem_type} does not give one number"
            raise_config_faults([ConfigFault("ranking", problem=problem, fix=fix)])
        return self


class Plugin(Classification):
    """Classification or regression of texts."""

    auto_class = "AutoModelForSequenceClassification"
    required_columns = "`text` (and `text_pair`) and `label`"
    truncation_options: ClassVar = {"max_length": ("input_ids",)}
    options: Options

    def find_row_fault(self, row: Row) -> Fault | None:
        return _find_texts_fault(row) or self.head.find_fault(row)

    def preview(self, row: Row) -> ExamplePreview:
        texts = [str(row.fields[name]) for name in TEXT_COLUMNS if row.fields.get(name)]
        return replace(super().preview(row), input="\n".join(texts))

    def collect_dataset_stats(self, rows: Iterable[Row], base_config: Any) -> DatasetStats:
        """Return the labels; in the base's own order where it has a head for exactly these."""
        stats = self.head.collect_stats(rows, base_config)
        expected = 1 if self.head.predicts_numbers else 2
        if self.options.ranking and len(stats["labels"]) != expected:
            raise DtlError.of(
                "task.ranking",
                f"the head has {len(stats['labels'])} outputs (expected {expected})",
                "give each row one number, or one of two labels",
            )
        return stats

    def max_length(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> int:
        return limit_to_tokenizer(self.options.max_length, processor, base_config)

    def encoder(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> Encoder:
        encode_target = self.head.target_encoder(dataset_stats)
        limit = self.max_length(processor, dataset_stats, base_config)

        def encode(row: Row) -> EncodedExample | Skip:
            target = encode_target(row)
            texts = [
                get_text(row, name, max_tokens=limit)
                for name in TEXT_COLUMNS
                if row.fields.get(name)
            ]
            if not texts:
                return Skip("empty text")
            tokens = processor(*texts, truncation=True, max_length=limit)
            values = {
                name: list(tokens[name])
                for name in ("input_ids", "token_type_ids")
                if name in tokens
            }
            if not values["input_ids"]:
                return Skip("empty text")
            if self.options.ranking:
                values[QUERY_IDS] = query_id(str(row.fields.get("text") or ""))
            return EncodedExample(
                {**values, **target.values}, len(values["input_ids"]), target.count
            )

        return encode

    def collate(self, examples: list[dict[str, Any]], *, pad_token_id: int) -> dict[str, Tensor]:
        targets = self.head.collate(examples)
        return {**pad_token_inputs(examples, pad_token_id=pad_token_id), **targets}


def _find_texts_fault(row: Row) -> Fault | None:
    """Return the fault of a row's texts. A text may be null, which is empty, but not missing."""
    if "text" not in row.fields:
        has = ", ".join(map(repr, row.fields)) or "nothing"
        return Fault(
            row.location,
            f"the column `text` is missing (the row has {has})",
            "map its column in data.columns: {text: ...}",
        )
    columns = (name for name in TEXT_COLUMNS if row.fields.get(name) is not None)
    return next(filter(None, (find_text_fault(row, name) for name in columns)), None)
