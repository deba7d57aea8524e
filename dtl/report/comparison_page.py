"""What the page of a comparison of strategies says."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from dtl.compare.records import (
    Cell,
    Comparison,
    Difference,
    Interval,
    Point,
    in_words,
    load,
    mean_curve,
)
from dtl.compare.terminal import caught_up, forgets, saved
from dtl.core.units import format_bytes, format_seconds
from dtl.report.charts import Axis, Chart, Level, Line, Plot
from dtl.report.page import Block, Charts, Page, Section, Table, Text, Tile

SPREAD_OUT = 20  # times longer: seconds are then drawn over a logarithmic axis


def page_of(folder: Path) -> Page:
    """The page of what has been run of a comparison so far."""
    found = load(folder)
    better = "more" if found.higher_is_better else "less"
    most = max(found.labels)
    sections = [
        Section("What to take", tuple(_advice(found))),
        Section("Score and labels", (Charts(tuple(_over_labels(found))), _table(found))),
        Section(f"Cost, with {in_words(most, classes=found.classes)}", _cost(found, most)),
        Section("Differences", _differences(found)),
        Section("How it was found", tuple(_method(found))),
    ]
    return Page(
        title=found.name,
        state="finished" if found.finished else "unfinished",
        about=f"{found.task} · {found.score_name}, {better} is better · "
        f"{', '.join(found.strategies)} · {_seeds(found)}",
        tiles=tuple(
            Tile(
                f"with {in_words(one.labels, classes=found.classes)}",
                one.choice,
                "" if one.verdict == one.choice else one.verdict,
            )
            for one in found.recommendations
        ),
        sections=tuple(sections),
        made=f"dtl report, {time.strftime('%Y-%m-%d %H:%M:%S %z')}, from {folder}",
    )


def _seeds(found: Comparison) -> str:
    return f"{len(found.seeds)} seed{'s' if len(found.seeds) > 1 else ''}"


def _advice(found: Comparison) -> list[Block]:
    """The last one is of the most labels: it comes first."""
    texts = [one.text for one in reversed(found.recommendations)]
    if not texts:
        return [Text("Nothing can be said yet: too little has been run.")]
    return [Text(text, strong=place == 0) for place, text in enumerate(texts)]


def _over_labels(found: Comparison) -> list[Chart]:
    """Of the held-out score, and of those on other data."""
    charts: list[Chart] = []
    before = found.base
    asked: list[tuple[str, str, _Score, tuple[Level, ...]]] = [
        ("score_over_labels", f"Held-out {found.score_name}", _held_out, _level(before.score))
    ]
    if found.source is not None:
        title = f"{found.score_name} on {found.source}: what is not forgotten"
        asked.append(("source_over_labels", title, _of_source, _level(before.source_score)))
    if found.ood is not None:
        title = f"{found.score_name} on {found.ood}: other data"
        asked.append(("other_over_labels", title, _of_ood, ()))
    for key, title, score, levels in asked:
        lines = [line for name in found.strategies if (line := _line(found, name, score))]
        if lines:
            told = f"Mean over {_seeds(found)}; bands are {found.level:.0%} intervals over seeds "
            told += "and held-out examples."
            x = Axis(_labels_axis(found), log=True, places=tuple(map(float, found.labels)))
            y = Axis(found.score_name)
            charts.append(Plot(key, title, told, x, y, tuple(lines), levels=levels))
    return charts


def _level(before: float | None) -> tuple[Level, ...]:
    return () if before is None else (Level(before, "base, before"),)


def _labels_axis(found: Comparison) -> str:
    return "labelled rows" if found.classes is None else "labels a class"


_Score = Callable[[Point], tuple[float | None, Interval | None]]


def _held_out(point: Point) -> tuple[float | None, Interval | None]:
    return point.score, point.interval


def _of_source(point: Point) -> tuple[float | None, Interval | None]:
    return point.source_score, point.source_interval


def _of_ood(point: Point) -> tuple[float | None, Interval | None]:
    return point.ood_score, point.ood_interval


def _line(found: Comparison, strategy: str, score: _Score) -> Line | None:
    """A strategy over its numbers of labels, where it has been scored."""
    x, y, low, high = [], [], [], []
    for labels in sorted(found.labels):
        point = found.point(strategy, labels)
        value, interval = (None, None) if point is None else score(point)
        if value is not None:
            x.append(labels)
            y.append(value)
            low.append(value if interval is None else interval.low)
            high.append(value if interval is None else interval.high)
    colour = found.strategies.index(strategy)
    return Line(strategy, x, y, low, high, "linked points", colour=colour) if x else None


def _cost(found: Comparison, labels: int) -> tuple[Block, ...]:
    charts = [chart for chart in (_over_time(found, labels), *_frontiers(found, labels)) if chart]
    return (Charts(tuple(charts)),) if charts else (Text("Nothing has been run yet."),)


def _over_time(found: Comparison, labels: int) -> Chart | None:
    """The score over the seconds of learning until then, of each strategy."""
    lines = []
    for colour, strategy in enumerate(found.strategies):
        cells = [one for one in found.cells if (one.strategy, one.labels) == (strategy, labels)]
        if line := _mean_curve(strategy, cells):
            lines.append(replace(line, colour=colour))
    seconds = [value for line in lines for value in line.x if value > 0]
    if not seconds:
        return None
    log = max(seconds) > SPREAD_OUT * min(seconds) and all(min(line.x) > 0 for line in lines)
    told = f"After so many seconds of learning; mean over {_seeds(found)}"
    told += ", bands from the worst seed to the best." if len(found.seeds) > 1 else "."
    x = Axis("time of learning", "seconds", log=log, from_zero=not log)
    title = f"{found.score_name} over time"
    return Plot("score_over_time", title, told, x, Axis(found.score_name), tuple(lines))


def _mean_curve(strategy: str, cells: list[Cell]) -> Line | None:
    """Over the steps at which every seed was scored."""
    if not cells:
        return None
    curve = mean_curve(cells)
    low, high = [], []
    for mean in curve:
        scores = [one.score for cell in cells for one in cell.curve if one.step == mean.step]
        low.append(min(scores))
        high.append(max(scores))
    x, y = [one.seconds for one in curve], [one.score for one in curve]
    return Line(strategy, x, y, low, high, "linked points") if x else None


def _frontiers(found: Comparison, labels: int) -> list[Chart]:
    """What a score costs, and which strategies no other beats in both."""
    points = [point for name in found.strategies if (point := found.point(name, labels))]
    if not points:
        return []
    costs: tuple[tuple[str, str, str, Callable[[Point], int]], ...] = (
        ("score_and_memory", "Memory and score", "peak memory", lambda p: p.peak_memory_bytes),
        ("score_and_size", "Size and score", "bytes of the export", lambda p: p.stored_bytes),
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
        told += f"{found.level:.0%} intervals."
        lines = tuple(
            Line(
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
            Plot(
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
    return Axis(label, "bytes", log=high > SPREAD_OUT * low, from_zero=high < 1.1 * low)


def _table(found: Comparison) -> Table:
    """A row a strategy and number of labels, without the columns that nothing fills."""
    head = ["labels", "strategy", found.score_name, f"{found.level:.0%} interval"]
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
            if point := found.point(name, labels):
                few = in_words(labels, classes=found.classes)
                rows.append([few, name, *_cells(found, point)])
    kept = [at for at in range(len(head)) if any(row[at] for row in rows)]
    return Table(
        "Every strategy with every number of labels; seconds of learning, mean over seeds",
        tuple(head[at] for at in kept),
        tuple(tuple(row[at] for at in kept) for row in rows),
    )


def _cells(found: Comparison, point: Point) -> list[str]:
    return [
        f"{point.score:.4g}",
        _between(point.interval),
        saved(point),
        caught_up(point),
        format_seconds(point.seconds),
        format_bytes(point.peak_memory_bytes),
        format_bytes(point.stored_bytes),
        _number(point.source_score),
        forgets(found, point),
        _number(point.ood_score),
        _number(point.worst_group),
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _between(interval: Interval) -> str:
    return f"{interval.low:.4g} to {interval.high:.4g}"


def _differences(found: Comparison) -> tuple[Block, ...]:
    """On the held-out rows and, where it was asked, on the source."""
    told = "paired by seeds and examples, above 0 the first is better; p after Holm's correction"
    tables = [_pairs(found, found.differences, f"Held-out rows, {told}")]
    if found.source_differences:
        tables.append(_pairs(found, found.source_differences, f"{found.source}, {told}"))
    return tuple(tables)


def _pairs(found: Comparison, differences: Sequence[Difference], caption: str) -> Table:
    rows = tuple(
        (
            in_words(one.labels, classes=found.classes),
            f"{one.first} - {one.second}",
            f"{one.difference:+.4g}",
            _between(one.interval),
            f"{one.corrected:.3g}",
            "yes" if one.distinguishable else "no",
        )
        for one in differences
    )
    head = ("labels", "pair", "difference", f"{found.level:.0%} interval", "p", "told apart")
    return Table(caption, head, rows)


def _method(found: Comparison) -> list[Block]:
    blocks: list[Block] = [Text(note) for note in found.notes]
    if found.hint is None:
        blocks.append(Text(f"No hint before training: {found.no_hint}"))
    else:
        hint = found.hint
        blocks.append(
            Text(
                f"A hint, before any training, on features of the untouched base with "
                f"{in_words(hint.labels, classes=found.classes)}: a linear probe has accuracy "
                f"{hint.probe:.3f}, nearest neighbours {hint.neighbours:.3f}, always the commonest "
                f"label {hint.chance:.3f}."
            )
        )
    rates = tuple(
        (
            one.strategy,
            str(one.labels),
            f"{one.learning_rate:g}",
            f"{one.share:.0%}",
            f"{one.score:.4g}",
        )
        for one in found.rates
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
            _between(one.interval),
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
        f"{found.level:.0%} interval",
        "learning rate",
        "steps",
        "took",
    )
    blocks.append(Table("Every run", head_of_runs, runs, folded=True))
    missing = tuple((one.what, one.why) for one in found.not_run)
    return [*blocks, *([Table("Not run", ("what", "why"), missing)] if missing else [])]
