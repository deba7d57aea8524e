"""Summaries of rows, for the comparison of rows with each other."""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass

from dtl.data.sources.rows import Row
from dtl.inspect.check.media import digest_media
from dtl.tasks.base import Task


@dataclass(frozen=True)
class RowSummary:
    """The location of a row, a digest of its input, its target text, its class labels, and its
    labels or numbers as the data writes them."""

    location: str
    input_digest: str
    target: str | None
    labels: tuple[str, ...]
    written: tuple[object, ...] = ()


def summarize_row(row: Row, task: Task) -> RowSummary:
    """Return the summary of a row. Texts that differ only in case or whitespace have one digest."""
    preview = task.preview(row)
    if preview.input is None:
        content = digest_media(row, str(task.media_column))
    else:
        content = _normalize_text(preview.input)
    digest = hashlib.sha256(content.encode("utf-8", "replace")).hexdigest()[:32]
    written = task.written_labels(row)
    return RowSummary(row.location, digest, preview.target, preview.labels, written)


def _normalize_text(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
