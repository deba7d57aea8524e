"""What is learnt. One file in this folder is one task, named as the config names it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dtl.config.batch_size import COUNTED, Unit
from dtl.core.errors import Fault
from dtl.data import labels
from dtl.data.example import MULTIPLE, Encoded, Skip

if TYPE_CHECKING:
    from numpy import ndarray
    from numpy.random import Generator
    from torch import Tensor, nn

    from dtl.data.cache.encoded import EncodedData
    from dtl.data.sources.rows import Row

DatasetStats = dict[str, Any]
ProcessorKind = Literal[
    "tokenizer", "features", "images", "speech"
]  # of transformers; see load_processor
EvalRecord = dict[str, Any]
IGNORE_INDEX = -100  # the label of a position that the loss does not count
LENGTH_UNITS = {None: "tokens", "audio": "frames", "image": "patches"}  # by a task's media
BATCH_UNITS: dict[str | None, Unit | None] = {None: "tokens", "audio": "seconds", "image": None}
MAX_TEXT_CHARACTERS = 1_000_000  # characters; a second's work for a tokenizer
MAX_TOKEN_CHARACTERS = 64  # characters; more than a token has on average in any text


@dataclass(frozen=True)
class ExamplePreview:
    """A row as a person reads it. `given`: what the model sees; None: the bytes of its media.
    `answer`: the text to come out, where there is one. `labels`: its classes, where it has some."""

    input: str | None
    target: str | None = None
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prediction:
    """What was to come out of an example, and what the model said, in words; None: there are
    none."""

    expected: str | None
    predicted: str | None


@dataclass(frozen=True)
class TokenSpan:
    """A run of an example's tokens, and whether they are learnt."""

    tokens: list[int]
    supervised: bool


