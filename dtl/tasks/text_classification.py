"""Text classification: a class, labels or numbers for a text or a pair of texts, with any model."""

# B batch, T tokens

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from dtl.core.errors import Fault
from dtl.data.example import EncodedExample, Skip
from dtl.data.modalities.text import find_text_fault, get_text, limit_to_tokenizer
from dtl.data.padding import pad_token_inputs
from dtl.tasks._classification import Classification, LabelOptions
from dtl.tasks.base import DatasetStats, Encoder, ExamplePreview

if TYPE_CHECKING:
    from torch import Tensor

    from dtl.data.sources.rows import Row

TEXT_COLUMNS = ("text", "text_pair")


class Options(LabelOptions):
    """Options of `task: text_classification`."""

    max_length: int = Field(256, ge=2, description="Longest text in tokens; the rest is truncated.")


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
        return self.head.collect_stats(rows, base_config)

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
