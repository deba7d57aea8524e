"""Problems of how labels are written: forms of one label, similar ones, columns of no class."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np

from dtl.config.schema import RunConfig
from dtl.core.errors import Fault
from dtl.data.label_values import parse_number
from dtl.inspect.check.findings import Finding, create_finding
from dtl.inspect.check.row_summary import RowSummary
from dtl.inspect.check.stats import SourceStats

MIN_UNIQUE_LABELS = 20  # with fewer, many labels for few rows may be right
UNIQUE_FRACTION = 0.5  # of the rows
LARGE_DEVIATION = 100.0  # standard deviation of numbers, whose squared errors are then large
SEPARATORS = "|;,/+&"
SHARED_FRACTION = 0.5  # of the parts of combined labels, each of which is in several labels
# Texts that mean a missing value in some data, and are a class in others.
PLACEHOLDERS = {"na", "n.a.", "n/a", "nan", "nil", "null", "undefined", "missing", "#null!"}
PLACEHOLDER_FORM = re.compile(r"[\W_]+|#[\w/]+[!?]?")  # "-", "?", and errors such as #REF!


def find_label_problems(source: SourceStats, config: RunConfig) -> Iterator[Finding]:
    """Yield all findings on how the labels of one source are written."""
    listed = frozenset(getattr(config.task.options, "labels", None) or ())
    yield from _find_forms(source)
    yield from _find_mixed_types(source)
    yield from _find_similar_labels(source)
    yield from _find_placeholders(source, listed)
    yield from _find_combined_labels(source)
    yield from _find_unique_labels(source)
    yield from _find_number_problems(source)


def _written_pairs(source: SourceStats) -> Iterator[tuple[RowSummary, str, object]]:
    """Yield each label with its row, and as the row writes it."""
    for row in source.summaries:
        if len(row.written) == len(row.labels):
            yield from ((row, *pair) for pair in zip(row.labels, row.written, strict=True))


def _find_forms(source: SourceStats) -> Iterator[Finding]:
    """A class that is written as ` spam ` and `spam`, or as 1, 1.0 and "1"."""
    forms: dict[str, Counter[str]] = defaultdict(Counter)
    for _, label, written in _written_pairs(source):
        forms[label][repr(written)] += 1
    usual = {label: counts.most_common(1)[0][0] for label, counts in forms.items()}
    locations, example = dict[str, None](), ""
    for row, label, written in _written_pairs(source):
        if repr(written) != usual[label]:
            locations[row.location] = None
            example = example or f"{written!r} is read as {label!r}, like {usual[label]}"
    if locations:
        problem = f"rows write a label in another form: {example}"
        fix = "write it in one form, unless they are different classes"
        yield create_finding("label_forms", list(locations), len(source.summaries), problem, fix)


def _find_mixed_types(source: SourceStats) -> Iterator[Finding]:
    """True and False beside 1 and 0."""
    by_type: dict[str, list[str]] = {"booleans": [], "numbers": []}
    for row, label, written in _written_pairs(source):
        if isinstance(written, bool):
            by_type["booleans"].append(row.location)
        elif parse_number(label) is not None:
            by_type["numbers"].append(row.location)
    if all(by_type.values()):
        rarer = min(by_type.values(), key=len)
        problem = "rows mix labels that are booleans with labels that are numbers"
        fix = "write all labels in one way: True is another class than 1"
        yield create_finding("mixed_label_types", rarer, len(source.summaries), problem, fix)


def _fold(label: str) -> str:
    """Return a label without case, blanks, hyphens and underscores."""
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", label).casefold()) or label


def _find_similar_labels(source: SourceStats) -> Iterator[Finding]:
    """Classes that differ only in case, blanks or hyphens. Single characters may."""
    counts = Counter(label for row in source.summaries for label in row.labels)
    groups: dict[str, list[str]] = defaultdict(list)
    for label in counts:
        if len(label) > 1:
            groups[_fold(label)].append(label)
    for labels in (group for group in groups.values() if len(group) > 1):
        usual, *others = sorted(labels, key=lambda label: -counts[label])
        rows = [row.location for row in source.summaries if set(row.labels) & set(others)]
        problem = f"rows have a class almost named as another: {others[0]!r} and {usual!r}"
        fix = "give them one name in data, if they are one class"
        yield create_finding("similar_labels", rows, len(source.summaries), problem, fix)


def _find_placeholders(source: SourceStats, listed: frozenset[str]) -> Iterator[Finding]:
    """Labels such as ? and NULL among words, that task.labels does not list."""
    labels = {label for row, label, _ in _written_pairs(source)}
    suspicious = {label for label in labels if _is_placeholder(label)} - listed
    if suspicious and any(re.match(r"[^\W\d_]{2}", label) for label in labels - suspicious):
        rows = [row.location for row in source.summaries if suspicious & set(row.labels)]
        problem = f"rows have a label that often means a missing one: {min(suspicious)!r}"
        fix = "leave these rows out, or list the labels in task.labels if this is a class"
        yield create_finding("placeholder_labels", rows, len(source.summaries), problem, fix)


def _is_placeholder(label: str) -> bool:
    return label.casefold() in PLACEHOLDERS or PLACEHOLDER_FORM.fullmatch(label) is not None


def _split_label(label: str, separator: str) -> list[str]:
    return [part.strip() for part in label.split(separator)]


def _find_combined(labels: set[str], separator: str) -> set[str]:
    """Return the labels that are several in one: their parts are labels as well, or most of the
    parts are in several labels."""
    split = {label: _split_label(label, separator) for label in labels if separator in label}
    combined = {label for label, parts in split.items() if set(parts) <= labels}
    if combined or len(split) < 2:
        return combined
    counts = Counter(part for label in labels for part in set(_split_label(label, separator)))
    parts = {part for parts in split.values() for part in parts}
    shared = sum(counts[part] > 1 for part in parts)
    return set(split) if shared >= 2 and shared >= SHARED_FRACTION * len(parts) else set()


def _find_combined_labels(source: SourceStats) -> Iterator[Finding]:
    """Labels such as a|b, where a and b are labels as well, or "a, b" beside "b, c"."""
    labels = {label for row in source.summaries for label in row.labels}
    for separator in SEPARATORS:
        if combined := _find_combined(labels, separator):
            rows = [row.location for row in source.summaries if combined & set(row.labels)]
            problem = f"rows have several labels in one: {min(combined)!r}"
            fix = (
                "set task.problem_type=multi_label_classification and "
                f"task.label_separator={separator!r}"
            )
            yield create_finding("combined_labels", rows, len(source.summaries), problem, fix)


def _find_unique_labels(source: SourceStats) -> Iterator[Finding]:
    """A column that is not a class: a text or a number of its own in most rows."""
    rows = source.summaries
    labels = {label for row in rows for label in row.labels}
    has_one_label = all(len(row.labels) == 1 for row in rows)
    if not has_one_label or len(labels) <= max(MIN_UNIQUE_LABELS, UNIQUE_FRACTION * len(rows)):
        return
    first = next(iter(rows))
    are_numbers = all(parse_number(label) is not None for label in labels)
    text = f"{len(rows)} rows have {len(labels)} different labels, such as {first.labels[0][:40]!r}"
    fix = (
        "to predict numbers set task.problem_type=regression"
        if are_numbers
        else "map the column of the classes in data.columns: {label: ...}"
    )
    yield Finding("unique_labels", Fault(first.location, text, fix), len(rows))


def _find_number_problems(source: SourceStats) -> Iterator[Finding]:
    """Numbers to predict that are all equal, or far from the range in which models are trained."""
    if any(row.labels for row in source.summaries):
        return
    columns: dict[int, list[float]] = defaultdict(list)
    for row in source.summaries:
        for place, number in enumerate(map(parse_number, row.written)):
            if number is not None:
                columns[place].append(number)
    for place, numbers in columns.items():
        name = "the label" if len(columns) == 1 else f"number {place + 1} of the label"
        location, low, high = source.summaries[0].location, min(numbers), max(numbers)
        if low == high:
            text = f"{name} is {low:g} in all {len(numbers)} rows"
            fault = Fault(location, text, "use rows with different numbers")
            yield Finding("constant_numbers", fault, len(numbers), is_fatal=True)
        elif float(np.std(numbers)) > LARGE_DEVIATION:
            text = f"{name} ranges from {low:g} to {high:g}, so that its squared errors are large"
            fault = Fault(location, text, "scale the numbers, such as to 0 to 1")
            yield Finding("large_numbers", fault, len(numbers))
