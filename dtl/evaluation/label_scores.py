"""The scores of each label among the scores of a run, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Scores that metrics give by label, as f1/LABEL, in the order of the table's columns.
COLUMNS = (
    "precision",
    "recall",
    "f1",
    "average_precision",
    "best_threshold",
    "pearson",
    "spearman",
    "support",
)


@dataclass(frozen=True)
class LabelTable:
    """A header, and a row of texts for each label; empty where a label has no such score."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def make_label_table(scores: Mapping[str, float]) -> LabelTable | None:
    """Return the scores by label; None where there are none."""
    by_label: dict[str, dict[str, float]] = {}
    for key, value in scores.items():
        column, is_by_label, label = key.partition("/")
        if is_by_label and column in COLUMNS:
            by_label.setdefault(label, {})[column] = value
    if not by_label:
        return None
    columns = [name for name in COLUMNS if any(name in each for each in by_label.values())]
    rows = (
        (label, *(f"{each[name]:.4g}" if name in each else "" for name in columns))
        for label, each in by_label.items()
    )
    return LabelTable(("label", *(name.replace("_", " ") for name in columns)), tuple(rows))
