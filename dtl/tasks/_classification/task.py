"""A task whose head gives one output for each example: a class, several labels, or numbers."""

# B batch, C outputs

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from dtl.metrics.base import EvalRecord, Metric
from dtl.tasks._classification.base import TARGET_NAMES, Head
from dtl.tasks._classification.multi_label import MultiLabel
from dtl.tasks._classification.options import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from dtl.tasks._classification.ranking import add_rankings, rank_documents
from dtl.tasks._classification.regression import Regression
from dtl.tasks._classification.single_label import SingleLabel
from dtl.tasks.base import (
    DatasetStats,
    ExamplePreview,
    Prediction,
    Task,
    TokenSpan,
    spans_from_labels,
)

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor, nn

    from dtl.data.sources.rows import Row

HEADS: dict[str, type[Head]] = {
    SINGLE_LABEL: SingleLabel,
    MULTI_LABEL: MultiLabel,
    REGRESSION: Regression,
}


class Classification(Task):
    """Classification or regression of any input; `task.problem_type` chooses the head.

    A plugin reads the input: it defines find_row_fault, encoder and collate, which call those of
    `self.head`.
    """

    single_forward: ClassVar[bool] = True

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.head = HEADS[options.problem_type](options)

    @property
    def metric(self) -> Metric:  # type: ignore[override]
        """The metric of the head."""
        return self.head.metric

    @property
    def has_classes(self) -> bool:  # type: ignore[override]
        """Whether each row has exactly one class."""
        return self.head.has_classes

    def get_class(self, row: Row) -> str:
        return self.head.read_labels(row)[0] if self.head.has_classes else ""

    def preview(self, row: Row) -> ExamplePreview:
        text = row.fields.get("text")
        content = None if text is None else str(text)
        labels, numbers = self.head.read_labels(row), None
        if not labels and self.head.predicts_numbers:
            numbers = ", ".join(map(str, self.head.written_labels(row)))
        return ExamplePreview(None if self.media_column else content, numbers, labels)

    def read_columns(self, fields: Mapping[str, Any]) -> frozenset[str]:
        columns = self.options.label_columns
        named = super().read_columns(fields)
        return named if columns is None else (named - {"label"}) | set(columns)

    def written_labels(self, row: Row) -> tuple[object, ...]:
        return self.head.written_labels(row)

    def token_spans(self, values: dict[str, Any]) -> list[TokenSpan]:
        """Return the tokens of the input; no token is a target."""
        return spans_from_labels(values.get("input_ids"), None)

    def head_config(self, dataset_stats: DatasetStats) -> dict[str, Any]:
        return {**self.head.config(dataset_stats), **dataset_stats.get("settings", {})}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return self.head.losses(_outputs(model, batch), batch).sum()

    def eval_records(
        self, model: nn.Module, batch: dict[str, Tensor], *, processor: Any
    ) -> list[EvalRecord]:
        logits = _outputs(model, batch)
        return add_rankings(self.head.eval_records(logits, batch), logits, batch)

    def score(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> dict[str, float]:
        return {**self.head.score(records, dataset_stats), **rank_documents(records)}

    def describe_prediction(self, record: EvalRecord, dataset_stats: DatasetStats) -> Prediction:
        return self.head.describe_prediction(record, dataset_stats)

    def with_placeholder_target(
        self, fields: dict[str, Any], dataset_stats: DatasetStats
    ) -> dict[str, Any]:
        return {**fields, **self.head.placeholder(dataset_stats)}

    def predict(
        self,
        model: nn.Module,
        batch: dict[str, Tensor],
        *,
        processor: Any,
        dataset_stats: DatasetStats,
        max_new_tokens: int | None,
    ) -> list[dict[str, Any]]:
        return self.head.predict(_outputs(model, batch), dataset_stats)

    def metric_counts(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> ndarray:
        return self.head.metric_counts(records, dataset_stats)

    def metric_from_counts(self, counts: ndarray) -> ndarray:
        return self.head.metric_from_counts(counts)


def _outputs(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the logits of each example (B, C), fp32."""
    inputs = {name: tensor for name, tensor in batch.items() if name not in TARGET_NAMES}
    logits: Tensor = model(**inputs).logits
    return logits.float()
