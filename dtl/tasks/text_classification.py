"""One label for a text, or for a pair of texts, with any encoder or decoder."""

# B batch, T tokens, C classes

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from pydantic import Field

from dtl.config.record import Record
from dtl.data.encoded import Encoded, Skip
from dtl.data.source import Row
from dtl.errors import DtlError, Fault, near
from dtl.tasks import Facts, Outcome, Task, mask, not_text, pad, room, text_of

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor, nn

TEXTS = ("text", "text_pair")


class Options(Record):
    """Options of `task: text_classification`."""

    max_length: int = Field(256, ge=2, description="Longest text in tokens; the rest is cut off.")
    labels: tuple[str, ...] | None = Field(
        None, description="The labels in order; left out: those of the training rows, sorted."
    )


class Plugin(Task):
    """Single-label classification; each example is one target."""

    head = "AutoModelForSequenceClassification"
    reads = "`text` (and `text_pair`) and `label`"
    best = "macro_f1"
    options: Options

    def check(self, row: Row) -> Fault | None:
        return _text_fault(row) or _label_fault(row) or self._unlisted(row)

    def _unlisted(self, row: Row) -> Fault | None:
        labels, label = self.options.labels, _label(row)
        if labels is None or label in labels:
            return None
        hint = near(label, labels) or "the labels are " + ", ".join(labels)
        return Fault(
            row.place,
            f"label {label!r} is not in task.labels ({hint})",
            "correct the row, or add the label",
        )

    def survey(self, rows: Iterable[Row], base: Any) -> Facts:
        """The labels, and whether the base already has a head for exactly these."""
        seen = sorted({_label(row) for row in rows})
        labels = list(self.options.labels or seen)
        if len(labels) < 2:
            raise DtlError.of(
                "data.train",
                f"all rows have the label {labels[0]!r}" if labels else "there are no rows",
                "classification needs at least two labels",
            )
        known = [str(name) for _, name in sorted((getattr(base, "id2label", None) or {}).items())]
        return {"labels": known if set(known) == set(labels) else labels}

    def head_settings(self, facts: Facts) -> dict[str, Any]:
        labels = facts["labels"]
        return {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {label: place for place, label in enumerate(labels)},
            "problem_type": "single_label_classification",
        }

    def encoder(self, processor: Any, facts: Facts, base: Any) -> Callable[[Row], Encoded | Skip]:
        places = {label: place for place, label in enumerate(facts["labels"])}
        limit = room(self.options.max_length, processor, base)

        def encode(row: Row) -> Encoded | Skip:
            label = _label(row)
            if label not in places:
                hint = near(label, places) or "the labels are " + ", ".join(places)
                raise DtlError.of(
                    row.place,
                    f"label {label!r} does not occur in the training rows ({hint})",
                    "correct the row, or list every label in task.labels",
                )
            texts = [text_of(row, name, tokens=limit) for name in TEXTS if row.fields.get(name)]
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
            return Encoded({**values, "labels": places[label]}, len(values["input_ids"]), 1)

        return encode

    def collate(self, examples: list[dict[str, Any]], *, padding: int) -> dict[str, Tensor]:
        import torch

        inputs = [example["input_ids"] for example in examples]
        batch = {"input_ids": pad(inputs, value=padding), "attention_mask": mask(inputs)}
        if "token_type_ids" in examples[0]:
            batch["token_type_ids"] = pad([row["token_type_ids"] for row in examples], value=0)
        return {**batch, "labels": torch.tensor([int(row["labels"]) for row in examples])}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        from torch.nn.functional import cross_entropy

        return cross_entropy(_logits(model, batch), batch["labels"], reduction="sum")

    def outcomes(
        self, model: nn.Module, batch: dict[str, Tensor], *, processor: Any
    ) -> list[Outcome]:
        from torch.nn.functional import cross_entropy

        logits_BC = _logits(model, batch)
        losses_B = cross_entropy(logits_BC, batch["labels"], reduction="none")
        return [
            {"loss": loss, "label": label, "predicted": predicted}
            for loss, label, predicted in zip(
                losses_B.tolist(),
                batch["labels"].tolist(),
                logits_BC.argmax(-1).tolist(),
                strict=True,
            )
        ]

    def score(self, outcomes: list[Outcome], facts: Facts) -> dict[str, float]:
        """Accuracy, macro-F1 over the labels that occur, and the confusion counts."""
        from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

        truth = [outcome["label"] for outcome in outcomes]
        guess = [outcome["predicted"] for outcome in outcomes]
        labels = facts["labels"]
        counts = confusion_matrix(truth, guess, labels=range(len(labels)))
        return {
            "loss": math.fsum(outcome["loss"] for outcome in outcomes) / len(outcomes),
            "accuracy": float(accuracy_score(truth, guess)),
            "macro_f1": float(f1_score(truth, guess, average="macro", zero_division=0.0)),
            **{
                f"confusion/{actual}/{predicted}": int(counts[row, column])
                for row, actual in enumerate(labels)
                for column, predicted in enumerate(labels)
            },
        }

    def answered(self, fields: dict[str, Any], facts: Facts) -> dict[str, Any]:
        return {**fields, "label": facts["labels"][0]}

    def predict(
        self,
        model: nn.Module,
        batch: dict[str, Tensor],
        *,
        processor: Any,
        facts: Facts,
        longest: int | None,
    ) -> list[dict[str, Any]]:
        """The likeliest label, and the probability of each."""
        return [
            {
                "predicted": facts["labels"][max(range(len(shares)), key=shares.__getitem__)],
                "probabilities": dict(zip(facts["labels"], shares, strict=True)),
            }
            for shares in _logits(model, batch).softmax(-1).tolist()
        ]

    def counts(self, outcomes: list[Outcome], facts: Facts) -> ndarray:
        """For each class: guessed right, guessed, true."""
        import numpy as np

        ones = np.eye(len(facts["labels"]))
        true_NC = ones[[outcome["label"] for outcome in outcomes]]
        guessed_NC = ones[[outcome["predicted"] for outcome in outcomes]]
        return np.concatenate([true_NC * guessed_NC, guessed_NC, true_NC], axis=1)

    def value_of(self, sums: ndarray) -> ndarray:
        import numpy as np

        right, guessed, true = np.split(sums, 3, axis=-1)
        occurs = guessed + true > 0
        f1 = 2 * right / np.where(occurs, guessed + true, 1)
        return f1.sum(-1) / occurs.sum(-1)


def _logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Class scores (B, C) in fp32."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    logits: Tensor = model(**inputs).logits
    return logits.float()


def _label(row: Row) -> str:
    return str(row.fields["label"])


def _text_fault(row: Row) -> Fault | None:
    """A text may be null, which is empty; it may not be missing."""
    if "text" not in row.fields:
        return Fault(
            row.place,
            f"there is no `text` (the row has {_named(row)})",
            "map its column in data.columns: {text: ...}",
        )
    given = (name for name in TEXTS if row.fields.get(name) is not None)
    return next(filter(None, (not_text(row, name) for name in given)), None)


def _label_fault(row: Row) -> Fault | None:
    value = row.fields.get("label")
    if value is not None and not isinstance(value, (list, dict, bytes)):
        return None
    return Fault(
        row.place,
        f"there is no `label` (the row has {_named(row)})"
        if value is None
        else f"`label` is a {type(value).__name__}",
        "give each row one label, or map its column in data.columns: {label: ...}",
    )


def _named(row: Row) -> str:
    return ", ".join(map(repr, row.fields)) or "nothing"
