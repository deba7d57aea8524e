"""Examples as a person reads them, with what is learnt of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from dtl.data.cache.encoded import EncodedData
from dtl.data.sources.rows import Row
from dtl.prepare.dataset import Examples
from dtl.tasks.base import Task

SHOWN = 5  # examples
LONGEST_SHOWN = 160  # characters of a run of tokens


@dataclass(frozen=True)
class Shown:
    """An example as text: runs of tokens, and whether each is learnt."""

    place: str
    runs: tuple[tuple[str, bool], ...]


def choose(rows: Iterable[Row], examples: Examples, task: Task) -> Iterator[Shown]:
    """A few, evenly spaced."""
    data = examples.train
    assert isinstance(data, EncodedData), "for a look nothing is streamed"
    chosen = np.unique(np.linspace(0, len(data) - 1, SHOWN).astype(int)).tolist()
    numbers = {int(data.rows[number]): number for number in chosen}
    tokenizer = getattr(examples.processor, "tokenizer", examples.processor)
    for row in rows:
        if row.index in numbers:
            yield _as_text(row, data[numbers[row.index]], task, tokenizer)


def _as_text(row: Row, values: dict[str, Any], task: Task, tokenizer: Any) -> Shown:
    runs = [
        (_printable(tokenizer.decode(part.tokens)), part.supervised)
        for part in (task.token_spans(values) if hasattr(tokenizer, "decode") else [])
    ]
    labels = task.preview(row).labels
    if labels:
        runs.append((_printable(" ".join(labels)), True))
    return Shown(row.location, tuple(runs))


def _printable(text: str) -> str:
    """On one line, without what would steer a terminal, and not too long."""
    clean = "".join(c if c.isprintable() else "\\n" if c == "\n" else "?" for c in text)
    half = LONGEST_SHOWN // 2
    return clean if len(clean) <= LONGEST_SHOWN else f"{clean[:half]} ... {clean[-half:]}"
