"""What a head is: how labels become targets, and outputs become losses, scores and predictions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dtl.core.errors import Fault
from dtl.metrics.base import EvalRecord, Metric
from dtl.tasks._classification.options import LabelOptions
from dtl.tasks.base import DatasetStats, Prediction

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

    from dtl.data.sources.rows import Row

# The values of an example, and the tensors of a batch, that no model reads.
TARGET_NAMES = ("labels", "label_weights", "query_ids")


@dataclass(frozen=True)
class EncodedTarget:
    """The targets of an example: its values by TARGET_NAMES, and how many of them count."""

    values: dict[str, Any]
    count: int


class Head(ABC):
    """One kind of output, whatever the input is. `dataset_stats["labels"]` names the outputs."""

    metric: ClassVar[Metric]
    # Whether each row has exactly one class.
    has_classes: ClassVar[bool] = False
    # Whether the outputs are numbers, not labels.
    predicts_numbers: ClassVar[bool] = False

    def __init__(self, options: LabelOptions) -> None:
        self.options = options

    @abstractmethod
    def find_fault(self, row: Row) -> Fault | None:
        """Return what is wrong with a row's labels; None: nothing."""

    @abstractmethod
    def read_labels(self, row: Row) -> tuple[str, ...]:
        """Return the labels of a valid row; empty for numbers."""

    @abstractmethod
    def written_labels(self, row: Row) -> tuple[object, ...]:
        """Return the labels of a valid row as it writes them, or its numbers."""

    @abstractmethod
    def collect_stats(self, rows: Iterable[Row], base_config: Any) -> DatasetStats:
        """Return the names of the outputs and what else training needs of all rows. Raises
        DtlError where there is nothing to learn."""

    @abstractmethod
    def config(self, dataset_stats: DatasetStats) -> dict[str, Any]:
        """Return the changes to the model's config that give it this head."""

    @abstractmethod
    def target_encoder(self, dataset_stats: DatasetStats) -> Callable[[Row], EncodedTarget]:
        """Return the function that encodes the labels of a row. It raises DtlError for labels that
        no training row has."""

    @abstractmethod
    def collate(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return the targets of examples as tensors."""

    @abstractmethod
    def losses(self, logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss of each target, fp32. `logits`: (B, C), fp32."""

    @abstractmethod
    def eval_records(self, logits: Tensor, batch: dict[str, Tensor]) -> list[EvalRecord]:
        """Return what scoring needs of each example, as JSON."""

    @abstractmethod
    def score(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> dict[str, float]:
        """Return the scores over all examples."""

    @abstractmethod
    def describe_prediction(self, record: EvalRecord, dataset_stats: DatasetStats) -> Prediction:
        """Return a record as a person reads it."""

    @abstractmethod
    def placeholder(self, dataset_stats: DatasetStats) -> dict[str, Any]:
        """Return fields with any labels that are valid."""

    @abstractmethod
    def predict(self, logits: Tensor, dataset_stats: DatasetStats) -> list[dict[str, Any]]:
        """Return the prediction for each example, as JSON."""

    @abstractmethod
    def metric_counts(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> ndarray:
        """Return what each example adds to the sums of which the metric is made (N, K), fp64."""

    @abstractmethod
    def metric_from_counts(self, counts: ndarray) -> ndarray:
        """Return the metric of sums of counts: (..., K) to (...)."""


def target_values(values: dict[str, Any]) -> dict[str, Any]:
    """Return the targets among the values of an example."""
    return {name: values[name] for name in TARGET_NAMES if name in values}


def stack_targets(examples: list[dict[str, Any]], *, dtype: Any) -> dict[str, Tensor]:
    """Return the targets of examples as tensors: labels in a dtype of torch, weights in
    fp32, the two parts of the id of a query in int64."""
    import numpy as np
    import torch

    dtypes = {"labels": dtype, "label_weights": torch.float32, "query_ids": torch.int64}
    return {
        name: torch.tensor(np.array([example[name] for example in examples]), dtype=dtypes[name])
        for name in TARGET_NAMES
        if name in examples[0]
    }
