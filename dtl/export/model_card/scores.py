"""The held-out scores in a model card."""

from __future__ import annotations

from dtl.evaluation.groups import read_group_scores
from dtl.evaluation.label_scores import make_label_table
from dtl.export.model_card.data import ModelCardData


def score_section(card: ModelCardData) -> list[str]:
    """Return the section with the scores of each model and the interval of the metric."""
    lines = ["", "## Held-out scores", ""]
    if not card.scores:
        return [*lines, "There was no held-out data."]
    return [*lines, *_score_table(card.scores), *_format_intervals(card)]


def group_section(card: ModelCardData) -> list[str]:
    """Return the section with the scores of each group; empty where `task.group_by` is not set."""
    column = card.config.task.group_by
    if column is None or not card.scores:
        return []
    last_scores = list(card.scores.values())[-1]
    table = _group_table(last_scores, column, card.metric_name)
    return ["", f"## Held-out scores by {column}", "", *table]


def label_section(card: ModelCardData) -> list[str]:
    """Return the section with the scores of each label; empty where the task has none."""
    table = make_label_table(list(card.scores.values())[-1]) if card.scores else None
    if table is None:
        return []
    lines = [table.header, ("---",) * len(table.header), *table.rows]
    cells = (" | ".join(text.replace("|", "\\|") for text in line) for line in lines)
    return ["", "## Held-out scores by label", "", *(f"| {line} |" for line in cells)]


def _score_table(scores: dict[str, dict[str, float]]) -> list[str]:
    names = [name for name in next(iter(scores.values())) if "/" not in name]
    lines = ["| model | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for model, values in scores.items():
        lines.append(f"| {model} | " + " | ".join(f"{values[name]:.6g}" for name in names) + " |")
    return lines


def _format_intervals(card: ModelCardData) -> list[str]:
    intervals = [
        f"{model} {low:.6g} to {high:.6g}" for model, (low, high) in card.results.intervals.items()
    ]
    if not intervals:
        return []
    title = f"95 % confidence interval of {card.metric_name} (bootstrap over examples)"
    return ["", f"{title}: {', '.join(intervals)}."]


def _group_table(scores: dict[str, float], column: str, metric: str) -> list[str]:
    """Return a row for each group with its interval, then the worst group and the mean."""
    groups = read_group_scores(scores, column)
    if not groups:
        return ["These scores have no breakdown by group."]
    lines = [f"| group | n | {metric} | 95 % interval |", "|---|---|---|---|"]
    lines += [
        f"| {group.group} | {group.examples} | {group.value:.6g} "
        f"| {group.low:.6g} to {group.high:.6g} |"
        for group in groups
    ]
    worst, macro = (scores[f"group/{column}/{which}"] for which in ("worst", "macro"))
    return [*lines, "", f"Worst group {worst:.6g}; mean over groups {macro:.6g}."]
