"""What the page of a comparison of strategies says."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from dtl.compare.records import (
    CellResult,
    Comparison,
    ConfidenceInterval,
    PairedDifference,
    StrategySummary,
    average_curves,
    format_label_count,
    load_comparison,
)
from dtl.compare.terminal import caught_up, forgets, saved
from dtl.core.units import format_bytes, format_seconds
from dtl.report.charts import Axis, Chart, HorizontalLine, LinePlot, Series
from dtl.report.page import Block, Charts, Page, Section, Table, Text, Tile

LOG_AXIS_RATIO = 20  # times longer: seconds are then drawn over a logarithmic axis


def build_comparison_page(folder: Path) -> Page:
    """The page of what has been run of a comparison so far."""
    found = load_comparison(folder)
    better = "more" if found.higher_is_better else "less"
    most = max(found.labels)
    sections = [
        Section("What to take", tuple(_recommendation_blocks(found))),
        Section("Score and labels", (Charts(tuple(_label_charts(found))), _summary_table(found))),
        Section(
            f"Cost, with {format_label_count(most, classes=found.classes)}",
            _cost_blocks(found, most),
        ),
        Section("Differences", _difference_tables(found)),
        Section("How it was found", tuple(_method_blocks(found))),
    ]
    return Page(
        title=found.name,
        state="finished" if found.is_finished else "unfinished",
        about=f"{found.task} · {found.score_name}, {better} is better · "
        f"{', '.join(found.strategies)} · {_format_seeds(found)}",
        tiles=tuple(
            Tile(
                f"with {format_label_count(one.labels, classes=found.classes)}",
                one.choice,
                "" if one.verdict == one.choice else one.verdict,
            )
            for one in found.recommendations
        ),
        sections=tuple(sections),
        made=f"dtl report, {time.strftime('%Y-%m-%d %H:%M:%S %z')}, from {folder}",
    )


def _format_seeds(found: Comparison) -> str:
    return f"{len(found.seeds)} seed{'s' if len(found.seeds) > 1 else ''}"


def _recommendation_blocks(found: Comparison) -> list[Block]:
    """The last one is of the most labels: it comes first."""
    texts = [one.text for one in reversed(found.recommendations)]
    if not texts:
        return [Text("Nothing can be said yet: too little has been run.")]
    return [Text(text, strong=place == 0) for place, text in enumerate(texts)]


def _label_charts(found: Comparison) -> list[Chart]:
    """Of the held-out score, and of those on other data."""
    charts: list[Chart] = []
    before = found.base
    asked: list[tuple[str, str, _Score, tuple[HorizontalLine, ...]]] = [
        ("score_over_labels", f"Held-out {found.score_name}", _held_out, _base_line(before.score))
    ]
    if found.source is not None:
        title = f"{found.score_name} on {found.source}: what is not forgotten"
        asked.append(("source_over_labels", title, _source, _base_line(before.source_score)))
    if found.ood is not None:
        title = f"{found.score_name} on {found.ood}: other data"
        asked.append(("other_over_labels", title, _ood, ()))
    for key, title, score, levels in asked:
        lines = [line for name in found.strategies if (line := _label_series(found, name, score))]
        if lines:
            told = f"Mean over {_format_seeds(found)}; bands are {found.confidence_level:.0%} intervals over seeds "
            told += "and held-out examples."
            x = Axis(
                _labels_axis_name(found), log=True, tick_values=tuple(map(float, found.labels))
            )
            y = Axis(found.score_name)
            charts.append(LinePlot(key, title, told, x, y, tuple(lines), levels=levels))
    return charts


def _base_line(before: float | None) -> tuple[HorizontalLine, ...]:
    return () if before is None else (HorizontalLine(before, "base, before"),)


def _labels_axis_name(found: Comparison) -> str:
    return "labelled rows" if found.classes is None else "labels a class"


_Score = Callable[[StrategySummary], tuple[float | None, ConfidenceInterval | None]]


def _held_out(point: StrategySummary) -> tuple[float | None, ConfidenceInterval | None]:
    return point.score, point.interval


def _source(point: StrategySummary) -> tuple[float | None, ConfidenceInterval | None]:
    return point.source_score, point.source_interval


def _ood(point: StrategySummary) -> tuple[float | None, ConfidenceInterval | None]:
    return point.ood_score, point.ood_interval


def _label_series(found: Comparison, strategy: str, score: _Score) -> Series | None:
    """A strategy over its numbers of labels, where it has been scored."""
    x, y, low, high = [], [], [], []
    for labels in sorted(found.labels):
        point = found.find_summary(strategy, labels)
        value, interval = (None, None) if point is None else score(point)
        if value is not None:
            x.append(labels)
            y.append(value)
            low.append(value if interval is None else interval.low)
            high.append(value if interval is None else interval.high)
    color = found.strategies.index(strategy)
    return Series(strategy, x, y, low, high, "linked points", color=color) if x else None


def _cost_blocks(found: Comparison, labels: int) -> tuple[Block, ...]:
    charts = [
        chart for chart in (_time_chart(found, labels), *_pareto_charts(found, labels)) if chart
    ]
    return (Charts(tuple(charts)),) if charts else (Text("Nothing has been run yet."),)


def _time_chart(found: Comparison, labels: int) -> Chart | None:
    """The score over the seconds of learning until then, of each strategy."""
    lines = []
    for color, strategy in enumerate(found.strategies):
        cells = [one for one in found.cells if (one.strategy, one.labels) == (strategy, labels)]
        if line := _time_series(strategy, cells):
            lines.append(replace(line, color=color))
    seconds = [value for line in lines for value in line.x if value > 0]
    if not seconds:
        return None
    log = max(seconds) > LOG_AXIS_RATIO * min(seconds) and all(min(line.x) > 0 for line in lines)
    told = f"After so many seconds of learning; mean over {_format_seeds(found)}"
    told += ", bands from the worst seed to the best." if len(found.seeds) > 1 else "."
    x = Axis("time of learning", "seconds", log=log, from_zero=not log)
    title = f"{found.score_name} over time"
    return LinePlot("score_over_time", title, told, x, Axis(found.score_name), tuple(lines))


def _time_series(strategy: str, cells: list[CellResult]) -> Series | None:
    """Over the steps at which every seed was scored."""
    if not cells:
        return None
    curve = average_curves(cells)
    low, high = [], []
    for mean in curve:
        scores = [one.score for cell in cells for one in cell.curve if one.step == mean.step]
        low.append(min(scores))
        high.append(max(scores))
    x, y = [one.seconds for one in curve], [one.score for one in curve]
    return Series(strategy, x, y, low, high, "linked points") if x else None


def _pareto_charts(found: Comparison, labels: int) -> list[Chart]:
    """What a score costs, and which strategies no other beats in both."""
    points = [point for name in found.strategies if (point := found.find_summary(name, labels))]
    if not points:
        return []
    costs: tuple[tuple[str, str, str, Callable[[StrategySummary], int]], ...] = (
        ("score_and_memory", "Memory and score", "peak memory", lambda p: p.peak_memory_bytes),
        ("score_and_size", "Size and score", "bytes of the export", lambda p: p.export_bytes),
    )
    sign = 1 if found.higher_is_better else -1
    charts: list[Chart] = []
    for key, title, what, cost in costs:
        best = [
            point.strategy
            for point in points
            if not any(
                cost(other) <= cost(point)
                and sign * other.score >= sign * point.score
                and (cost(other), other.score) != (cost(point), point.score)
                for other in points
            )
        ]
        told = f"Not beaten in both {what} and {found.score_name}: {', '.join(best)}; lines are "
        told += f"{found.confidence_level:.0%} intervals."
        lines = tuple(
            Series(
                point.strategy,
                [cost(point)],
                [point.score],
                [point.interval.low],
                [point.interval.high],
                "points",
                [point.strategy],
                found.strategies.index(point.strategy),
            )
            for point in points
        )
        charts.append(
            LinePlot(
                key,
                title,
                told,
                _bytes_axis(what, [cost(point) for point in points]),
                Axis(found.score_name),
                lines,
            )
        )
    return charts


def _bytes_axis(label: str, values: list[int]) -> Axis:
    """From zero where all are alike, so that a trifle does not look like much; logarithmic where
    they are far apart."""
    low, high = max(1, min(values)), max(values)
    return Axis(label, "bytes", log=high > LOG_AXIS_RATIO * low, from_zero=high < 1.1 * low)


def _summary_table(found: Comparison) -> Table:
    """A row a strategy and number of labels, without the columns that nothing fills."""
    head = ["labels", "strategy", found.score_name, f"{found.confidence_level:.0%} interval"]
    head += [
        "scratch needs",
        "time to scratch's",
        "time",
        "peak memory",
        "stored",
        "source",
        "forgets",
        "other data",
        "worst group",
    ]
    rows = []
    for labels in found.labels:
        for name in found.strategies:
            if point := found.find_summary(name, labels):
                few = format_label_count(labels, classes=found.classes)
                rows.append([few, name, *_summary_cells(found, point)])
    kept = [at for at in range(len(head)) if any(row[at] for row in rows)]
    return Table(
        "Every strategy with every number of labels; seconds of learning, mean over seeds",
        tuple(head[at] for at in kept),
        tuple(tuple(row[at] for at in kept) for row in rows),
    )


def _summary_cells(found: Comparison, point: StrategySummary) -> list[str]:
    return [
        f"{point.score:.4g}",
        _format_interval(point.interval),
        saved(point),
        caught_up(point),
        format_seconds(point.train_seconds),
        format_bytes(point.peak_memory_bytes),
        format_bytes(point.export_bytes),
        _format_score(point.source_score),
        forgets(found, point),
        _format_score(point.ood_score),
        _format_score(point.worst_group_score),
    ]


def _format_score(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _format_interval(interval: ConfidenceInterval) -> str:
    return f"{interval.low:.4g} to {interval.high:.4g}"


def _difference_tables(found: Comparison) -> tuple[Block, ...]:
    """On the held-out rows and, where it was asked, on the source."""
    told = "paired by seeds and examples, above 0 the first is better; p after Holm's correction"
    tables = [_pair_table(found, found.differences, f"Held-out rows, {told}")]
    if found.source_differences:
        tables.append(_pair_table(found, found.source_differences, f"{found.source}, {told}"))
    return tuple(tables)


def _pair_table(found: Comparison, differences: Sequence[PairedDifference], caption: str) -> Table:
    rows = tuple(
        (
            format_label_count(one.labels, classes=found.classes),
            f"{one.first} - {one.second}",
            f"{one.difference:+.4g}",
            _format_interval(one.interval),
            f"{one.adjusted_p_value:.3g}",
            "yes" if one.is_significant else "no",
        )
        for one in differences
    )
    head = (
        "labels",
        "pair",
        "difference",
        f"{found.confidence_level:.0%} interval",
        "p",
        "told apart",
    )
    return Table(caption, head, rows)


def _method_blocks(found: Comparison) -> list[Block]:
    blocks: list[Block] = [Text(note) for note in found.notes]
    if found.feature_probe is None:
        blocks.append(Text(f"No hint before training: {found.no_feature_probe}"))
    else:
        hint = found.feature_probe
        blocks.append(
            Text(
                f"A hint, before any training, on features of the untouched base with "
                f"{format_label_count(hint.labels, classes=found.classes)}: a linear probe has accuracy "
                f"{hint.linear_probe:.3f}, nearest neighbours {hint.nearest_neighbors:.3f}, always the commonest "
                f"label {hint.majority_class:.3f}."
            )
        )
    rates = tuple(
        (
            one.strategy,
            str(one.labels),
            f"{one.learning_rate:g}",
            f"{one.step_share:.0%}",
            f"{one.score:.4g}",
        )
        for one in found.learning_rate_trials
    )
    head = ("strategy", "labels", "learning rate", "of the steps", found.score_name)
    blocks.append(Table("Learning rates that were tried", head, rates, folded=True))
    runs = tuple(
        (
            one.run,
            one.strategy,
            str(one.labels),
            str(one.seed),
            f"{one.score:.4g}",
            _format_interval(one.interval),
            f"{one.learning_rate:g}",
            f"{one.steps:,}",
            format_seconds(one.wall_seconds),
        )
        for one in found.cells
    )
    head_of_runs = (
        "run",
        "strategy",
        "labels",
        "seed",
        found.score_name,
        f"{found.confidence_level:.0%} interval",
        "learning rate",
        "steps",
        "took",
    )
    blocks.append(Table("Every run", head_of_runs, runs, folded=True))
    missing = tuple((one.description, one.reason) for one in found.missing_runs)
    return [*blocks, *([Table("Not run", ("what", "why"), missing)] if missing else [])]
