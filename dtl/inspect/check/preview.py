"""Previews of encoded examples as text, with their supervised tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from dtl.data.cache.encoded import EncodedData, evenly_spaced_indices
from dtl.data.sources.rows import Row
from dtl.prepare.prepared_data import PreparedData
from dtl.tasks.base import Task

PREVIEWS = 5
MAX_SPAN_CHARACTERS = 160


@dataclass(frozen=True)
class Preview:
    """An example as text: spans of tokens, and whether each is supervised."""

    location: str
    spans: tuple[tuple[str, bool], ...]


def preview_examples(rows: Iterable[Row], prepared: PreparedData, task: Task) -> Iterator[Preview]:
    """Yield previews of a few evenly spaced training examples."""
    data = prepared.train
    assert isinstance(data, EncodedData), "check_data does not stream"
    indices = {int(data.rows[i]): i for i in evenly_spaced_indices(len(data), PREVIEWS)}
    tokenizer = getattr(prepared.processor, "tokenizer", prepared.processor)
    for row in rows:
        if row.index in indices:
            yield preview_example(row, data[indices[row.index]], task, tokenizer)


def preview_example(row: Row, values: dict[str, Any], task: Task, tokenizer: Any) -> Preview:
    """Return an encoded example of a row as text."""
    token_spans = task.token_spans(values) if hasattr(tokenizer, "decode") else []
    spans = [
        (_make_printable(tokenizer.decode(span.tokens)), span.supervised) for span in token_spans
    ]
    labels = task.preview(row).labels or task.written_labels(row)
    if labels:
        spans += [(" ", False), (_make_printable(" ".join(map(str, labels))), True)]
    return Preview(row.location, tuple(spans))


def _make_printable(text: str) -> str:
    """Return the text on one line, without terminal control characters, and shortened."""
    printable = "".join(c if c.isprintable() else "\\n" if c == "\n" else "?" for c in text)
    if len(printable) <= MAX_SPAN_CHARACTERS:
        return printable
    half = MAX_SPAN_CHARACTERS // 2
    return f"{printable[:half]} ... {printable[-half:]}"
