"""Statistics of a source, collected in one pass over its rows and encoded examples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dtl.core.errors import Fault
from dtl.data.cache.encoded import EncodedData, RowNotes
from dtl.data.example import EncodedExample
from dtl.data.invalid_rows import invalid_problems
from dtl.data.sources.rows import Row
from dtl.inspect.check.media import AudioStats, ImageStats, measure_media
from dtl.inspect.check.row_summary import RowSummary, summarize_row
from dtl.inspect.check.token_stats import TokenCounter, TokenStats
from dtl.inspect.check.unlimited_encoding import (
    create_unlimited_encoder,
    find_model_limits,
    get_max_positions,
    get_tokenizer_limit,
    measure_lengths,
)
from dtl.prepare.prepared_data import PreparedData
from dtl.tasks.base import Task

MAX_SAMPLED_EXAMPLES = 20_000  # evenly spaced examples whose tokens are counted
FIX_OF_INVALID = "change the messages as the chat template requires, or set data.on_bad_row=skip"
MAX_SAMPLED_MEDIA = 200  # evenly spaced media files that are decoded


@dataclass(frozen=True)
class SourceStats:
    """The statistics of one source. `unread_columns`: those that the task reads in no row;
    `row_notes`: what is unusual about examples; `expanded`: rows that are several examples each;
    `skipped_rows`: reason -> locations. `invalid_rows`: rows that
    cannot be used, `invalid_rows_stop_run`: so many that a run stops; `corrupted_media`: rows whose
    media cannot be decoded or are not finite, `corrupted_media_stop_run`: so many that a run
    stops."""

    name: str
    length_unit: str
    unread_columns: tuple[str, ...]
    row_notes: tuple[RowNotes, ...]
    expanded: int
    summaries: tuple[RowSummary, ...]
    examples: int
    skipped_rows: dict[str, list[str]]
    lengths: tuple[int, ...]
    tokens: TokenStats
    media: tuple[AudioStats | ImageStats, ...]
    invalid_rows: tuple[Fault, ...] = ()
    corrupted_media: tuple[Fault, ...] = ()
    invalid_rows_stop_run: bool = False
    corrupted_media_stop_run: bool = False

    @property
    def rows(self) -> int:
        """Return the number of rows, with the invalid ones."""
        return len(self.summaries) + len(self.invalid_rows) + len(self.corrupted_media)


def collect_source_stats(
    name: str, rows: Iterable[Row], data: EncodedData, task: Task, prepared: PreparedData
) -> SourceStats:
    """Collect the statistics of a source in one pass over its rows."""
    skip_reasons = data.skipped_rows
    media_interval = -(-data.summary.rows // MAX_SAMPLED_MEDIA) or 1
    summaries: list[RowSummary] = []
    media: list[AudioStats | ImageStats] = []
    skipped_rows: dict[str, list[str]] = {}
    tokens = _TokenSampler(data, task, prepared)
    columns: dict[str, bool] = {}  # whether some row has it read
    invalid: dict[str, Fault] = {}
    for count, row in enumerate(rows):
        if problems := invalid_problems([skip_reasons.get(row.index, "")]):
            invalid[row.location] = Fault(row.location, problems[0], FIX_OF_INVALID)
            continue
        summary = summarize_row(row, task)
        summaries.append(summary)
        read = task.read_columns(row.fields)
        for column in row.fields:
            columns[column] = columns.get(column, False) or column in read
        if task.media_column and count % media_interval == 0:
            media.append(measure_media(row, task.media_column))
        if row.index in skip_reasons:
            skipped_rows.setdefault(skip_reasons[row.index], []).append(row.location)
        tokens.add(row, summary, is_skipped=row.index in skip_reasons)
    return SourceStats(
        name=name,
        length_unit=task.length_unit,
        unread_columns=tuple(column for column, is_read in columns.items() if not is_read),
        row_notes=tuple(data.row_notes),
        expanded=data.summary.expanded,
        summaries=tuple(summaries),
        examples=len(data),
        skipped_rows=skipped_rows,
        lengths=tuple(data.lengths.tolist()),
        tokens=tokens.finish(),
        media=tuple(media),
        invalid_rows=tuple(invalid.values()),
    )


class _TokenSampler:
    """Counts the tokens of evenly spaced examples and of all skipped rows.

    A row that a limit may have truncated is encoded again without limits.
    """

    def __init__(self, data: EncodedData, task: Task, prepared: PreparedData) -> None:
        self._data, self._task, self._prepared = data, task, prepared
        interval = -(-len(data) // MAX_SAMPLED_EXAMPLES) or 1
        self._sampled: dict[int, list[int]] = {}
        for index in range(0, len(data), interval):
            self._sampled.setdefault(int(data.rows[index]), []).append(index)
        self._encoder = create_unlimited_encoder(task, prepared, ignore_model_limits=True)
        max_positions = get_max_positions(prepared)
        self._counter = TokenCounter(task, prepared.processor, max_positions=max_positions)
        limits = self._counter.stats.limits.values()
        self._smallest_limit = min([max_positions, get_tokenizer_limit(prepared), *limits])
        self._longest: dict[str, tuple[int, Row]] = {}

    def add(self, row: Row, summary: RowSummary, *, is_skipped: bool) -> None:
        """Add a row, if it is skipped or one of the sampled examples; the text of any row."""
        if (text := self._task.preview(row).input) is not None:
            self._counter.add_text(row.location, text)
        indices = self._sampled.get(row.index, [])
        if not indices and is_skipped:
            self._add_example(row, summary, None)
        rows = [row] * len(indices)
        if len(indices) > 1:
            expanded = self._task.expand_row(row, processor=self._prepared.processor)
            rows = expanded if len(expanded) == len(indices) else rows
        for part, index in zip(rows, indices, strict=True):
            self._add_example(part, summary, index)

    def _add_example(self, row: Row, summary: RowSummary, index: int | None) -> None:
        """Add one example of a row; `index`: its number, None if the row is skipped."""
        values = None if index is None else self._data[index]
        may_be_truncated = index is None or int(self._data.lengths[index]) >= self._smallest_limit
        unlimited = values
        if self._encoder is not None and may_be_truncated:
            example = self._encoder(row)
            if isinstance(example, EncodedExample):
                unlimited = example.values
        for option, length in measure_lengths(unlimited, self._task).items():
            if option not in self._longest or length > self._longest[option][0]:
                self._longest[option] = (length, row)
        self._counter.add(summary, values, unlimited)

    def finish(self) -> TokenStats:
        """Return the statistics, with the limits of the model."""
        stats = self._counter.stats
        stats.model_limits = find_model_limits(self._longest, self._task, self._prepared)
        return stats
