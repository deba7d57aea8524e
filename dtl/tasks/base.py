"""What a task is: how rows become examples, losses and scores; one file is one task."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dtl.config.schema.batch_size import COUNTS_PER_UNIT, Unit
from dtl.core.errors import Fault
from dtl.data.example import EncodedExample, Skip
from dtl.data.row_formats.base import RowInput, RowKind
from dtl.losses.cross_entropy import IGNORE_INDEX
from dtl.metrics.base import EvalRecord, Metric

if TYPE_CHECKING:
    from numpy import ndarray
    from numpy.random import Generator
    from torch import Tensor, nn

    from dtl.data.cache.encoded import EncodedData
    from dtl.data.sources.rows import Row

DatasetStats = dict[str, Any]
Encoder = Callable[["Row"], EncodedExample | Skip]
# The transformers class that reads the input; see load_processor.
ProcessorKind = Literal["tokenizer", "feature_extractor", "image_processor", "processor"]
# By the task's media_column.
LENGTH_UNITS = {None: "tokens", "audio": "frames", "image": "patches"}
BATCH_UNITS: dict[str | None, Unit | None] = {None: "tokens", "audio": "seconds", "image": None}


@dataclass(frozen=True)
class ExamplePreview:
    """A row as a person reads it.

    `input`: what the model reads; None: a media file. `target`: the text to generate, if there is
    one. `labels`: the classes, if there are some.
    """

    input: str | None
    target: str | None = None
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prediction:
    """The target and the prediction of an example, as text; None: the task has none."""

    expected: str | None
    predicted: str | None


@dataclass(frozen=True)
class TokenSpan:
    """Consecutive tokens of an example, and whether they count in the loss."""

    tokens: list[int]
    supervised: bool


class Task(ABC):
    """One kind of learning problem. A plugin file defines `Options` and a final `Plugin(Task)`.

    A task does not depend on ranks, on the optimizer or on which parameters are trainable. It
    returns sums, never means: the loop divides by the number of targets of the global batch.
    """

    # The transformers auto class with the right head.
    auto_class: ClassVar[str]
    # The columns that the task reads, in words.
    required_columns: ClassVar[str]
    # The metric that decides which model is best.
    metric: ClassVar[Metric]
    # Whether the loss compares the model with its base, whose weights must then stay available.
    compares_with_base: ClassVar[bool] = False
    # Which part of the pretrained model reads the input.
    processor_kind: ClassVar[ProcessorKind] = "tokenizer"
    # The column that may name a media file; its bytes count as data.
    media_column: ClassVar[str | None] = None
    # The kind of rows, of which other formats are converted (dtl/data/row_formats).
    row_kind: ClassVar[RowKind | None] = None
    # Options in tokens, and the values of an example that each one truncates.
    truncation_options: ClassVar[dict[str, tuple[str, ...]]] = {}
    # Whether a target should end with an end-of-sequence token.
    supervises_eos: ClassVar[bool] = False
    # Whether loss and eval_records each run the model once for a batch.
    single_forward: ClassVar[bool] = False
    # Whether each row has exactly one class.
    has_classes: ClassVar[bool] = False
    # Whether the loss of an example depends on the other examples of its global batch.
    reads_global_batch: ClassVar[bool] = False
    # Whether the targets are tokens, each predicted from a hidden state of a language model.
    predicts_tokens: ClassVar[bool] = False
    # Whether its losses of a causal model's texts are computed on packed examples too.
    packs_examples: ClassVar[bool] = False
    # Whether the model gets the labels, which it shifts into the input of its decoder itself.
    passes_labels: ClassVar[bool] = False
    # Whether an example has the values of another one, the same in every epoch, as `partner`.
    reads_partner: ClassVar[bool] = False

    # The usual learning rate of the weights below a new head, where they must change much to serve
    # it; None: that of the strategy.
    learning_rate_below_new_head: ClassVar[float | None] = None

    def __init__(self, options: Any) -> None:
        self.options = options

    @property
    def row_input(self) -> RowInput:
        """What the task reads of rows."""
        return RowInput(self.media_column, self.row_kind)

    @property
    def evaluation_beams(self) -> int:
        """Beams of the texts that eval_records generates; 0: it generates none."""
        return 0

    @property
    def length_unit(self) -> str:
        """The unit of an example's length: tokens, frames or patches."""
        return LENGTH_UNITS[self.media_column]

    @property
    def batch_unit(self) -> Unit | None:
        """The unit, besides examples, of a global batch; None where all examples are as large."""
        return BATCH_UNITS[self.media_column]

    def example_sizes(self, data: EncodedData, *, processor: Any) -> ndarray:
        """Return what each example adds to a global batch (N,): tokens, or milliseconds."""
        if self.batch_unit == "tokens":
            return data.lengths
        rate = getattr(processor, "feature_extractor", processor).sampling_rate
        return -(-data.count_values("samples") * COUNTS_PER_UNIT["seconds"] // rate)

    @abstractmethod
    def find_row_fault(self, row: Row) -> Fault | None:
        """Return what is wrong with a row's fields; None: nothing. No model is needed.

        `collect_dataset_stats` and `encoder` see only rows that pass.
        """

    def get_class(self, row: Row) -> str:
        """Return the class of a valid row; empty where rows have none."""
        return ""

    def preview(self, row: Row) -> ExamplePreview:
        """Return the row as `dtl check` counts it: text or media, and label."""
        text, label = row.fields.get("text"), row.fields.get("label")
        labels = () if label is None else (str(label),)
        content = None if text is None else str(text)
        if self.media_column:
            return ExamplePreview(None, content, labels)
        return ExamplePreview(content, None, labels)

    def written_labels(self, row: Row) -> tuple[object, ...]:
        """Return the labels of a valid row as the data writes them, one for each of the preview's;
        or the numbers to predict."""
        return ()

    def token_spans(self, values: dict[str, Any]) -> list[TokenSpan]:
        """Return the tokens of an encoded example; those without a label are not supervised."""
        return spans_from_labels(values.get("input_ids"), values.get("labels"))

    def read_columns(self, fields: Mapping[str, Any]) -> frozenset[str]:
        """Return the columns of a row that the task reads, of those with these names."""
        named = re.findall(r"`(\w+)`", self.required_columns)
        of_media = (self.media_column, "offset", "duration") if self.media_column else ()
        return frozenset({*named, *of_media})

    def expand_row(self, row: Row, *, processor: Any) -> list[Row]:
        """Return a row as several, each of which is an example of its own."""
        return [row]

    @abstractmethod
    def collect_dataset_stats(self, rows: Iterable[Row], base_config: Any) -> DatasetStats:
        """Return what the model must know of the training rows, as JSON, such as the labels."""

    def adapt_processor(
        self, processor: Any, dataset_stats: DatasetStats
    ) -> tuple[Any, DatasetStats]:
        """Return processor and stats as the training rows require; by default unchanged."""
        return processor, dataset_stats

    def find_data_notes(self, dataset_stats: DatasetStats) -> Iterable[str]:
        """Return what is done with the training rows, for plan and report; by default nothing."""
        return ()

    def find_data_faults(self, dataset_stats: DatasetStats) -> Iterable[Fault]:
        """Return what is wrong with the training rows together, for the report of `dtl check`."""
        return ()

    @abstractmethod
    def head_config(self, dataset_stats: DatasetStats) -> dict[str, Any]:
        """Return the changes to the model's config that give it the right head."""

    def configure_model(self, model: nn.Module, *, processor: Any) -> None:
        """Set what the model's config does not hold, such as how it generates by default."""
        return None

    @abstractmethod
    def max_length(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> int:
        """Return the longest length that an example of the encoder can have."""

    @abstractmethod
    def encoder(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> Encoder:
        """Return the function that encodes a row as numbers.

        It raises DtlError for a fault that only the model's files or the other rows show.
        """

    def transform(
        self, values: dict[str, Any], *, processor: Any, rng: Generator | None
    ) -> dict[str, Any]:
        """Return an example as the model reads it this time, from its encoded values.

        `rng`: for augmentation; the same for an example and epoch on every layout. None: no
        augmentation, as in evaluation.
        """
        return values

    def transform_without_input(self, values: dict[str, Any], *, processor: Any) -> dict[str, Any]:
        """Return an example for a model whose base is not run, because its features are cached.

        What only the base reads, such as pixels, may be blank, which saves time.
        """
        return self.transform(values, processor=processor, rng=None)

    def uncacheable_reason(self, data: EncodedData, *, processor: Any) -> str | None:
        """Return why the features of an example differ from epoch to epoch; None: they do not."""
        return None

    def padded_lengths(self, data: EncodedData) -> ndarray:
        """Return the length to which each example is padded (N,), in samples or length units."""
        from dtl.data.padding import pad_lengths

        return (
            data.count_values("samples")
            if self.media_column == "audio"
            else pad_lengths(data.lengths)
        )

    @abstractmethod
    def collate(self, examples: list[dict[str, Any]], *, pad_token_id: int) -> dict[str, Tensor]:
        """Return examples as one padded batch on the CPU."""

    def always_frozen(self, model: nn.Module, *, random_init: bool) -> Iterable[nn.Parameter]:
        """Return parameters that no strategy trains. `random_init`: none is pretrained."""
        return ()

    @abstractmethod
    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Return the sum of the losses of all targets, shape (), fp32."""

    def global_values(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what the losses of other examples need of each example (B, ...).

        With `reads_global_batch`, the loop calls it without gradient for all micro-batches of a
        step, before the first `loss`, with the same random numbers as `loss`.
        """
        raise NotImplementedError

    def combine_global_values(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what `loss` needs of each example (N, ...), from the values of the global batch.

        `loss` gets those of its examples in the batch. Without them, its batch is the global one.
        """
        raise NotImplementedError

    @abstractmethod
    def eval_records(
        self, model: nn.Module, batch: dict[str, Tensor], *, processor: Any
    ) -> list[EvalRecord]:
        """Return what scoring needs of each example, as JSON, in the order of the batch."""

    def join_records(self, records: list[EvalRecord]) -> list[EvalRecord]:
        """Return the records of all held-out examples, with what depends on the others, as JSON.

        By default unchanged.
        """
        return records

    @abstractmethod
    def score(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> dict[str, float]:
        """Return the scores over all examples; the records of several ranks are concatenated."""

    def describe_prediction(self, record: EvalRecord, dataset_stats: DatasetStats) -> Prediction:
        """Return a record as a person reads it."""
        predicted = record.get("generated", record.get("hypothesis"))
        return Prediction(record.get("reference"), predicted)

    @abstractmethod
    def with_placeholder_target(
        self, fields: dict[str, Any], dataset_stats: DatasetStats
    ) -> dict[str, Any]:
        """Return fields to predict for, with any target that find_row_fault and encoder accept."""

    def prompt_encoder(
        self, processor: Any, dataset_stats: DatasetStats, base_config: Any
    ) -> Encoder:
        """Return the encoder of rows that `with_placeholder_target` has completed."""
        return self.encoder(processor, dataset_stats, base_config)

    def chunk_row(self, row: Row, *, processor: Any, dataset_stats: DatasetStats) -> list[Row]:
        """Return a row that is too long for the model as several, whose predictions are joined."""
        return [row]

    @abstractmethod
    def predict(
        self,
        model: nn.Module,
        batch: dict[str, Tensor],
        *,
        processor: Any,
        dataset_stats: DatasetStats,
        max_new_tokens: int | None,
    ) -> list[dict[str, Any]]:
        """Return the prediction for each example, as JSON; the targets in the batch are not read.

        `max_new_tokens`: the limit of a generated text; None: the task's own.
        """

    def export_files(self, model_config: Any, processor: Any) -> dict[str, str]:
        """Return files that another library needs of an export: texts by relative path."""
        return {}

    @abstractmethod
    def metric_counts(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> ndarray:
        """Return what each example adds to the sums of which the metric is made (N, K), fp64."""

    @abstractmethod
    def metric_from_counts(self, counts: ndarray) -> ndarray:
        """Return the metric, equal to that of `score`, of sums of counts: (..., K) to (...)."""


def spans_from_labels(tokens: Any, labels: Any) -> list[TokenSpan]:
    """Return the runs of tokens that are supervised or not, from one label for each token.

    Labels without tokens are supervised tokens themselves; one label for all is not a token.
    """
    import numpy as np

    labels = None if labels is None or np.ndim(labels) == 0 else np.asarray(labels)
    if tokens is None:
        return [] if labels is None else [TokenSpan(labels[labels != IGNORE_INDEX].tolist(), True)]
    tokens = np.asarray(tokens)
    if labels is None or len(labels) != len(tokens):
        return [TokenSpan(tokens.tolist(), False)]
    supervised = labels != IGNORE_INDEX
    ends = [*(np.flatnonzero(np.diff(supervised)) + 1).tolist(), len(tokens)]
    starts = [0, *ends[:-1]]
    return [
        TokenSpan(tokens[start:end].tolist(), bool(supervised[start]))
        for start, end in zip(starts, ends, strict=True)
        if end > start
    ]
