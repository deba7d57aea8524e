"""The head that decides each label by itself."""

# B batch, C labels

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from dtl.core.errors import DtlError, Fault
from dtl.data.label_sets import LabelSet, read_label_columns, read_label_set
from dtl.data.labels import (
    get_label_index,
    label_config,
    label_indices,
    missing_column_fault,
    order_labels,
)
from dtl.losses.binary_cross_entropy import label_cross_entropy
from dtl.metrics.base import EvalRecord, Metric
from dtl.metrics.multi_label import (
    decide_labels,
    label_f1_counts,
    label_records,
    label_scores,
    micro_f1_from_counts,
    predict_label_sets,
)
from dtl.tasks._classification.base import EncodedTarget, Head, stack_targets
from dtl.tasks._classification.options import MULTI_LABEL
from dtl.tasks._classification.weights import positive_weights
from dtl.tasks.base import DatasetStats, Prediction

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

    from dtl.data.sources.rows import Row

DEFAULT_THRESHOLD = 0.5


class MultiLabel(Head):
    """A sigmoid for each label; each label of each example is one target."""

    metric = Metric("micro_f1")

    def find_fault(self, row: Row) -> Fault | None:
        for column in self.options.label_columns or ("label",):
            if column not in row.fields:
                return missing_column_fault(row, column)
        found = self._read(row)
        return None if found.problem is None else Fault(row.location, found.problem, found.fix)

    def _read(self, row: Row) -> LabelSet:
        options = self.options
        if options.label_columns:
            return read_label_columns(row.fields, options.label_columns, options.names or ())
        return read_label_set(
            row.fields["label"], options.labels, separator=options.label_separator
        )

    def read_labels(self, row: Row) -> tuple[str, ...]:
        return self._read(row).labels

    def written_labels(self, row: Row) -> tuple[object, ...]:
        return self._read(row).written

    def collect_stats(self, rows: Iterable[Row], base_config: Any) -> DatasetStats:
        """Return the labels, and the weights of the rows that have each."""
        counts: Counter[str] = Counter()
        total = 0
        for row in rows:
            counts.update(self.read_labels(row))
            total += 1
        labels = order_labels(counts, base_config, self.options.names)
        if not counts:
            raise DtlError.of("data.train", "no row has a label", "add rows that have labels")
        weights = positive_weights(self.options.class_weights, counts, labels, rows=total)
        return {
            "labels": labels,
            **({} if weights is None else {"class_weights": weights}),
            "loading": {"problem_type": MULTI_LABEL},
        }

    def config(self, dataset_stats: DatasetStats) -> dict[str, Any]:
        return {**label_config(dataset_stats["labels"]), "problem_type": MULTI_LABEL}

    def target_encoder(self, dataset_stats: DatasetStats) -> Callable[[Row], EncodedTarget]:
        import numpy as np

        indices = label_indices(dataset_stats["labels"])
        weights = dataset_stats.get("class_weights")

        def encode(row: Row) -> EncodedTarget:
            flags = np.zeros(len(indices), dtype=np.uint8)
            for label in self.read_labels(row):
                flags[get_label_index(row, label, indices)] = 1
            if weights is None:
                return EncodedTarget({"labels": flags}, len(indices))
            factors = np.where(flags, np.array(weights, dtype=np.float32), np.float32(1))
            return EncodedTarget({"labels": flags, "label_weights": factors}, len(indices))

        return encode

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        import torch

        return stack_targets(examples, dtype=torch.float32)

    def losses(self, logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss of each label (B, C)."""
        return label_cross_entropy(
            logits,
            batch["labels"],
            weights_BC=batch.get("label_weights"),
            focal_gamma=self.options.focal_gamma,
        )

    def eval_records(self, logits: Tensor, batch: dict[str, Tensor]) -> list[EvalRecord]:
        return label_records(logits, batch["labels"], self.losses(logits, batch))

    def _thresholds(self, labels: list[str]) -> list[float]:
        given = self.options.threshold
        if isinstance(given, dict):
            return [given.get(label, DEFAULT_THRESHOLD) for label in labels]
        return [given] * len(labels)

    def score(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> dict[str, float]:
        labels = dataset_stats["labels"]
        return label_scores(records, labels, self._thresholds(labels))

    def describe_prediction(self, record: EvalRecord, dataset_stats: DatasetStats) -> Prediction:
        import numpy as np

        labels = dataset_stats["labels"]
        decided = decide_labels(np.array(record["scores"]), self._thresholds(labels))
        true, predicted = record["labels"], np.flatnonzero(decided).tolist()
        return Prediction(
            *(", ".join(labels[index] for index in each) for each in (true, predicted))
        )

    def placeholder(self, dataset_stats: DatasetStats) -> dict[str, Any]:
        if self.options.label_columns:
            return dict.fromkeys(self.options.label_columns, 0)
        return {"label": []}

    def predict(self, logits: Tensor, dataset_stats: DatasetStats) -> list[dict[str, Any]]:
        labels = dataset_stats["labels"]
        return predict_label_sets(logits, labels, self._thresholds(labels))

    def metric_counts(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> ndarray:
        return label_f1_counts(records, self._thresholds(dataset_stats["labels"]))

    def metric_from_counts(self, counts: ndarray) -> ndarray:
        return micro_f1_from_counts(counts)
