"""PreparedData as a person reads them, with what is learnt of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from dtl.data.cache.encoded import EncodedData
from dtl.data.sources.rows import Row
from dtl.prepare.prepared_data import PreparedData
from dtl.tasks.base import Task

PREVIEWS = 5  # examples
MAX_SPAN_CHARACTERS = 160  # characters of a run of tokens


@dataclass(frozen=True)
class Preview:
    """An example as text: runs of tokens, and whether each is learnt."""

    location: str
    spans: tuple[tuple[str, bool], ...]


def preview_examples(rows: Iterable[Row], examples: PreparedData, task: Task) -> Iterator[Preview]:
    """A few, evenly spaced."""
    data = examples.train
    assert isinstance(data, EncodedData), "for a look nothing is streamed"
    chosen = np.unique(np.linspace(0, len(data) - 1, PREVIEWS).astype(int)).tolist()
    numbers = {int(data.rows[number]): number for number in chosen}
    tokenizer = getattr(examples.processor, "tokenizer", examples.processor)
    for row in rows:
        if row.index in numbers:
            yield _preview_example(row, data[numbers[row.index]], task, tokenizer)


def _preview_example(row: Row, values: dict[str, Any], task: Task, tokenizer: Any) -> Preview:
    runs = [
        (_make_printable(tokenizer.decode(part.tokens)), part.supervised)
        for part in (task.token_spans(values) if hasattr(tokenizer, "decode") else [])
    ]
    labels = task.preview(row).labels
    if labels:
        runs.append((_make_printable(" ".join(labels)), True))
    return Preview(row.location, tuple(runs))


def _make_printable(text: str) -> str:
    """On one line, without what would steer a terminal, and not too long."""
    clean = "".join(c if c.isprintable() else "\\n" if c == "\n" else "?" for c in text)
    half = MAX_SPAN_CHARACTERS // 2
    return clean if len(clean) <= MAX_SPAN_CHARACTERS else f"{clean[:half]} ... {clean[-half:]}"
