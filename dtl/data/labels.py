"""Labels of rows: which there are, and how well they are guessed."""

# B batch, C classes

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dtl.core.errors import DtlError, Fault, near

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from dtl.data.sources.rows import Row

CELLS_SHOWN = 20  # classes of which every pair is counted; of more, the commonest confusions
CONFUSIONS_SHOWN = 100
TOP = 5


def label_of(row: Row) -> str:
    return str(row.fields["label"])


def label_fault(row: Row, listed: Sequence[str] | None) -> Fault | None:
    """What is wrong with a row's `label`; `listed`: the labels that there may be."""
    value = row.fields.get("label")
    if value is None or isinstance(value, (list, dict, bytes)):
        named = ", ".join(map(repr, row.fields)) or "nothing"
        return Fault(
            row.location,
            f"there is no `label` (the row has {named})"
            if value is None
            else f"`label` is a {type(value).__name__}",
            "give each row one label, or map its column in data.columns: {label: ...}",
        )
    label = label_of(row)
    if listed is None or label in listed:
        return None
    return Fault(
        row.location,
        f"label {label!r} is not in task.labels ({_hint(label, listed)})",
        "correct the row, or add the label",
    )


def labels_of(rows: Iterable[Row], base: Any, listed: Sequence[str] | None) -> list[str]:
    """The labels in order: those listed, else those of the rows, sorted; in the base's own order
    where it has a head for exactly these. Raises DtlError for fewer than two."""
    seen = sorted({label_of(row) for row in rows})
    labels = list(listed or seen)
    if len(labels) < 2:
        raise DtlError.of(
            "data.train",
            f"all rows have the label {labels[0]!r}" if labels else "there are no rows",
            "classification needs at least two labels",
        )
    known = [str(name) for _, name in sorted((getattr(base, "id2label", None) or {}).items())]
    return known if set(known) == set(labels) else labels


def place_of(row: Row, places: dict[str, int]) -> int:
    """The number of a row's label. Raises DtlError for one that no training row has."""
    label = label_of(row)
    if label not in places:
        raise DtlError.of(
            row.location,
            f"label {label!r} does not occur in the training rows ({_hint(label, places)})",
            "correct the row, or list every label in task.labels",
        )
    return places[label]


def _hint(label: str, known: Iterable[str]) -> str:
    return near(label, known) or "the labels are " + ", ".join(known)


def head_for(labels: Sequence[str]) -> dict[str, Any]:
    """Settings that give a transformers model a head for these labels."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: place for place, label in enumerate(labels)},
        "problem_type": "single_label_classification",
    }


def guesses(logits_BC: Tensor, labels_B: Tensor) -> list[dict[str, Any]]:
    """Of each example its loss (nats), its label, the likeliest class, and how many classes are
    held to be likelier than its label."""
    from torch.nn.functional import cross_entropy

    losses_B = cross_entropy(logits_BC, labels_B, reduction="none")
    likelier_B = (logits_BC > logits_BC.gather(1, labels_B[:, None])).sum(1)
    columns = (losses_B, labels_B, logits_BC.argmax(-1), likelier_B)
    names = ("loss", "label", "predicted", "likelier")
    return [
        dict(zip(names, values, strict=True))
        for values in zip(*(column.tolist() for column in columns), strict=True)
    ]


def likely(logits_BC: Tensor, labels: Sequence[str]) -> list[dict[str, Any]]:
    """The likeliest label of each example, and the probability of each."""
    return [
        {
            "predicted": labels[max(range(len(shares)), key=shares.__getitem__)],
            "probabilities": dict(zip(labels, shares, strict=True)),
        }
        for shares in logits_BC.softmax(-1).tolist()
    ]


def counts_of(outcomes: list[dict[str, Any]], labels: Sequence[str]) -> np.ndarray:
    """Of each example (N, 3C), for each class: guessed right, guessed, true."""
    import numpy as np

    ones = np.eye(len(labels))
    true_NC = ones[[outcome["label"] for outcome in outcomes]]
    guessed_NC = ones[[outcome["predicted"] for outcome in outcomes]]
    return np.concatenate([true_NC * guessed_NC, guessed_NC, true_NC], axis=1)


def macro_f1_of(sums: np.ndarray) -> np.ndarray:
    """Macro-F1 over the labels that occur, of sums of such counts (..., 3C)."""
    import numpy as np

    right, guessed, true = np.split(sums, 3, axis=-1)
    occurs = guessed + true > 0
    f1 = 2 * right / np.where(occurs, guessed + true, 1)
    value: np.ndarray = f1.sum(-1) / occurs.sum(-1)
    return value


def scores_of(outcomes: list[dict[str, Any]], labels: Sequence[str]) -> dict[str, float]:
    """Mean loss, accuracy, macro-F1 over the labels that occur, among how many the label is one of
    the five likeliest (where there are more), and the confusion counts."""
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

    truth = [outcome["label"] for outcome in outcomes]
    guess = [outcome["predicted"] for outcome in outcomes]
    scores = {
        "loss": math.fsum(outcome["loss"] for outcome in outcomes) / len(outcomes),
        "accuracy": float(accuracy_score(truth, guess)),
        "macro_f1": float(f1_score(truth, guess, average="macro", zero_division=0.0)),
    }
    if len(labels) > TOP:
        near_the_top = sum(outcome["likelier"] < TOP for outcome in outcomes)
        scores[f"top_{TOP}"] = near_the_top / len(outcomes)
    counts = confusion_matrix(truth, guess, labels=range(len(labels)))
    return {**scores, **_confusion(counts, labels)}


def _confusion(counts: Any, labels: Sequence[str]) -> dict[str, float]:
    cells = {
        f"confusion/{actual}/{predicted}": int(counts[row, column])
        for row, actual in enumerate(labels)
        for column, predicted in enumerate(labels)
        if len(labels) <= CELLS_SHOWN or (row != column and counts[row, column])
    }
    if len(labels) <= CELLS_SHOWN:
        return dict(cells)
    commonest = sorted(cells, key=lambda name: -cells[name])[:CONFUSIONS_SHOWN]
    return {name: cells[name] for name in commonest}
