"""Text classification: one label for a text or a pair of texts, with any encoder or decoder."""

# B batch, T tokens, C classes

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from dtl.config.schema.base import Record
from dtl.core.errors import Fault
from dtl.data.example import EncodedExample, Skip
from dtl.data.labels import collect_labels, find_label_fault, get_label, get_label_index
from dtl.data.modalities.text import find_text_fault, get_text, limit_to_tokenizer
from dtl.data.padding import pad_token_inputs
from dtl.tasks.base import Classification, DatasetStats, Encoder, ExamplePreview

if TYPE_CHECKING:
    from torch import Tensor

    from dtl.data.sources.rows import Row

TEXT_COLUMNS = ("text", "text_pair")


class Options(Record):
    """Options of `task: text_classification`."""

    max_length: int = Field(256, ge=2, description="Longest text in tokens; the rest is truncated.")
    labels: tuple[str, ...] | None = Field(
        None, description="The labels in order. Default: those of the training rows, sorted."
    )


class Plugin(Classification):
    """Single-label classification; each example is one target."""

    auto_class = "AutoModelForSequenceClassification"
    required_columns = "`text` (and `text_pair`) and `label`"
    truncation_options: ClassVar = {"max_length": ("input_ids",)}
    options: Options

    def find_row_fault(self, row: Row) -> Fault | None:
        return _find_texts_fault(row) or find_label_fault(row, self.options.labels)

    def preview(self, row: Row) -> ExamplePreview:
        texts = [str(row.fields[name]) for name in TEXT_COLUMNS if row.fields.get(name)]
        return ExamplePreview("\n".join(texts), labels=(get_label(row),))

    def collect_dataset_stats(self, rows: Iterable[Row], base_config: Any) -> DatasetStats:
        """Return the labels; in the base's own order where it has a head for exactly these."""
        return {"labels": collect_labels(rows, base_config, self.options.labels)}

    def max_length(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> int:
        return limit_to_tokenizer(self.options.max_length, processor, base_config)

    def encoder(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> Encoder:
        class_indices = {label: index for index, label in enumerate(dataset_stats["labels"])}
        limit = self.max_length(processor, dataset_stats, base_config)

        def encode(row: Row) -> EncodedExample | Skip:
            class_index = get_label_index(row, class_indices)
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
            return EncodedExample({**values, "labels": class_index}, len(values["input_ids"]), 1)

        return encode

    def collate(self, examples: list[dict[str, Any]], *, pad_token_id: int) -> dict[str, Tensor]:
        import torch

        labels = torch.tensor([int(example["labels"]) for example in examples])
        return {**pad_token_inputs(examples, pad_token_id=pad_token_id), "labels": labels}


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
