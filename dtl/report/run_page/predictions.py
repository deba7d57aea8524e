"""The sections on held-out predictions: confusion matrix, scores by group, worst examples."""

from __future__ import annotations

from collections import Counter

from dtl.core.units import format_bytes
from dtl.evaluation.groups import read_group_scores
from dtl.evaluation.label_scores import make_label_table
from dtl.metrics.base import EvalRecord
from dtl.report.axis import Axis
from dtl.report.charts import ConfusionMatrix, GroupPlot, GroupScores, LinePlot, Series
from dtl.report.page import Block, Charts, Examples, Table, Text
from dtl.report.run_page.record import MAX_LISTED_ROWS, RunRecord
from dtl.report.worst_examples import MAX_MEDIA_BYTES, select_worst_examples

MAX_CONFUSION_LABELS = 20
MAX_GROUPS = 40
MAX_POINTS = 1000  # of a scatter plot, evenly spaced
MAX_NUMBER_PLOTS = 6

Pairs = Counter[tuple[int, int]]  # (true label, predicted label) -> examples


def make_confusion_section(run: RunRecord) -> list[Block]:
    """Return the confusion matrix of a classification, and its most frequent confusions."""
    if not run.task.has_classes or not run.eval_records:
        return []
    labels = run.folder.dataset_stats["labels"]
    pairs: Pairs = Counter((one["label"], one["predicted"]) for one in run.eval_records)
    confusions: Pairs = Counter({pair: n for pair, n in pairs.items() if pair[0] != pair[1]})
    indices, note = list(range(len(labels))), list[Block]()
    if len(labels) > MAX_CONFUSION_LABELS:
        indices = _most_confused(confusions, len(labels))
        note = [
            Text(f"The {MAX_CONFUSION_LABELS} of {len(labels)} labels with the most confusions.")
        ]
    total = len(run.eval_records)
    matrix = ConfusionMatrix(
        "confusion",
        "True label (row) and predicted label (column)",
        f"{total - confusions.total():,} of {total:,} are correct. The color strength is the share "
        "of the row.",
        tuple(labels[index] for index in indices),
        [[pairs[true, predicted] for predicted in indices] for true in indices],
    )
    rows = tuple(
        (labels[true], labels[predicted], f"{count:,}")
        for (true, predicted), count in confusions.most_common(MAX_LISTED_ROWS)
    )
    header = ("true label", "predicted label", "examples")
    table = Table("Most frequent confusions", header, rows, is_collapsed=True)
    return [*note, Charts((matrix,)), *([table] if rows else [])]


def make_numbers_section(run: RunRecord) -> list[Block]:
    """Return a scatter plot of the true and the predicted numbers, for each number of a row."""
    if not run.eval_records or "numbers" not in run.eval_records[0]:
        return []
    interval = -(-len(run.eval_records) // MAX_POINTS)
    records = run.eval_records[::interval]
    names = run.folder.dataset_stats.get("labels", [])
    plots = tuple(
        _plot_numbers(records, place, name if len(names) > 1 else "number")
        for place, name in enumerate(names[:MAX_NUMBER_PLOTS])
    )
    return [Charts(plots)] if plots else []


def _plot_numbers(records: list[EvalRecord], place: int, name: str) -> LinePlot:
    true = [float(record["numbers"][place]) for record in records]
    predicted = [float(record["predicted"][place]) for record in records]
    ends = [min(true), max(true)]
    return LinePlot(
        f"numbers-{place}",
        f"True and predicted {name}",
        f"{len(records):,} held-out rows; on the line, both are equal.",
        Axis(f"true {name}"),
        Axis(f"predicted {name}"),
        (Series("held-out rows", true, predicted, style="markers"), Series("equal", ends, ends)),
    )


def _most_confused(confusions: Pairs, label_count: int) -> list[int]:
    """Return the indices of the labels with the most confusions, in ascending order."""
    counts: Counter[int] = Counter()
    for (true, predicted), count in confusions.items():
        counts[true] += count
        counts[predicted] += count
    ranking = sorted(range(label_count), key=lambda label: (-counts[label], label))
    return sorted(ranking[:MAX_CONFUSION_LABELS])


def make_labels_section(run: RunRecord) -> list[Block]:
    """Return the scores of each label after training, where the task scores labels."""
    table = make_label_table(list(run.scores.values())[-1]) if run.scores else None
    if table is None:
        return []
    title = f"Held-out scores by label ({list(run.scores)[-1]})"
    return [Table(title, table.header, table.rows)]


def make_groups_section(run: RunRecord) -> list[Block]:
    """Return the main score of each group before and after training, worst group first."""
    column = run.folder.config.task.group_by
    if column is None:
        return []
    groups_by_model = {
        model: read_group_scores(scores, column) for model, scores in run.scores.items()
    }
    groups_by_model = {model: groups for model, groups in groups_by_model.items() if groups}
    if not groups_by_model:
        return []
    last = list(groups_by_model)[-1]
    is_descending = not run.higher_is_better
    ranked = sorted(groups_by_model[last], key=lambda one: one.value, reverse=is_descending)
    ranked = ranked[:MAX_GROUPS]
    names = [one.group for one in ranked]
    models = []
    for model, groups in groups_by_model.items():
        by_name = {one.group: one for one in groups}
        selected = [by_name[name] for name in names if name in by_name]
        if len(selected) == len(names):
            values, low, high = (
                [getattr(one, field) for one in selected] for field in ("value", "low", "high")
            )
            models.append(GroupScores(model, values, low, high))
    scores = run.scores[last]
    description = (
        f"Worst group {names[0]} {scores[f'group/{column}/worst']:.4g}, mean over groups "
        f"{scores[f'group/{column}/macro']:.4g} ({last}). Bars: 95% confidence intervals."
    )
    chart = GroupPlot(
        "groups",
        f"Held-out {run.score_name} by {column}, worst first",
        description,
        Axis(run.score_name),
        tuple(names),
        tuple(one.examples for one in ranked),
        tuple(models),
    )
    return [Charts((chart,))]


def make_worst_examples_section(run: RunRecord) -> list[Block]:
    """Return the held-out examples with the highest loss per target."""
    if not run.eval_records or "loss" not in run.eval_records[0]:
        return []
    worst = select_worst_examples(run.folder, run.task, run.eval_records)
    text = "The held-out examples with the highest loss per target (nats)."
    if run.task.media_column is not None:
        text += f" Audio and images are included up to {format_bytes(MAX_MEDIA_BYTES)} each."
    blocks: list[Block] = [Text(text)]
    if worst.unreadable_reason is not None:
        blocks.append(Text(f"The rows cannot be shown: {worst.unreadable_reason}"))
    return [*blocks, Examples(worst.examples)]
