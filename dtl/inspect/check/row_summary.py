"""Summaries of rows, for the comparison of rows with each other."""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass

from dtl.data.label_values import NO_TEXTS
from dtl.data.sources.rows import Row
from dtl.inspect.check.media import digest_media
from dtl.tasks.base import Task

LABEL_COLUMNS = frozenset({"label", "tags"})


@dataclass(frozen=True)
class RowSummary:
    """The location of a row, a digest of its input, its target text, its class labels, its
    labels or numbers as the data writes them, and the columns whose text is a missing value."""

    location: str
    input_digest: str
    target: str | None
    labels: tuple[str, ...]
    written: tuple[object, ...] = ()
    missing_texts: tuple[str, ...] = ()


def summarize_row(row: Row, task: Task) -> RowSummary:
    """Return the summary of a row. Texts that differ only in case or whitespace have one digest."""
    preview = task.preview(row)
    if preview.input is None:
        content = digest_media(row, str(task.media_column))
    else:
        content = _normalize_text(preview.input)
    digest = hashlib.sha256(content.encode("utf-8", "replace")).hexdigest()[:32]
    written = task.written_labels(row)
    missing = tuple(
        column
        for column in task.read_columns(row.fields)
        if str(row.fields.get(column)).strip() in NO_TEXTS and column not in LABEL_COLUMNS
    )
    return RowSummary(row.location, digest, preview.target, preview.labels, written, missing)


def _normalize_text(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
