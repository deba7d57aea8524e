"""The head that predicts numbers."""

# B batch, K numbers

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from dtl.core.errors import DtlError, Fault
from dtl.data.label_values import is_missing, parse_list, parse_number
from dtl.data.labels import label_config, missing_column_fault
from dtl.losses.squared_error import squared_errors
from dtl.metrics.base import EvalRecord, Metric
from dtl.metrics.regression import (
    correlation_counts,
    number_records,
    number_scores,
    pearson_from_counts,
    predict_numbers,
)
from dtl.tasks._classification.base import EncodedTarget, Head, stack_targets
from dtl.tasks._classification.options import REGRESSION
from dtl.tasks.base import DatasetStats, Prediction

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

    from dtl.data.sources.rows import Row


class Regression(Head):
    """Squared error; each number is one target."""

    metric = Metric("pearson")
    predicts_numbers = True

    def find_fault(self, row: Row) -> Fault | None:
        for column in self._columns:
            if column not in row.fields:
                return missing_column_fault(row, column)
        written = self._written(row)
        names = self.options.names
        if len(written) != len(names or written) or not written:
            return Fault(
                row.location,
                f"the label has {len(written)} numbers (expected {len(names or ()) or 'some'})",
                "give each row as many numbers as task.labels has names",
            )
        invalid = next((value for value in written if parse_number(value) is None), None)
        if all(parse_number(value) is not None for value in written):
            return None
        # -1 is a number like any other here.
        problem = "is missing" if is_missing(invalid) else "is not a number"
        return Fault(
            row.location,
            f"the label {problem} ({invalid!r})",
            "give each row a finite number with a decimal point, or leave these rows out "
            "(data.on_bad_row=skip)",
        )

    @property
    def _columns(self) -> tuple[str, ...]:
        return self.options.label_columns or ("label",)

    def _written(self, row: Row) -> list[Any]:
        """Return the numbers of a row as they are written."""
        if self.options.label_columns:
            return [row.fields[column] for column in self.options.label_columns]
        value = parse_list(row.fields["label"])
        return value if isinstance(value, list) else [value]

    def read_numbers(self, row: Row) -> list[float]:
        """Return the numbers of a valid row."""
        numbers = (parse_number(value) for value in self._written(row))
        return [number for number in numbers if number is not None]

    def read_labels(self, row: Row) -> tuple[str, ...]:
        return ()

    def written_labels(self, row: Row) -> tuple[object, ...]:
        return tuple(self._written(row))

    def collect_stats(self, rows: Iterable[Row], base_config: Any) -> DatasetStats:
        """Return the names of the numbers; by default those of transformers, such as LABEL_0."""
        sizes: dict[int, str] = {}
        for row in rows:
            sizes.setdefault(len(self._written(row)), row.location)
        if len(sizes) > 1:
            (first, _), (second, location) = list(sizes.items())[:2]
            raise DtlError.of(
                location,
                f"the label has {second} numbers, and those of the rows before have {first}",
                "give each row as many numbers",
            )
        count = next(iter(sizes), 1)
        return {
            "labels": list(self.options.names or (f"LABEL_{index}" for index in range(count))),
            "loading": {"problem_type": REGRESSION},
        }

    def config(self, dataset_stats: DatasetStats) -> dict[str, Any]:
        return {**label_config(dataset_stats["labels"]), "problem_type": REGRESSION}

    def target_encoder(self, dataset_stats: DatasetStats) -> Callable[[Row], EncodedTarget]:
        import numpy as np

        expected = len(dataset_stats["labels"])

        def encode(row: Row) -> EncodedTarget:
            numbers = np.array(self.read_numbers(row), dtype=np.float32)
            if len(numbers) != expected:
                raise DtlError.of(
                    row.location,
                    f"the label has {len(numbers)} numbers, and those of the training rows have "
                    f"{expected}",
                    "give each row as many numbers",
                )
            return EncodedTarget({"labels": numbers}, expected)

        return encode

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        import torch

        return stack_targets(examples, dtype=torch.float32)

    def losses(self, logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Return the squared error of each number (B, K)."""
        return squared_errors(logits, batch["labels"])

    def eval_records(self, logits: Tensor, batch: dict[str, Tensor]) -> list[EvalRecord]:
        return number_records(logits, batch["labels"], self.losses(logits, batch))

    def score(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> dict[str, float]:
        return number_scores(records, dataset_stats["labels"])

    def describe_prediction(self, record: EvalRecord, dataset_stats: DatasetStats) -> Prediction:
        numbers = (record[name] for name in ("numbers", "predicted"))
        return Prediction(*(", ".join(f"{value:.6g}" for value in each) for each in numbers))

    def placeholder(self, dataset_stats: DatasetStats) -> dict[str, Any]:
        if self.options.label_columns:
            return dict.fromkeys(self.options.label_columns, 0.0)
        return {"label": [0.0] * len(dataset_stats["labels"])}

    def predict(self, logits: Tensor, dataset_stats: DatasetStats) -> list[dict[str, Any]]:
        return predict_numbers(logits, dataset_stats["labels"])

    def metric_counts(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> ndarray:
        return correlation_counts(records)

    def metric_from_counts(self, counts: ndarray) -> ndarray:
        return pearson_from_counts(counts)
