"""Rows of chats on their way to the encoder: several examples of one row, and dropped texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from dtl.config.schema import RunConfig
from dtl.core.errors import DtlError, Fault, InvalidRowError
from dtl.data.cache.encoded import EncodedData, RowNotes
from dtl.data.chat.coverage import MESSAGE_KEY
from dtl.data.example import EncodedExample, Skip
from dtl.data.sources.rows import Row
from dtl.tasks.base import Task

MAX_LOCATIONS_DISPLAYED = 3


@dataclass(frozen=True)
class ExpandedRows:
    """Rows, each as one or several that are an example of their own. A row that cannot be expanded
    stays one: its encoder raises the same error."""

    rows: Iterable[Row]
    task: Task
    processor: Any

    def __iter__(self) -> Iterator[Row]:
        for row in self.rows:
            try:
                expanded = self.task.expand_row(row, processor=self.processor)
            except InvalidRowError:
                expanded = [row]
            yield from expanded


@dataclass(frozen=True)
class StreamEncoder:
    """Encodes a row in the step that reads it. Raises DtlError for a row that would be several
    examples, because the order of streamed rows counts each as one, and for dropped texts."""

    config: RunConfig
    task: Task
    processor: Any
    encode: Callable[[Row], EncodedExample | Skip]

    def __call__(self, row: Row) -> EncodedExample | Skip:
        rows = self.task.expand_row(row, processor=self.processor)
        if len(rows) > 1:
            raise DtlError.of(
                row.location,
                f"the chat is {len(rows)} examples, because its template renders earlier answers "
                "differently, and a streamed row is one",
                "remove data.train.streaming, or set task.expand_turns=false",
            )
        example = self.encode(rows[0])
        if isinstance(example, EncodedExample):
            refused = [
                each
                for each in example.dropped
                if each not in allowed(self.config) and not each.startswith(MESSAGE_KEY)
            ]
            if refused:
                raise DtlError(
                    *(_dropped_fault(each, [row.location], self.config) for each in refused)
                )
        return example


def allowed(config: RunConfig) -> frozenset[str]:
    """Return the features of a chat that its template may drop."""
    return frozenset(config.data.allow_dropped)


def check_nothing_is_dropped(data: EncodedData, config: RunConfig) -> None:
    """Raise DtlError for the features of the chats that the template drops against the config."""
    faults = [
        _dropped_fault(feature, locations, config)
        for feature, locations in dropped_features(data.row_notes).items()
        if feature not in allowed(config)
    ]
    if faults:
        raise DtlError(*faults)


def dropped_features(row_notes: Iterable[RowNotes]) -> dict[str, list[str]]:
    """Return the features that the chat template drops -> the locations of the rows."""
    found = _dropped_names(row_notes)
    return {name: rows for name, rows in found.items() if not name.startswith(MESSAGE_KEY)}


def unread_message_keys(row_notes: Iterable[RowNotes]) -> dict[str, int]:
    """Return the keys of messages that the chat template does not read -> the number of rows."""
    found = _dropped_names(row_notes).items()
    return {
        name.removeprefix(MESSAGE_KEY): len(rows)
        for name, rows in found
        if name.startswith(MESSAGE_KEY)
    }


def format_unread_keys(row_notes: Iterable[RowNotes]) -> str | None:
    """Return the keys of messages that the chat template does not read as text; None: none."""
    keys = unread_message_keys(row_notes).items()
    listed = ", ".join(f"{key} ({count} rows)" for key, count in keys)
    return f"message keys that the chat template does not read: {listed}" if listed else None


def _dropped_names(row_notes: Iterable[RowNotes]) -> dict[str, list[str]]:
    found: dict[str, dict[str, None]] = {}
    for notes in row_notes:
        for name in notes.dropped:
            found.setdefault(name, {})[notes.location] = None
    return {name: list(locations) for name, locations in found.items()}


def describe_dropped(feature: str, config: RunConfig) -> tuple[str, str]:
    """Return the problem that a chat template drops a feature, and what to do."""
    problem = f"the chat template of {config.model.path} does not render the {feature} of the chat"
    others = "use a model whose chat template has a place for it"
    if feature == "reasoning" and getattr(config.task.options, "expand_turns", None) is False:
        others = "remove task.expand_turns=false, so that each answer is rendered as the last one"
    names = ", ".join((*config.data.allow_dropped, feature))
    return problem, f"{others}, or set data.allow_dropped=[{names}] to train without it"


def _dropped_fault(feature: str, locations: list[str], config: RunConfig) -> Fault:
    problem, fix = describe_dropped(feature, config)
    others = ", ".join(locations[1:MAX_LOCATIONS_DISPLAYED])
    more = f", and {len(locations) - MAX_LOCATIONS_DISPLAYED} more"
    also = f" (also {others}{more if len(locations) > MAX_LOCATIONS_DISPLAYED else ''})"
    return Fault(locations[0], problem + (also if others else ""), fix)
