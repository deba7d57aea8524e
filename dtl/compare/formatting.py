"""Formats the results of a comparison as short texts, for the terminal and the report."""

from __future__ import annotations

from collections.abc import Callable

from dtl.compare.records import Comparison, StrategySummary
from dtl.core.units import format_bytes, format_seconds

Column = Callable[[Comparison, StrategySummary], str]

BOUND_SIGNS = {"more than": ">", "at most": "<=", None: ""}


def format_label_count(labels: int, *, classes: int | None) -> str:
    """Return a number of labels with its unit."""
    if classes is None:
        return f"{labels} labeled rows"
    return f"{labels} label{'s' if labels > 1 else ''} per class"


def format_seed_count(comparison: Comparison) -> str:
    """Return the number of seeds with its unit."""
    return f"{len(comparison.seeds)} seed{'s' if len(comparison.seeds) > 1 else ''}"


def format_score(value: float | None) -> str:
    """Return a score with three decimals; empty for None."""
    return "" if value is None else f"{value:.3f}"


def format_label_efficiency(summary: StrategySummary) -> str:
    """Return the number of labels that scratch needs for the same score; empty if unknown."""
    efficiency = summary.label_efficiency
    if efficiency is None:
        return ""
    return f"{BOUND_SIGNS[efficiency.bound]}{efficiency.scratch_labels:.3g}"


def format_time_to_scratch(summary: StrategySummary) -> str:
    """Return the training time until the final score of scratch; empty if unknown."""
    time = summary.time_to_scratch_score
    if time is None:
        return ""
    if time.steps == 0:
        return "at once"
    return f"{BOUND_SIGNS[time.bound]}{format_seconds(time.seconds)}"


def format_forgetting(comparison: Comparison, summary: StrategySummary) -> str:
    """Return how much lower the source score is than that of the base; with a question mark if the
    two are not significantly different; empty if unknown."""
    forgetting = comparison.find_forgetting(summary.strategy, summary.labels)
    if forgetting is None:
        return ""
    is_certain = forgetting.is_significant or forgetting.difference == 0
    return f"{forgetting.difference:.3f}{'' if is_certain else '?'}"


def summary_columns(format_number: Callable[[float | None], str]) -> dict[str, Column]:
    """Return, by heading, what a table of summaries shows besides the score. `format_number`: of
    the scores among them."""
    return {
        "scratch labels": lambda _, one: format_label_efficiency(one),
        "time to scratch score": lambda _, one: format_time_to_scratch(one),
        "train time": lambda _, one: format_seconds(one.train_seconds),
        "peak memory": lambda _, one: format_bytes(one.peak_memory_bytes),
        "export size": lambda _, one: format_bytes(one.export_bytes),
        "source score": lambda _, one: format_number(one.source_score),
        "forgetting": format_forgetting,
        "OOD score": lambda _, one: format_number(one.ood_score),
        "worst group": lambda _, one: format_number(one.worst_group_score),
    }