class Task(ABC):
    """One kind of learning problem. A plugin file defines `Options` and a final `Plugin(Task)`.

    A task knows nothing of ranks, of the optimizer or of what learns. It returns sums, never means:
    the loop divides by the number of targets of the whole global batch.
    """

    auto_class: ClassVar[str]  # the transformers auto class that carries the right head
    required_columns: ClassVar[str]  # the columns it needs, in words
    best: ClassVar[str]  # the score that tells which model is best; "-name" where less is better
    compares_with_base: ClassVar[bool] = (
        False  # whether it compares with the base, which must then be kept
    )
    processor_kind: ClassVar[ProcessorKind] = (
        "tokenizer"  # the part of the model that reads its input
    )
    media_column: ClassVar[str | None] = (
        None  # the column that may name a file, whose bytes count as data
    )
    truncation_options: ClassVar[
        dict[str, tuple[str, ...]]
    ] = {}  # option in tokens -> the values that it cuts
    supervises_eos: ClassVar[bool] = False  # whether an answer should close with a special token
    single_forward: ClassVar[bool] = (
        False  # whether loss and outcomes run the model once for a batch
    )

    def __init__(self, options: Any) -> None:
        self.options = options

    @property
    def length_unit(self) -> str:
        """What the length of an example counts."""
        return LENGTH_UNITS[self.media_column]

    @property
    def batch_unit(self) -> Unit | None:
        """What a global batch may count beside examples; None where all are equally large."""
        return BATCH_UNITS[self.media_column]

    def example_sizes(self, data: EncodedData, *, processor: Any) -> ndarray:
        """What each example adds to a global batch: tokens, or milliseconds that are heard."""
        if self.batch_unit == "tokens":
            return data.lengths
        rate = getattr(processor, "feature_extractor", processor).sampling_rate
        return -(-data.counts("samples") * COUNTED["seconds"] // rate)

    @abstractmethod
    def find_row_fault(self, row: Row) -> Fault | None:
        """What is wrong with a row's fields, told without a model; None: nothing.

        `survey` and `encoder` see only rows that pass.
        """

    def preview(self, row: Row) -> ExamplePreview:
        """What `dtl check` looks for twins in, and counts: a text or media, and its label."""
        text, label = row.fields.get("text"), row.fields.get("label")
        labels = () if label is None else (str(label),)
        written = None if text is None else str(text)
        return (
            ExamplePreview(None, written, labels)
            if self.media_column
            else ExamplePreview(written, None, labels)
        )

    def token_spans(self, values: dict[str, Any]) -> list[TokenSpan]:
        """The tokens of an encoded example; those without a label of their own are not learnt."""
        return spans_from_labels(values.get("input_ids"), values.get("labels"))

    @abstractmethod
    def collect_dataset_stats(self, rows: Iterable[Row], base_config: Any) -> DatasetStats:
        """What the training rows say that the model must know, as JSON. `base`: its config."""

    def adapt_processor(
        self, processor: Any, dataset_stats: DatasetStats
    ) -> tuple[Any, DatasetStats]:
        """The processor, and the facts, that the training rows ask for; most take it as it is."""
        return processor, dataset_stats

    @abstractmethod
    def head_config(self, dataset_stats: DatasetStats) -> dict[str, Any]:
        """Changes to the model's config that give it the right head."""

    def configure_model(self, model: nn.Module, *, processor: Any) -> None:
        """Set what the model must know beside its config, such as how it generates by itself."""
        return None

    @abstractmethod
    def max_length(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> int:
        """What the length of an example may be at most, of all that the encoder makes."""

    @abstractmethod
    def encoder(
        self, processor: Any, dataset_stats: DatasetStats, base_config: Any
    ) -> Callable[[Row], Encoded | Skip]:
        """The function that turns a row into numbers. It raises DtlError for what only the model's
        files or the other rows show to be wrong."""

    def transform(
        self, values: dict[str, Any], *, processor: Any, rng: Generator | None
    ) -> dict[str, Any]:
        """An example as the model is to see it this time, from what was encoded once.

        `draw`: what a varied view is drawn from, the same for this example and epoch on every
        layout; None where nothing may be varied, in evaluation.
        """
        return values

    def transform_without_input(self, values: dict[str, Any], *, processor: Any) -> dict[str, Any]:
        """An example for a model whose base does not look at it; what only the base reads, such as
        pixels, may be left blank, which saves the time that they take."""
        return self.transform(values, processor=processor, rng=None)

    def uncacheable_reason(self, data: EncodedData, *, processor: Any) -> str | None:
        """Why a frozen base makes something else of an example each time that it is learnt from;
        None: it makes the same."""
        return None

    def padded_lengths(self, data: EncodedData) -> ndarray:
        """Of each example (N,), a number: those of the same have no padding beside one another but
        their own."""
        from dtl.data.order import padded

        return data.counts("samples") if self.media_column == "audio" else padded(data.lengths)

    @abstractmethod
    def collate(self, examples: list[dict[str, Any]], *, pad_token_id: int) -> dict[str, Tensor]:
        """Pad examples into one batch on the CPU. `padding`: the tokenizer's padding token."""

    def always_frozen(self, model: nn.Module, *, random_init: bool) -> Iterable[nn.Parameter]:
        """Parameters that no strategy moves. `random`: the weights are no pretrained ones."""
        return ()

    @abstractmethod
    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """The sum of the losses of all targets, shape (), in fp32."""

    @abstractmethod
    def eval_records(
        self, model: nn.Module, batch: dict[str, Tensor], *, processor: Any
    ) -> list[EvalRecord]:
        """What scoring needs of each example, as JSON, in the order of the batch. `processor`: the
        model's tokenizer, which turns what was generated into text."""

    @abstractmethod
    def score(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> dict[str, float]:
        """Scores over all examples; outcomes of several ranks are simply joined."""

    def describe_prediction(self, record: EvalRecord, dataset_stats: DatasetStats) -> Prediction:
        """An outcome as a person reads it."""
        said = record.get("generated", record.get("hypothesis"))
        return Prediction(record.get("reference"), said)

    @abstractmethod
    def with_placeholder_target(
        self, fields: dict[str, Any], dataset_stats: DatasetStats
    ) -> dict[str, Any]:
        """Fields to predict for, with any answer that `check` and the encoder take put in."""

    def prompt_encoder(
        self, processor: Any, dataset_stats: DatasetStats, base_config: Any
    ) -> Callable[[Row], Encoded | Skip]:
        """The encoder of rows that `answered` has made."""
        return self.encoder(processor, dataset_stats, base_config)

    def chunk_row(self, row: Row, *, processor: Any, dataset_stats: DatasetStats) -> list[Row]:
        """A row to predict for as those that the model reads one by one, whose predicted texts are
        joined; most tasks read it at once."""
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
        """What the model says of each example, as JSON; the answers in the batch are not looked at.

        `longest`: most tokens of a text that is generated; None: as the task is set.
        """

    @abstractmethod
    def metric_counts(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> ndarray:
        """What each example adds to the sums (N, K) that its `best` score is made of, in fp64."""

    @abstractmethod
    def metric_from_counts(self, counts: ndarray) -> ndarray:
        """The `best` score, as `score` has it, of each row of sums: (..., K) to (...)."""


class Classification(Task):
    """One label for each example, whatever it is; `facts["labels"]` are all there are."""

    best = "macro_f1"
    single_forward = True

    def head_config(self, dataset_stats: DatasetStats) -> dict[str, Any]:
        return {**labels.head_for(dataset_stats["labels"]), **dataset_stats.get("settings", {})}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        from torch.nn.functional import cross_entropy

        return cross_entropy(_class_scores(model, batch), batch["labels"], reduction="sum")

    def eval_records(
        self, model: nn.Module, batch: dict[str, Tensor], *, processor: Any
    ) -> list[EvalRecord]:
        return labels.guesses(_class_scores(model, batch), batch["labels"])

    def score(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> dict[str, float]:
        """Accuracy, macro-F1 over the labels that occur, top-5 and the confusion counts."""
        return labels.scores_of(records, dataset_stats["labels"])

    def describe_prediction(self, record: EvalRecord, dataset_stats: DatasetStats) -> Prediction:
        named = dataset_stats["labels"]
        return Prediction(named[record["label"]], named[record["predicted"]])

    def with_placeholder_target(
        self, fields: dict[str, Any], dataset_stats: DatasetStats
    ) -> dict[str, Any]:
        return {**fields, "label": dataset_stats["labels"][0]}

    def predict(
        self,
        model: nn.Module,
        batch: dict[str, Tensor],
        *,
        processor: Any,
        dataset_stats: DatasetStats,
        max_new_tokens: int | None,
    ) -> list[dict[str, Any]]:
        """The likeliest label, and the probability of each."""
        return labels.likely(_class_scores(model, batch), dataset_stats["labels"])

    def metric_counts(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> ndarray:
        """For each class: guessed right, guessed, true."""
        return labels.counts_of(records, dataset_stats["labels"])

    def metric_from_counts(self, counts: ndarray) -> ndarray:
        return labels.macro_f1_of(counts)


def _class_scores(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Of each example (B, C), in fp32."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    logits: Tensor = model(**inputs).logits
    return logits.float()


def spans_from_labels(tokens: Any, labels: Any) -> list[TokenSpan]:
    """Runs of tokens that are learnt or not, by a label each; labels without tokens are learnt; one
    label for all is no token."""
    import numpy as np

    labels = None if labels is None or np.ndim(labels) == 0 else np.asarray(labels)
    if tokens is None:
        return [] if labels is None else [TokenSpan(labels[labels != IGNORE_INDEX].tolist(), True)]
    tokens = np.asarray(tokens)
    if labels is None or len(labels) != len(tokens):
        return [TokenSpan(tokens.tolist(), False)]
    learnt = labels != IGNORE_INDEX
    ends = [*(np.flatnonzero(np.diff(learnt)) + 1).tolist(), len(tokens)]
    starts = [0, *ends[:-1]]
    return [
        TokenSpan(tokens[start:end].tolist(), bool(learnt[start]))
        for start, end in zip(starts, ends, strict=True)
        if end > start
    ]


def find_text_fault(row: Row, column: str) -> Fault | None:
    """The fault of a column that is missing or holds something else than text."""
    value = row.fields.get(column)
    if isinstance(value, str):
        return None
    return Fault(
        row.location,
        f"there is no `{column}` (the row has {', '.join(map(repr, row.fields))})"
        if value is None
        else f"`{column}` is {type(value).__name__} ({str(value)[:40]!r}), not text",
        f"give a string, or map the column in data.columns: {{{column}: ...}}",
    )


def get_text(row: Row, column: str, *, max_tokens: int) -> str:
    """The text in a column, which the task's check has seen to be one.

    What lies far beyond the first `tokens` tokens is cut off: a row of megabytes is not worth the
    minutes that its tokens would take.
    """
    return str(row.fields[column])[: max_characters(max_tokens)]


def max_characters(max_tokens: int) -> int:
    """Characters that hold so many tokens of any tokenizer."""
    return max(MAX_TEXT_CHARACTERS, max_tokens * MAX_TOKEN_CHARACTERS)


def max_text_tokens(requested: int, processor: Any, base_config: Any) -> int:
    """Tokens that a text may have: what is asked for, but no more than the model can read."""
    positions = getattr(base_config, "max_position_embeddings", None) or 2**31
    # RoBERTa numbers its positions from 2: only its tokenizer knows the true limit.
    return int(min(requested, positions, processor.model_max_length))


def pad_sequences(rows: list[Any], *, value: int, multiple: int = MULTIPLE) -> Tensor:
    """Whole numbers of uneven length as one tensor (B, T), padded on the right."""
    import numpy as np
    import torch

    longest = -(-max(len(row) for row in rows) // multiple) * multiple
    filled = np.full((len(rows), longest), value, dtype=np.int64)
    for place, row in enumerate(rows):
        filled[place, : len(row)] = row
    return torch.from_numpy(filled)


def attention_mask(rows: list[Any], *, multiple: int = MULTIPLE) -> Tensor:
    """1 where a row has a value, 0 where it is padded; by length, so that a real token that equals
    the padding token still counts."""
    return pad_sequences([[1] * len(row) for row in rows], value=0, multiple=multiple)
