"""Token classification: a tag for each word of a text, such as named entities."""

# B batch, T tokens, W words, C classes

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from dtl.config.schema.base import Record
from dtl.core.errors import DtlError, Fault
from dtl.data.example import EncodedExample, Skip
from dtl.data.label_values import label_text
from dtl.data.labels import label_config, to_label
from dtl.data.modalities.text import limit_to_tokenizer
from dtl.data.padding import pad_sequences, pad_token_inputs
from dtl.data.tag_schemes import (
    STATS_KEY,
    SchemeDetector,
    convert_tag,
    convert_tags,
    scheme_of_stats,
)
from dtl.data.tags import (
    check_tag_scheme,
    find_list_fault,
    find_tag_fault,
    find_unknown_tag_fault,
    read_list,
    tag_sort_key,
    to_inside,
)
from dtl.data.word_tokens import tokenize_words
from dtl.losses.cross_entropy import IGNORE_INDEX, token_cross_entropy
from dtl.metrics.base import EvalRecord, Metric
from dtl.metrics.perplexity import mean_loss
from dtl.metrics.tagging import (
    entity_counts,
    entity_f1_from_counts,
    entity_scores,
    tag_sequences,
)
from dtl.tasks._classification import LabelNames
from dtl.tasks.base import DatasetStats, Encoder, ExamplePreview, Prediction, Task

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor, nn

    from dtl.data.sources.rows import Row

MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Options(Record):
    """Options of `task: token_classification`."""

    max_length: int = Field(
        256,
        ge=8,
        description="Longest text in tokens; words beyond it are not supervised, and count as "
        "missed in the scores.",
    )
    labels: LabelNames | None = Field(
        None,
        description="The tags in order, to which class numbers in the data refer. Default: those "
        "of the training rows.",
    )
    label_all_tokens: bool = Field(
        False,
        description="Supervise every token of a word (B- becomes I- after the first one), not only "
        "the first.",
    )


