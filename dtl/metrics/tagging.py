"""Precision, recall and F1 of entities, as seqeval counts them."""

# N examples

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dtl.data.tags import IOB_TAG, OUTSIDE
from dtl.metrics.base import EvalRecord

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class TagSequences:
    """The true and the predicted tags of each example, by names that seqeval reads."""

    true: list[list[str]]
    predicted: list[list[str]]


def tag_sequences(records: list[EvalRecord], names: list[str]) -> TagSequences:
    """Return the tags of records with `tags` and `predicted` (class numbers; None: not predicted).

    Where no name is O, B-name or I-name, each word becomes an entity of its own.
    """
    if not any(IOB_TAG.fullmatch(name) for name in names):
        names = [f"B-{name}" for name in names]
    return TagSequences(
        [[names[tag] for tag in record["tags"]] for record in records],
        [
            [OUTSIDE if tag is None else names[tag] for tag in record["predicted"]]
            for record in records
        ],
    )


def entity_scores(tags: TagSequences) -> dict[str, float]:
    """Return accuracy of tags; precision, recall and F1 of entities, over all and for each type."""
    from seqeval.metrics import accuracy_score
    from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

    true, predicted = tags.true, tags.predicted
    overall = precision_recall_fscore_support(true, predicted, average="micro", zero_division=0)
    by_type = precision_recall_fscore_support(true, predicted, average=None, zero_division=0)
    scores = {
        "accuracy": float(accuracy_score(true, predicted)),
        **dict(zip(("precision", "recall", "f1"), map(float, overall), strict=False)),
    }
    for index, kind in enumerate(_entity_types(tags)):
        for name, values in zip(("precision", "recall", "f1"), by_type, strict=False):
            scores[f"{name}/{kind}"] = float(values[index])
        scores[f"support/{kind}"] = int(by_type[3][index])
    return scores


def _entity_types(tags: TagSequences) -> list[str]:
    """Return the types of entities that occur, in seqeval's order."""
    from seqeval.metrics.sequence_labeling import get_entities

    entities = [*get_entities(tags.true), *get_entities(tags.predicted)]
    return sorted({kind for kind, _, _ in entities})


def entity_counts(tags: TagSequences) -> np.ndarray:
    """Return of each example (N, 3), fp64: entities that are correct, predicted and true."""
    import numpy as np
    from seqeval.metrics.sequence_labeling import get_entities

    counts = []
    for true_tags, predicted_tags in zip(tags.true, tags.predicted, strict=True):
        true, predicted = set(get_entities(true_tags)), set(get_entities(predicted_tags))
        counts.append((len(true & predicted), len(predicted), len(true)))
    return np.array(counts, dtype=np.float64)


def entity_f1_from_counts(counts: np.ndarray) -> np.ndarray:
    """Return the F1 of sums of entity_counts: (..., 3) to (...)."""
    import numpy as np

    return 2 * counts[..., 0] / np.maximum(counts[..., 1] + counts[..., 2], 1)
