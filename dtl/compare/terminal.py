"""A comparison for the terminal: table, plot, hint, what to take, what was not run."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

from dtl.compare.records import TABLE, Comparison, Point, in_words, load
from dtl.core.units import format_bytes, format_seconds

PLOT = 32  # characters
WIDTH = 100


def finished(folder: Path) -> Comparison | None:
    """The comparison of a folder where all of it has been run."""
    if not (folder / TABLE).is_file():
        return None
    found = load(folder)
    return found if found.finished else None


def lines(found: Comparison) -> list[str]:
    """All that is shown."""
    return [
        *_table(found),
        "",
        *_hint(found),
        *(line for one in found.recommendations for line in [*_wrapped(one.text), ""]),
        *_notes(found),
        *_not_run(found),
    ]


def _table(found: Comparison) -> list[str]:
    """A line a strategy and number of labels."""
    better = "more" if found.higher_is_better else "less"
    low, high = _span(found)
    heads = [
        "",
        found.score_name,
        f"{found.level:.0%}",
        f"{low:.3g}".ljust(PLOT - 6) + f"{high:>6.3g}",
    ]
    columns = [
        column for column, tell in _COLUMNS.items() if any(tell(found, one) for one in found.points)
    ]
    rows = [[*heads, *columns]]
    for labels in found.labels:
        here = [point for name in found.strategies if (point := found.point(name, labels))]
        if here:
            everything = ", all there are" if labels == found.all_labels else ""
            rows.append([f"{in_words(labels, classes=found.classes)}{everything}"])
        for one in here:
            interval = f"{one.interval.low:.3f}-{one.interval.high:.3f}"
            plot = _plot(one, low, high)
            rest = [_COLUMNS[column](found, one) for column in columns]
            rows.append([f"  {one.strategy}", f"{one.score:.3f}", interval, plot, *rest])
    seeds = f"{len(found.seeds)} seed{'s' if len(found.seeds) > 1 else ''}"
    about = f"{found.name}: {found.task}, {found.score_name} ({better} is better), {seeds}"
    before = []
    base = found.base
    if base.score is not None and base.interval is not None:
        between = f"{base.interval.low:.3f}-{base.interval.high:.3f}"
        before.append(f"the base as it is: {found.score_name} {base.score:.3f} ({between})")
    if base.source_score is not None:
        before.append(f"source: {found.source}, on which the base had {base.source_score:.3f}")
    return [about, *before, "", *_aligned(rows)]


def saved(point: Point) -> str:
    """What scratch needs for the same."""
    if point.labels_saved is None:
        return ""
    return f"{_BOUNDS[point.labels_saved.bound]}{point.labels_saved.scratch_labels:.3g}"


def caught_up(point: Point) -> str:
    """How soon it had what scratch ends with."""
    if point.to_scratch is None:
        return ""
    if point.to_scratch.steps == 0:
        return "at once"
    return f"{_BOUNDS[point.to_scratch.bound]}{format_seconds(point.to_scratch.seconds)}"


def forgets(found: Comparison, point: Point) -> str:
    """How much less it has on the source than the base; with a question mark where it is less or
    more, and the two are not told apart."""
    lost = found.forgotten(point.strategy, point.labels)
    if lost is None:
        return ""
    sure = lost.distinguishable or lost.difference == 0
    return f"{lost.difference:.3f}{'' if sure else '?'}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


_BOUNDS = {"more than": ">", "at most": "<=", None: ""}
_COLUMNS: dict[str, Callable[[Comparison, Point], str]] = {
    "scratch needs": lambda _, point: saved(point),
    "to scratch's": lambda _, point: caught_up(point),
    "time": lambda _, point: format_seconds(point.seconds),
    "memory": lambda _, point: format_bytes(point.peak_memory_bytes),
    "stored": lambda _, point: format_bytes(point.stored_bytes),
    "source": lambda _, point: _number(point.source_score),
    "forgets": forgets,
    "ood": lambda _, point: _number(point.ood_score),
    "worst group": lambda _, point: _number(point.worst_group),
}


def _span(found: Comparison) -> tuple[float, float]:
    ends = [end for one in found.points for end in (one.interval.low, one.interval.high)]
    return (min(ends), max(ends)) if ends else (0.0, 1.0)


def _plot(point: Point, low: float, high: float) -> str:
    """The interval, and the score in it, on a line from the lowest to the highest end."""

    def place(value: float) -> int:
        return round((PLOT - 1) * (value - low) / (high - low)) if high > low else 0

    start, end = place(point.interval.low), place(point.interval.high)
    drawn = ["-" if start <= at <= end else " " for at in range(PLOT)]
    drawn[place(point.score)] = "o"
    return "".join(drawn)


def _aligned(rows: list[list[str]]) -> list[str]:
    """Columns of equal width; a row of one text has the line to itself."""
    whole = [row for row in rows if len(row) > 1]
    widths = [max(len(row[at]) for row in whole) for at in range(len(whole[0]))]
    drawn = []
    for row in rows:
        if len(row) == 1:
            drawn.append(row[0])
            continue
        cells = [
            text.ljust(width) if at in (0, 3) else text.rjust(width)
            for at, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        drawn.append("  ".join(cells).rstrip())
    return drawn


def _hint(found: Comparison) -> list[str]:
    hint = found.hint
    if hint is None:
        return [*_wrapped(f"no hint before training: {found.no_hint}"), ""]
    told = (
        f"hint, before any training: on features of the untouched base, with "
        f"{in_words(hint.labels, classes=found.classes)}, a linear probe has accuracy "
        f"{hint.probe:.3f}, nearest neighbours {hint.neighbours:.3f}, always the commonest label "
        f"{hint.chance:.3f} (rows kept apart)"
    )
    return [*_wrapped(told), ""]


def _notes(found: Comparison) -> list[str]:
    pairs = f"pairs of strategies are told apart at {1 - found.level:.0%} after Holm's correction"
    return [line for note in (*found.notes, pairs) for line in _wrapped(f"note: {note}")]


def _not_run(found: Comparison) -> list[str]:
    return [line for one in found.not_run for line in _wrapped(f"not run: {one.what} ({one.why})")]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, width=WIDTH, subsequent_indent="  ")
