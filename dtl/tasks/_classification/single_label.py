"""The head that chooses one class."""

# B batch, C classes

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from dtl.core.errors import Fault
from dtl.data.labels import (
    check_two_labels,
    find_label_fault,
    get_label_index,
    label_config,
    label_indices,
    order_labels,
    to_label,
)
from dtl.losses.cross_entropy import class_cross_entropy
from dtl.metrics.base import EvalRecord, Metric
from dtl.metrics.classification import (
    classification_records,
    classification_scores,
    f1_counts,
    macro_f1_from_counts,
    predict_labels,
)
from dtl.tasks._classification.base import EncodedTarget, Head, stack_targets
from dtl.tasks._classification.options import SINGLE_LABEL
from dtl.tasks._classification.weights import class_weights
from dtl.tasks.base import DatasetStats, Prediction

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

    from dtl.data.sources.rows import Row


class SingleLabel(Head):
    """Softmax over the classes; each example is one target."""

    metric = Metric("macro_f1")
    has_classes = True

    def find_fault(self, row: Row) -> Fault | None:
        return find_label_fault(row, self.options.labels)

    def read_labels(self, row: Row) -> tuple[str, ...]:
        return (to_label(row.fields["label"], self.options.labels),)

    def written_labels(self, row: Row) -> tuple[object, ...]:
        return (row.fields["label"],)

    def collect_stats(self, rows: Iterable[Row], base_config: Any) -> DatasetStats:
        """Return the classes, and their weights: with a mean of 1 over the rows."""
        counts = Counter(label for row in rows for label in self.read_labels(row))
        labels = order_labels(counts, base_config, self.options.labels)
        check_two_labels(labels)
        weights = class_weights(self.options.class_weights, counts, labels)
        return {"labels": labels, **({} if weights is None else {"class_weights": weights})}

    def config(self, dataset_stats: DatasetStats) -> dict[str, Any]:
        return {**label_config(dataset_stats["labels"]), "problem_type": SINGLE_LABEL}

    def target_encoder(self, dataset_stats: DatasetStats) -> Callable[[Row], EncodedTarget]:
        indices = label_indices(dataset_stats["labels"])
        weights = dataset_stats.get("class_weights")

        def encode(row: Row) -> EncodedTarget:
            index = get_label_index(row, self.read_labels(row)[0], indices)
            weight = {} if weights is None else {"label_weights": float(weights[index])}
            return EncodedTarget({"labels": index, **weight}, 1)

        return encode

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        import torch

        return stack_targets(examples, dtype=torch.int64)

    def losses(self, logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss of each example (B,)."""
        return class_cross_entropy(
            logits,
            batch["labels"],
            weights_B=batch.get("label_weights"),
            focal_gamma=self.options.focal_gamma,
        )

    def eval_records(self, logits: Tensor, batch: dict[str, Tensor]) -> list[EvalRecord]:
        return classification_records(logits, batch["labels"], self.losses(logits, batch))

    def score(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> dict[str, float]:
        return classification_scores(records, dataset_stats["labels"])

    def describe_prediction(self, record: EvalRecord, dataset_stats: DatasetStats) -> Prediction:
        labels = dataset_stats["labels"]
        return Prediction(labels[record["label"]], labels[record["predicted"]])

    def placeholder(self, dataset_stats: DatasetStats) -> dict[str, Any]:
        return {"label": dataset_stats["labels"][0]}

    def predict(self, logits: Tensor, dataset_stats: DatasetStats) -> list[dict[str, Any]]:
        return predict_labels(logits, dataset_stats["labels"])

    def metric_counts(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> ndarray:
        return f1_counts(records, classes=len(dataset_stats["labels"]))

    def metric_from_counts(self, counts: ndarray) -> ndarray:
        return macro_f1_from_counts(counts)
