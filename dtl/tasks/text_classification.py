"""One label for a text, or for a pair of texts, with any encoder or decoder."""

# B batch, T tokens, C classes

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from dtl.config.record import Record
from dtl.core.errors import Fault
from dtl.data.example import Encoded, Skip
from dtl.data.labels import label_fault, label_of, labels_of, place_of
from dtl.tasks.base import (
    Classification,
    DatasetStats,
    ExamplePreview,
    attention_mask,
    find_text_fault,
    get_text,
    max_text_tokens,
    pad_sequences,
)

if TYPE_CHECKING:
    from torch import Tensor

    from dtl.data.sources.rows import Row

TEXTS = ("text", "text_pair")


class Options(Record):
    """Options of `task: text_classification`."""

    max_length: int = Field(256, ge=2, description="Longest text in tokens; the rest is cut off.")
    labels: tuple[str, ...] | None = Field(
        None, description="The labels in order; left out: those of the training rows, sorted."
    )


class Plugin(Classification):
    """Single-label classification; each example is one target."""

    auto_class = "AutoModelForSequenceClassification"
    required_columns = "`text` (and `text_pair`) and `label`"
    truncation_options: ClassVar = {"max_length": ("input_ids",)}
    options: Options

    def find_row_fault(self, row: Row) -> Fault | None:
        return _text_fault(row) or label_fault(row, self.options.labels)

    def preview(self, row: Row) -> ExamplePreview:
        texts = [str(row.fields[name]) for name in TEXTS if row.fields.get(name)]
        return ExamplePreview("\n".join(texts), labels=(label_of(row),))

    def collect_dataset_stats(self, rows: Iterable[Row], base_config: Any) -> DatasetStats:
        """The labels, and whether the base already has a head for exactly these."""
        return {"labels": labels_of(rows, base_config, self.options.labels)}

    def max_length(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> int:
        return max_text_tokens(self.options.max_length, processor, base_config)

    def encoder(
        self, processor: Any, dataset_stats: DatasetStats, base_config: Any
    ) -> Callable[[Row], Encoded | Skip]:
        places = {label: place for place, label in enumerate(dataset_stats["labels"])}
        limit = self.max_length(processor, dataset_stats, base_config)

        def encode(row: Row) -> Encoded | Skip:
            place = place_of(row, places)
            texts = [
                get_text(row, name, max_tokens=limit) for name in TEXTS if row.fields.get(name)
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
            return Encoded({**values, "labels": place}, len(values["input_ids"]), 1)

        return encode

    def collate(self, examples: list[dict[str, Any]], *, pad_token_id: int) -> dict[str, Tensor]:
        import torch

        inputs = [example["input_ids"] for example in examples]
        batch = {
            "input_ids": pad_sequences(inputs, value=pad_token_id),
            "attention_mask": attention_mask(inputs),
        }
        if "token_type_ids" in examples[0]:
            batch["token_type_ids"] = pad_sequences(
                [row["token_type_ids"] for row in examples], value=0
            )
        return {**batch, "labels": torch.tensor([int(row["labels"]) for row in examples])}


def _text_fault(row: Row) -> Fault | None:
    """A text may be null, which is empty; it may not be missing."""
    if "text" not in row.fields:
        return Fault(
            row.location,
            f"there is no `text` (the row has {_named(row)})",
            "map its column in data.columns: {text: ...}",
        )
    given = (name for name in TEXTS if row.fields.get(name) is not None)
    return next(filter(None, (find_text_fault(row, name) for name in given)), None)


def _named(row: Row) -> str:
    return ", ".join(map(repr, row.fields)) or "nothing"
