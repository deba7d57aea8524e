"""Problems of the training and held-out data, each with its rows and its fix."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dtl.core.errors import Fault
from dtl.inspect.check.row_summary import RowSummary
from dtl.inspect.check.stats import SourceStats

MAX_LOCATIONS_DISPLAYED = 3
MAX_RARE_CLASSES = 10  # more are one finding
RARE_CLASS_FRACTION, IMBALANCE_FRACTION = 0.01, 0.95  # of the rows


@dataclass(frozen=True)
class Finding:
    """A problem of the data. `count`: the affected rows; `is_fatal`: a run would be useless."""

    kind: str
    fault: Fault
    count: int
    is_fatal: bool = False


def create_finding(
    kind: str,
    locations: Sequence[str],
    total: int,
    problem: str,
    fix: str,
    *,
    is_fatal: bool = False,
) -> Finding:
    """Return a finding at its first row, with the next locations and the number of rows."""
    others = ", ".join(locations[1:MAX_LOCATIONS_DISPLAYED])
    more = ", ..." if len(locations) > MAX_LOCATIONS_DISPLAYED else ""
    also = f" (also {others}{more})" if others else ""
    text = f"{len(locations)} of {total} {problem}{also}"
    return Finding(kind, Fault(locations[0], text, fix), len(locations), is_fatal)


def find_duplicates(train: SourceStats) -> Iterator[Finding]:
    """Yield findings for training rows with the same input."""
    by_input: dict[str, list[RowSummary]] = defaultdict(list)
    for row in train.summaries:
        by_input[row.input_digest].append(row)
    duplicates = [rows for rows in by_input.values() if len(rows) > 1]
    conflicts = [
        row.location
        for rows in duplicates
        if len({each.labels for each in rows}) > 1
        for row in rows
    ]
    total = len(train.summaries)
    if conflicts:
        problem = "rows have the same input as another row and a different label"
        fix = "keep only the row with the correct label"
        yield create_finding("conflicting_labels", conflicts, total, problem, fix)
    seen: set[tuple[object, ...]] = set()
    repeated = []
    for row in (row for rows in duplicates for row in rows):
        content = (row.input_digest, row.target, row.labels)
        if content in seen:
            repeated.append(row.location)
        seen.add(content)
    if repeated:
        problem = "rows of data.train are duplicates of an earlier row"
        fix = "remove the duplicates, unless they should count more"
        yield create_finding("duplicates", repeated, total, problem, fix)


def find_leakage(train: SourceStats, held_out: SourceStats) -> Iterator[Finding]:
    """Yield a finding for held-out rows whose input is also a training row."""
    train_locations = {row.input_digest: row.location for row in reversed(train.summaries)}
    leaked = [
        f"{row.location} (same as {train_locations[row.input_digest]})"
        for row in held_out.summaries
        if row.input_digest in train_locations
    ]
    if leaked:
        total = len(held_out.summaries)
        problem = "held-out rows are also in data.train (leakage)"
        fix = "remove them from one of the two, because scores on them are too high"
        yield create_finding("leakage", leaked, total, problem, fix, is_fatal=len(leaked) == total)


def find_class_problems(train: SourceStats) -> Iterator[Finding]:
    """Yield findings for a single class, a dominant class and rare classes."""
    first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for row in train.summaries:
        counts.update(row.labels)
        for label in row.labels:
            first.setdefault(label, row.location)
    total = counts.total()
    has_one_label = all(len(row.labels) == 1 for row in train.summaries)
    rare: list[Finding] = []
    for label, count in counts.items():
        text = f"the class {label!r} has {count} of {total} labels"
        if len(counts) == 1 and all(row.labels for row in train.summaries):
            fault = Fault(first[label], f"{text}: there is no other class", "add other classes")
            yield Finding("single_class", fault, count, is_fatal=True)
        elif has_one_label and count / total > IMBALANCE_FRACTION:
            text += f" (class imbalance: always predicting it has accuracy {count / total:.1%})"
            fix = "add rows of the other classes, or set task.class_weights=balanced"
            yield Finding("imbalance", Fault(first[label], text, fix), count)
        elif count < 2 or (has_one_label and count / total < RARE_CLASS_FRACTION):
            fix = "add rows of this class, or merge it with another class"
            rare.append(Finding("rare_class", Fault(first[label], text, fix), count))
    if len(rare) <= MAX_RARE_CLASSES:
        yield from rare
        return
    text = f"{len(rare)} of {len(counts)} classes are rare; {rare[0].fault.problem}"
    fix = "add rows of these classes, or merge them with others"
    fault = Fault(rare[0].fault.location, text, fix)
    yield Finding("rare_class", fault, sum(finding.count for finding in rare))


def find_unknown_labels(train: SourceStats, held_out: SourceStats) -> Iterator[Finding]:
    """Yield a finding for held-out rows with a label that no training row has."""
    train_labels = {label for row in train.summaries for label in row.labels}
    unknown = [row.location for row in held_out.summaries if set(row.labels) - train_labels]
    if unknown:
        problem = "held-out rows have a label that no training row has"
        fix = "add training rows with this label, or remove the held-out rows"
        yield create_finding(
            "unknown_label", unknown, len(held_out.summaries), problem, fix, is_fatal=True
        )


def find_invalid_rows(source: SourceStats) -> Iterator[Finding]:
    """Yield findings for rows that cannot be read, used or decoded."""
    if faults := source.invalid_rows:
        effect = "stop a run" if source.invalid_rows_stop_run else "are skipped"
        yield create_finding(
            "invalid_rows",
            [fault.location for fault in faults],
            source.rows,
            f"rows are invalid and {effect}: {faults[0].problem}",
            faults[0].fix,
            is_fatal=source.invalid_rows_stop_run,
        )
    if faults := source.corrupted_media:
        effect = "stop a run" if source.corrupted_media_stop_run else "are skipped"
        yield create_finding(
            "corrupted_media",
            [fault.location for fault in faults],
            source.rows,
            f"rows have corrupted media and {effect}: {faults[0].problem}",
            faults[0].fix,
            is_fatal=source.corrupted_media_stop_run,
        )


def find_skipped_rows(source: SourceStats) -> Iterator[Finding]:
    """Yield a finding for each reason to skip rows."""
    for reason, locations in source.skipped_rows.items():
        problem, fix = f"rows are skipped: {reason}", "fix or remove the rows"
        yield create_finding("skipped_rows", locations, len(source.summaries), problem, fix)


def find_missing_texts(source: SourceStats) -> Iterator[Finding]:
    """Yield a finding for rows with a text such as "nan", which a program wrote for no text."""
    found = [row for row in source.summaries if row.missing_texts]
    if found:
        problem = (
            f"rows have the text of a missing value, such as 'nan' (`{found[0].missing_texts[0]}`)"
        )
        fix = "write an empty text, or remove the rows"
        rows = [row.location for row in found]
        yield create_finding("missing_texts", rows, len(source.summaries), problem, fix)


def find_empty_targets(source: SourceStats) -> Iterator[Finding]:
    """Yield a finding for rows whose target text is empty."""
    with_target = [row for row in source.summaries if row.target is not None]
    empty = [row.location for row in with_target if not (row.target or "").strip()]
    if empty:
        yield create_finding(
            "empty_targets",
            empty,
            len(source.summaries),
            "rows have an empty target",
            "add the target text, or remove the rows",
            is_fatal=len(empty) == len(with_target),
        )