class Plugin(Task):
    """Tagging; each labeled token is one target. Scores count words and entities."""

    auto_class = "AutoModelForTokenClassification"
    required_columns = "`tokens` (a list of words) and `tags` (a tag for each: O, B-name, I-name)"
    metric = Metric("f1")
    single_forward = True
    truncation_options: ClassVar = {"max_length": ("input_ids",)}
    options: Options

    def find_row_fault(self, row: Row) -> Fault | None:
        for column in ("tokens", "tags"):
            if fault := find_list_fault(row, column):
                return fault
        words, tags = read_list(row, "tokens"), read_list(row, "tags")
        if len(words) != len(tags):
            return Fault(
                row.location, f"{len(words)} tokens have {len(tags)} tags", "give each word one tag"
            )
        for word in words:
            if not isinstance(word, str):
                return Fault(row.location, f"the word {word!r} is not text", "give strings")
        names = self.options.labels
        inside = {to_inside(name) for name in names or ()} if self.options.label_all_tokens else ()
        faults = (
            find_tag_fault(row, tag, names, also=inside)
            for tag in tags
            if convert_tag(label_text(tag)) not in (names or ())
        )
        return next(filter(None, faults), None)

    def preview(self, row: Row) -> ExamplePreview:
        words, tags = self._words_and_tags(row)
        return ExamplePreview(" ".join(words), labels=tuple(tags))

    def written_labels(self, row: Row) -> tuple[object, ...]:
        return tuple(read_list(row, "tags"))

    def collect_dataset_stats(self, rows: Iterable[Row], base_config: Any) -> DatasetStats:
        """Return the tags; in the base's own order where it has a head for exactly these."""
        first_seen: dict[str, str] = {}
        detector = SchemeDetector()
        for row in rows:
            row_tags = self._words_and_tags(row)[1]
            detector.add(row_tags, row.location)
            for tag in row_tags:
                first_seen.setdefault(tag, row.location)
        if (scheme := detector.find()) is not None:
            named = map(convert_tag, self.options.labels or ())
            stats = self._label_stats({*named, *detector.converted}, base_config)
            return {**stats, STATS_KEY: scheme.to_stats()}
        check_tag_scheme(first_seen)
        return self._label_stats(set(self.options.labels or first_seen), base_config)

    def _label_stats(self, tags: set[str], base_config: Any) -> DatasetStats:
        if self.options.label_all_tokens:
            tags |= {to_inside(tag) for tag in tags}
        if len(tags) < 2:
            raise DtlError.of(
                "data.train",
                f"all words have the tag {min(tags)!r}" if tags else "there are no words",
                "tagging needs at least two tags",
            )
        known = [
            str(name) for _, name in sorted((getattr(base_config, "id2label", None) or {}).items())
        ]
        if set(known) == tags:
            return {"labels": known}
        listed = [tag for tag in self.options.labels or () if tag in tags]
        return {"labels": listed + sorted(tags - set(listed), key=tag_sort_key)}

    def find_data_notes(self, dataset_stats: DatasetStats) -> Iterator[str]:
        """Yield how the tags are converted."""
        if (scheme := scheme_of_stats(dataset_stats)) is not None:
            yield scheme.describe()

    def find_data_faults(self, dataset_stats: DatasetStats) -> Iterator[Fault]:
        """Yield entities that begin with I- although others begin with B-."""
        scheme = scheme_of_stats(dataset_stats)
        if scheme is not None and (fault := scheme.find_fault()) is not None:
            yield fault

    def head_config(self, dataset_stats: DatasetStats) -> dict[str, Any]:
        return label_config(dataset_stats["labels"])

    def max_length(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> int:
        return limit_to_tokenizer(self.options.max_length, processor, base_config)

    def encoder(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> Encoder:
        _check_fast_tokenizer(processor)
        class_indices = {label: index for index, label in enumerate(dataset_stats["labels"])}
        limit = self.max_length(processor, dataset_stats, base_config)
        scheme = scheme_of_stats(dataset_stats)

        def encode(row: Row) -> EncodedExample | Skip:
            words, tags = self._words_and_tags(row)
            tags = convert_tags(tags, scheme)
            for tag in tags:
                if fault := find_unknown_tag_fault(row, tag, class_indices):
                    raise DtlError(fault)
            encoded = tokenize_words(words, processor, limit)
            first = encoded.first_tokens(len(words))
            labels = [IGNORE_INDEX] * len(encoded.word_ids)
            for position, word in enumerate(encoded.word_ids):
                if word is not None and position == first[word]:
                    labels[position] = class_indices[tags[word]]
                elif word is not None and self.options.label_all_tokens:
                    labels[position] = class_indices[to_inside(tags[word])]
            targets = sum(label != IGNORE_INDEX for label in labels)
            if targets == 0:
                return Skip("no words")
            values = {
                **encoded.inputs,
                "labels": labels,
                "tags": [class_indices[tag] for tag in tags],
                "first": first,
            }
            return EncodedExample(values, len(labels), targets)

        return encode

    def _words_and_tags(self, row: Row) -> tuple[list[str], list[str]]:
        """Return words and tags of a row; class numbers become the names in task.labels."""
        tags = read_list(row, "tags")
        return read_list(row, "tokens"), [to_label(tag, self.options.labels) for tag in tags]

    def collate(self, examples: list[dict[str, Any]], *, pad_token_id: int) -> dict[str, Tensor]:
        targets = {
            name: pad_sequences([example[name] for example in examples], value=IGNORE_INDEX)
            for name in ("labels", "tags", "first")
        }
        return {**pad_token_inputs(examples, pad_token_id=pad_token_id), **targets}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return token_cross_entropy(_tag_logits(model, batch), batch["labels"]).sum()

    def eval_records(
        self, model: nn.Module, batch: dict[str, Tensor], *, processor: Any
    ) -> list[EvalRecord]:
        """Return loss, targets, tags and predictions; a truncated word has the prediction None."""
        logits_BTC = _tag_logits(model, batch)
        losses_B = token_cross_entropy(logits_BTC, batch["labels"]).double().sum(1)
        first_BW = batch["first"]
        predicted_BW = logits_BTC.argmax(-1).gather(1, first_BW.clamp(min=0))
        predicted_BW = predicted_BW.masked_fill(first_BW < 0, IGNORE_INDEX)
        columns = zip(
            losses_B.tolist(),
            (batch["labels"] != IGNORE_INDEX).sum(1).tolist(),
            batch["tags"].tolist(),
            predicted_BW.tolist(),
            strict=True,
        )
        records = []
        for loss, targets, tags, predicted in columns:
            words = sum(tag != IGNORE_INDEX for tag in tags)
            known = [None if tag == IGNORE_INDEX else tag for tag in predicted[:words]]
            records.append(
                {"loss": loss, "targets": targets, "tags": tags[:words], "predicted": known}
            )
        return records

    def score(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> dict[str, float]:
        """Return loss (nats a target), accuracy, and precision, recall and F1 of entities, over the
        full rows."""
        tags = tag_sequences(records, dataset_stats["labels"])
        return {"loss": mean_loss(records), **entity_scores(tags)}

    def describe_prediction(self, record: EvalRecord, dataset_stats: DatasetStats) -> Prediction:
        """Return the tag of each word."""
        tags = tag_sequences([record], dataset_stats["labels"])
        return Prediction(" ".join(tags.true[0]), " ".join(tags.predicted[0]))

    def with_placeholder_target(
        self, fields: dict[str, Any], dataset_stats: DatasetStats
    ) -> dict[str, Any]:
        words = fields.get("tokens")
        tags = [dataset_stats["labels"][0]] * len(words) if isinstance(words, list) else []
        return {**fields, "tags": tags}

    def predict(
        self,
        model: nn.Module,
        batch: dict[str, Tensor],
        *,
        processor: Any,
        dataset_stats: DatasetStats,
        max_new_tokens: int | None,
    ) -> list[dict[str, Any]]:
        """Return a tag for each word; None for one that was truncated."""
        records = self.eval_records(model, batch, processor=processor)
        names = dataset_stats["labels"]
        return [
            {"predicted": [None if tag is None else names[tag] for tag in record["predicted"]]}
            for record in records
        ]

    def metric_counts(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> ndarray:
        return entity_counts(tag_sequences(records, dataset_stats["labels"]))

    def metric_from_counts(self, counts: ndarray) -> ndarray:
        return entity_f1_from_counts(counts)


def _check_fast_tokenizer(tokenizer: Any) -> None:
    """Raise DtlError for a slow tokenizer."""
    if not tokenizer.is_fast:
        raise DtlError.of(
            "model.path",
            f"{type(tokenizer).__name__} is a slow tokenizer, which has no offsets of tokens",
            "use a model with a fast tokenizer (a tokenizer.json)",
        )


def _tag_logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return class scores (B, T, C), fp32."""
    inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
    logits: Tensor = model(**inputs).logits
    return logits.float()
