"""A tag for each word of a text, such as the names in it."""

# B batch, T tokens, W words, C classes

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from dtl.config.record import Record
from dtl.core.errors import DtlError, Fault, near
from dtl.data.example import Encoded, Skip
from dtl.tasks.base import (
    IGNORE_INDEX,
    DatasetStats,
    EvalRecord,
    ExamplePreview,
    Prediction,
    Task,
    attention_mask,
    max_text_tokens,
    pad_sequences,
)

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor, nn

    from dtl.data.sources.rows import Row

OUTSIDE = "O"
IN_SCHEME = re.compile(r"O|[BI]-.+")
MODEL_READS = ("input_ids", "attention_mask", "token_type_ids")


class Options(Record):
    """Options of `task: token_classification`."""

    max_length: int = Field(
        256,
        ge=8,
        description="Longest text in tokens; words beyond are not learnt, and count as missed in "
        "the scores.",
    )
    labels: tuple[str, ...] | None = Field(
        None,
        description="The tags in order, which class numbers in the data refer to; left out: those "
        "of the training rows.",
    )
    label_all: bool = Field(
        False,
        description="Learn the tag on every piece of a word (B- becomes I- after the first piece), "
        "not on the first alone.",
    )


class Plugin(Task):
    """Tagging; each labelled piece of a word is one target, each entity one thing to find."""

    auto_class = "AutoModelForTokenClassification"
    required_columns = "`tokens` (a list of words) and `tags` (a tag for each: O, B-name, I-name)"
    best = "f1"
    single_forward = True
    truncation_options: ClassVar = {"max_length": ("input_ids",)}
    options: Options

    def find_row_fault(self, row: Row) -> Fault | None:
        words, tags = row.fields.get("tokens"), row.fields.get("tags")
        for column, value in {"tokens": words, "tags": tags}.items():
            if not isinstance(value, list):
                return _no_list(row, column)
        assert isinstance(words, list) and isinstance(tags, list)
        if len(words) != len(tags):
            return Fault(
                row.location, f"{len(words)} tokens have {len(tags)} tags", "give each word one tag"
            )
        for word in words:
            if not isinstance(word, str):
                return Fault(row.location, f"the word {word!r} is not text", "give strings")
        return next((fault for tag in tags if (fault := self._wrong(tag, row))), None)

    def _wrong(self, tag: Any, row: Row) -> Fault | None:
        names = self.options.labels
        if isinstance(tag, str):
            inside = {_inside(name) for name in names or ()} if self.options.label_all else set()
            return _unknown(tag, [*names, *inside], row) if names else None
        if not isinstance(tag, int) or isinstance(tag, bool):
            return Fault(row.location, f"the tag {tag!r} is no name", "give strings")
        if names is not None and 0 <= tag < len(names):
            return None
        problem = "has no name" if names is None else f"is beyond the {len(names)} task.labels"
        return Fault(
            row.location,
            f"the class number {tag} {problem}",
            "list the names in their order in task.labels, such as [O, B-PER, I-PER]",
        )

    def preview(self, row: Row) -> ExamplePreview:
        words, tags = self._words(row)
        return ExamplePreview(" ".join(words), labels=tuple(tags))

    def collect_dataset_stats(self, rows: Iterable[Row], base_config: Any) -> DatasetStats:
        """The tags, and whether the base already has a head for exactly these."""
        first_seen: dict[str, str] = {}
        for row in rows:
            for tag in self._words(row)[1]:
                first_seen.setdefault(tag, row.location)
        _refuse_mixed_schemes(first_seen)
        tags = set(self.options.labels or first_seen)
        if self.options.label_all:
            tags |= {_inside(tag) for tag in tags}
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
        listed = list(self.options.labels or ())
        return {"labels": listed + sorted(tags - set(listed), key=_by_type)}

    def head_config(self, dataset_stats: DatasetStats) -> dict[str, Any]:
        labels = dataset_stats["labels"]
        return {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {label: place for place, label in enumerate(labels)},
        }

    def max_length(self, processor: Any, dataset_stats: DatasetStats, base_config: Any) -> int:
        return max_text_tokens(self.options.max_length, processor, base_config)

    def encoder(
        self, processor: Any, dataset_stats: DatasetStats, base_config: Any
    ) -> Callable[[Row], Encoded | Skip]:
        _refuse_slow(processor)
        places = {label: place for place, label in enumerate(dataset_stats["labels"])}
        limit = self.max_length(processor, dataset_stats, base_config)

        def encode(row: Row) -> Encoded | Skip:
            words, tags = self._words(row)
            for tag in tags:
                if fault := _unknown(tag, places, row):
                    raise DtlError(fault)
            tokens, owners = _read(words, processor, limit)
            first = _first_token_of_each(owners, len(words))
            labels = [IGNORE_INDEX] * len(owners)
            for place, owner in enumerate(owners):
                if owner is not None and place == first[owner]:
                    labels[place] = places[tags[owner]]
                elif owner is not None and self.options.label_all:
                    labels[place] = places[_inside(tags[owner])]
            targets = sum(label != IGNORE_INDEX for label in labels)
            if targets == 0:
                return Skip("no words")
            numbers = [places[tag] for tag in tags]
            return Encoded(
                {**tokens, "labels": labels, "tags": numbers, "first": first}, len(owners), targets
            )

        return encode

    def _words(self, row: Row) -> tuple[list[str], list[str]]:
        """Words and tags of a row; class numbers become the names in task.labels."""
        words: Any = row.fields["tokens"]
        tags: Any = row.fields["tags"]
        names = self.options.labels or ()
        return words, [tag if isinstance(tag, str) else names[tag] for tag in tags]

    def collate(self, examples: list[dict[str, Any]], *, pad_token_id: int) -> dict[str, Tensor]:
        inputs = [example["input_ids"] for example in examples]
        batch = {
            "input_ids": pad_sequences(inputs, value=pad_token_id),
            "attention_mask": attention_mask(inputs),
        }
        if "token_type_ids" in examples[0]:
            batch["token_type_ids"] = pad_sequences(
                [row["token_type_ids"] for row in examples], value=0
            )
        words = {
            name: pad_sequences([row[name] for row in examples], value=IGNORE_INDEX)
            for name in ("labels", "tags", "first")
        }
        return {**batch, **words}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return _losses(_logits(model, batch), batch["labels"]).sum()

    def eval_records(
        self, model: nn.Module, batch: dict[str, Tensor], *, processor: Any
    ) -> list[EvalRecord]:
        """A word that was cut off, or of which the tokenizer leaves nothing, has no prediction."""
        logits_BTC = _logits(model, batch)
        losses_B = _losses(logits_BTC, batch["labels"]).double().sum(1)
        first_BW = batch["first"]
        guesses_BW = logits_BTC.argmax(-1).gather(1, first_BW.clamp(min=0))
        guesses_BW = guesses_BW.masked_fill(first_BW < 0, IGNORE_INDEX)
        found = zip(
            losses_B.tolist(),
            (batch["labels"] != IGNORE_INDEX).sum(1).tolist(),
            batch["tags"].tolist(),
            guesses_BW.tolist(),
            strict=True,
        )
        outcomes = []
        for loss, targets, tags, guesses in found:
            words = sum(tag != IGNORE_INDEX for tag in tags)
            predicted = [None if guess == IGNORE_INDEX else guess for guess in guesses[:words]]
            outcomes.append(
                {"loss": loss, "targets": targets, "tags": tags[:words], "predicted": predicted}
            )
        return outcomes

    def score(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> dict[str, float]:
        """Entities found whole and of the right type, over the full rows, as seqeval counts them.

        Where no tag is O, B-name or I-name, each word is an entity of its own.
        """
        from seqeval.metrics import accuracy_score
        from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

        truth, guess = _tags(records, dataset_stats)
        overall = precision_recall_fscore_support(truth, guess, average="micro", zero_division=0)
        each = precision_recall_fscore_support(truth, guess, average=None, zero_division=0)
        scores = {
            "loss": math.fsum(outcome["loss"] for outcome in records)
            / sum(outcome["targets"] for outcome in records),
            "accuracy": float(accuracy_score(truth, guess)),
            **dict(zip(("precision", "recall", "f1"), map(float, overall), strict=False)),
        }
        for place, kind in enumerate(_types(truth, guess)):
            for name, values in zip(("precision", "recall", "f1"), each, strict=False):
                scores[f"{name}/{kind}"] = float(values[place])
            scores[f"support/{kind}"] = int(each[3][place])
        return scores

    def describe_prediction(self, record: EvalRecord, dataset_stats: DatasetStats) -> Prediction:
        """The tag of each word."""
        (truth,), (guess,) = _tags([record], dataset_stats)
        return Prediction(" ".join(truth), " ".join(guess))

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
        """A tag for each word; null for one that was cut off."""
        found = self.eval_records(model, batch, processor=processor)
        names = dataset_stats["labels"]
        return [
            {"predicted": [None if tag is None else names[tag] for tag in outcome["predicted"]]}
            for outcome in found
        ]

    def metric_counts(self, records: list[EvalRecord], dataset_stats: DatasetStats) -> ndarray:
        """Entities found, guessed and true."""
        import numpy as np
        from seqeval.metrics.sequence_labeling import get_entities

        found = []
        for truth, guess in zip(*_tags(records, dataset_stats), strict=True):
            true, guessed = set(get_entities(truth)), set(get_entities(guess))
            found.append((len(true & guessed), len(guessed), len(true)))
        return np.array(found, dtype=np.float64)

    def metric_from_counts(self, counts: ndarray) -> ndarray:
        import numpy as np

        return 2 * counts[..., 0] / np.maximum(counts[..., 1] + counts[..., 2], 1)


def _tags(
    outcomes: list[EvalRecord], facts: DatasetStats
) -> tuple[list[list[str]], list[list[str]]]:
    """The true and the guessed tags of each example, by names that seqeval reads."""
    names = facts["labels"]
    if not any(IN_SCHEME.fullmatch(name) for name in names):
        names = [f"B-{name}" for name in names]
    truth = [[names[tag] for tag in outcome["tags"]] for outcome in outcomes]
    guess = [
        [OUTSIDE if tag is None else names[tag] for tag in outcome["predicted"]]
        for outcome in outcomes
    ]
    return truth, guess


def _no_list(row: Row, column: str) -> Fault:
    value = row.fields.get(column)
    return Fault(
        row.location,
        f"there is no `{column}` (the row has {', '.join(map(repr, row.fields))})"
        if value is None
        else f"`{column}` is {type(value).__name__} ({str(value)[:40]!r}), not a list",
        f"give lists, or map the column in data.columns: {{{column}: ...}}",
    )


def _refuse_mixed_schemes(first_seen: dict[str, str]) -> None:
    """Tags outside of the scheme are fine where all are, as in part-of-speech tagging."""
    strange = [tag for tag in first_seen if not IN_SCHEME.fullmatch(tag)]
    if strange and len(strange) < len(first_seen):
        raise DtlError.of(
            first_seen[strange[0]],
            f"the tag {strange[0]!r} is none of O, B-name and I-name, which other tags are",
            "mark the first word of an entity with B- and the others with I-",
        )


def _refuse_slow(tokenizer: Any) -> None:
    if not tokenizer.is_fast:
        raise DtlError.of(
            "model.path",
            f"{type(tokenizer).__name__} is a slow tokenizer, which does not say what a token was "
            "made of",
            "take a model with a fast tokenizer (a tokenizer.json)",
        )


def _unknown(tag: str, known: Collection[str], row: Row) -> Fault | None:
    if tag in known:
        return None
    hint = near(tag, known) or "the tags are " + ", ".join(known)
    return Fault(
        row.location,
        f"the tag {tag!r} is not among those of the training rows or of task.labels ({hint})",
        "correct the row, or list every tag in task.labels",
    )


def _read(
    words: list[str], tokenizer: Any, limit: int
) -> tuple[dict[str, list[int]], list[int | None]]:
    """Model inputs, and the number of the word that each token is of.

    The words are read as one text with blanks between them, as the model was pretrained; a
    byte-level tokenizer would make other tokens of words that are given apart.
    """
    text = " ".join(words)
    word_at = [number for number, word in enumerate(words) for _ in range(len(word) + 1)]
    read = tokenizer(
        text,
        truncation=True,
        max_length=limit,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    owners: list[int | None] = []
    for (start, _), special in zip(
        read["offset_mapping"], read["special_tokens_mask"], strict=True
    ):
        # A token may begin with the blank before its word, or be that blank.
        solid = next((at for at in range(start, len(text)) if not text[at].isspace()), None)
        owners.append(None if special or solid is None else word_at[solid])
    tokens = {name: list(read[name]) for name in ("input_ids", "token_type_ids") if name in read}
    return tokens, owners


def _first_token_of_each(owners: list[int | None], words: int) -> list[int]:
    """Where each word begins; -1 for one that was cut off."""
    first = [-1] * words
    for place, owner in enumerate(owners):
        if owner is not None and first[owner] < 0:
            first[owner] = place
    return first


def _logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Class scores (B, T, C) in fp32."""
    inputs = {name: batch[name] for name in MODEL_READS if name in batch}
    logits: Tensor = model(**inputs).logits
    return logits.float()


def _losses(logits_BTC: Tensor, labels_BT: Tensor) -> Tensor:
    """Of each token (B, T); 0 where it is not counted."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(
        logits_BTC.flatten(0, 1), labels_BT.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    ).view(labels_BT.shape)


def _inside(tag: str) -> str:
    return f"I-{tag[2:]}" if tag.startswith("B-") else tag


def _by_type(tag: str) -> tuple[bool, str, str]:
    """O first, then B-LOC, I-LOC, B-PER, ..."""
    in_scheme = IN_SCHEME.fullmatch(tag) is not None and tag != OUTSIDE
    return (tag != OUTSIDE, tag[2:] if in_scheme else tag, tag)


def _types(truth: list[list[str]], guess: list[list[str]]) -> list[str]:
    """The types of entities that occur, in seqeval's order."""
    from seqeval.metrics.sequence_labeling import get_entities

    return sorted({kind for kind, _, _ in [*get_entities(truth), *get_entities(guess)]})
