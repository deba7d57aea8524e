"""What one pass over a source and its encoded examples shows."""

from __future__ import annotations

import copy
import hashlib
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from dtl.core.errors import Fault
from dtl.data.cache.encoded import EncodedData
from dtl.data.example import EncodedExample
from dtl.data.sources.rows import Row
from dtl.inspect.check.media import AudioStats, ImageStats, digest_media, measure_media
from dtl.prepare.prepared_data import PreparedData
from dtl.tasks.base import Task, TokenSpan

MAX_SAMPLED_EXAMPLES = 20_000  # examples whose tokens are looked at, evenly spaced
MAX_SAMPLED_MEDIA = 200  # sounds or pictures that are decoded, evenly spaced
UNLIMITED_OPTION = (
    100_000  # tokens; the limit under which a row is encoded again, to see what was cut
)
UNLIMITED_MODEL = 2**31  # tokens; more than any model reads
MAX_EOS_DISTANCE = (
    3  # last tokens of an answer among which its end is: a template may add a line break
)


@dataclass(frozen=True)
class RowSummary:
    """A row: where it stands, a digest of what it gives, and what should come out."""

    location: str
    input_digest: str
    target: str | None
    labels: tuple[str, ...]


@dataclass
class TokenStats:
    """Sums over the examples that were looked at; places of those at fault.

    `limits`: the task's options, in tokens; `reads`: what the model reads at most, whatever the
    option says; `end_token`: the task's option, where it has one.
    """

    limits: dict[str, int] = field(default_factory=dict)
    model_limits: dict[str, int] = field(default_factory=dict)
    end_token: bool | None = None
    sampled: int = 0
    total: int = 0
    supervised: int = 0
    unknown: int = 0
    unknown_locations: list[str] = field(default_factory=list)
    missing_eos: list[str] = field(default_factory=list)
    targets: int = 0
    truncated: dict[str, list[str]] = field(default_factory=dict)
    truncated_targets: list[str] = field(default_factory=list)
    lost_targets: list[str] = field(default_factory=list)
    lengths: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class SourceStats:
    """All of one source; `left_out`: the places for each reason. `at_fault`: rows that cannot be
    read, `stops`: so many that they stop a run; `undecodable`: those that stop any run."""

    name: str
    length_unit: str
    summaries: tuple[RowSummary, ...]
    examples: int
    skipped_rows: dict[str, list[str]]
    lengths: tuple[int, ...]
    tokens: TokenStats
    media: tuple[AudioStats | ImageStats, ...]
    invalid_rows: tuple[Fault, ...] = ()
    corrupted_media: tuple[Fault, ...] = ()
    invalid_rows_stop_run: bool = False

    @property
    def rows(self) -> int:
        """With those that cannot be read."""
        return len(self.summaries) + len(self.invalid_rows) + len(self.corrupted_media)


def collect_source_stats(
    name: str, rows: Iterable[Row], data: EncodedData, task: Task, examples: PreparedData
) -> SourceStats:
    """One pass over the rows; those that may have been cut are encoded again without a limit."""
    reasons, encoder = (
        data.skipped_rows,
        _create_unlimited_encoder(task, examples, ignore_model_limits=True),
    )
    step = -(-len(data) // MAX_SAMPLED_EXAMPLES) or 1
    at = {int(data.rows[number]): number for number in range(0, len(data), step)}
    every = -(-data.summary.rows // MAX_SAMPLED_MEDIA) or 1
    special = _SpecialTokens.from_processor(examples.processor)
    notes: list[RowSummary] = []
    media: list[AudioStats | ImageStats] = []
    left_out: dict[str, list[str]] = {}
    longest: dict[str, tuple[int, Row]] = {}
    tokens = TokenStats(
        limits={option: getattr(task.options, option) for option in task.truncation_options},
        end_token=getattr(task.options, "end_token", None),
    )
    positions = _max_positions(examples)
    shortest = min([positions, _tokenizer_limit(examples), *tokens.limits.values()])
    for count, row in enumerate(rows):
        notes.append(note := _summarize_row(row, task))
        if task.media_column and count % every == 0:
            media.append(measure_media(row, task.media_column))
        if row.index in reasons:
            left_out.setdefault(reasons[row.index], []).append(row.location)
        if row.index in reasons or row.index in at:
            values = data[at[row.index]] if row.index in at else None
            near = values is None or int(data.lengths[at[row.index]]) >= shortest
            full = encoder(row) if encoder and near else None
            found = full.values if isinstance(full, EncodedExample) else values
            for option, length in _measure_lengths(found, task).items():
                longest[option] = max(longest.get(option, (0, row)), (length, row), key=_length)
            _add_example(
                tokens, note, values, found, task=task, special=special, positions=positions
            )
    tokens.model_limits = _find_model_limits(longest, task, examples)
    return SourceStats(
        name=name,
        length_unit=task.length_unit,
        summaries=tuple(notes),
        examples=len(data),
        skipped_rows=left_out,
        lengths=tuple(data.lengths.tolist()),
        tokens=tokens,
        media=tuple(media),
    )


def _summarize_row(row: Row, task: Task) -> RowSummary:
    lesson = task.preview(row)
    given = lesson.input
    given = digest_media(row, str(task.media_column)) if given is None else _normalize_text(given)
    digest = hashlib.sha256(given.encode("utf-8", "replace")).hexdigest()[:32]
    return RowSummary(row.location, digest, lesson.target, lesson.labels)


def _normalize_text(text: str) -> str:
    """Without what a reader does not see: case, width, runs of blanks."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _create_unlimited_encoder(
    task: Task, examples: PreparedData, *, ignore_model_limits: bool
) -> Any:
    """The same encoder with the options out of reach; None where the task has no limit. `endless`:
    so are the limits of the model and its tokenizer."""
    if not task.truncation_options:
        return None
    raised = {
        name: max(UNLIMITED_OPTION, getattr(task.options, name)) for name in task.truncation_options
    }
    processor, settings = copy.deepcopy(examples.processor), copy.copy(examples.model_config)
    if ignore_model_limits:
        settings.max_position_embeddings = UNLIMITED_MODEL
        if hasattr(processor, "model_max_length"):
            processor.model_max_length = UNLIMITED_MODEL
    free = type(task)(task.options.model_copy(update=raised))
    return free.encoder(processor, examples.dataset_stats, settings)


def _find_model_limits(
    longest: dict[str, tuple[int, Row]], task: Task, examples: PreparedData
) -> dict[str, int]:
    """What the model reads of the longest rows, if the options let it; ENDLESS: all of them."""
    encoder, reads = _create_unlimited_encoder(task, examples, ignore_model_limits=False), {}
    for option, (length, row) in longest.items():
        found = encoder(row)
        whole = isinstance(found, EncodedExample)
        kept = _measure_lengths(found.values, task)[option] if whole else _max_positions(examples)
        reads[option] = kept if kept < length else UNLIMITED_MODEL
    return reads


def _measure_lengths(values: dict[str, Any] | None, task: Task) -> dict[str, int]:
    """Tokens of an example, for each limit."""
    if values is None:
        return {}
    return {
        option: max(len(values[n]) for n in names)
        for option, names in task.truncation_options.items()
    }


def _length(found: tuple[int, Row]) -> int:
    return found[0]


def _max_positions(examples: PreparedData) -> int:
    return getattr(examples.model_config, "max_position_embeddings", None) or UNLIMITED_MODEL


def _tokenizer_limit(examples: PreparedData) -> int:
    return int(
        min(UNLIMITED_MODEL, getattr(examples.processor, "model_max_length", UNLIMITED_MODEL))
    )


@dataclass(frozen=True)
class _SpecialTokens:
    """Tokens that are no text. `unknown`: None where the tokenizer has none of its own."""

    all: frozenset[int]
    unknown: int | None

    @classmethod
    def from_processor(cls, processor: Any) -> _SpecialTokens | None:
        """None for a processor without a tokenizer."""
        tokenizer = getattr(processor, "tokenizer", processor)
        if not hasattr(tokenizer, "get_vocab"):
            return None
        unknown = tokenizer.unk_token_id
        if unknown in (tokenizer.eos_token_id, tokenizer.pad_token_id):
            unknown = None
        return cls(frozenset(tokenizer.all_special_ids), unknown)


def _add_example(
    sums: TokenStats,
    note: RowSummary,
    values: dict[str, Any] | None,
    full: dict[str, Any] | None,
    *,
    task: Task,
    special: _SpecialTokens | None,
    positions: int,
) -> None:
    """Add one row. `values`: as encoded, None for one left out; `full`: without a limit."""
    if full is None:
        return
    sums.sampled += 1
    was_cut = False
    kept, was_cut = _measure_lengths(values, task), False
    for option, length in _measure_lengths(full, task).items():
        sums.lengths.setdefault(option, []).append(length)
        reach = kept.get(option, min(sums.limits[option], positions))
        if reach < length:
            sums.truncated.setdefault(option, []).append(note.location)
            was_cut = True
    parts = [] if values is None else task.token_spans(values)
    kept_learnt = _count_supervised(parts)
    if kept_learnt < _count_supervised(task.token_spans(full)) and (
        note.labels or note.target is not None
    ):
        (sums.truncated_targets if values is not None else sums.lost_targets).append(note.location)
    sums.total += sum(len(part.tokens) for part in parts)
    sums.supervised += kept_learnt
    if special is None or not parts:
        return
    _count_unknown_tokens(sums, note.location, parts, special)
    if task.supervises_eos and note.target is not None and parts[-1].supervised and not was_cut:
        sums.targets += 1
        sums.missing_eos += [note.location] * special.all.isdisjoint(
            parts[-1].tokens[-MAX_EOS_DISTANCE:]
        )


def _count_unknown_tokens(
    sums: TokenStats, place: str, parts: list[TokenSpan], special: _SpecialTokens
) -> None:
    count = sum(part.tokens.count(special.unknown) for part in parts if special.unknown is not None)
    sums.unknown += count
    sums.unknown_locations += [place] * bool(count)


def _count_supervised(parts: list[TokenSpan]) -> int:
    return sum(len(part.tokens) for part in parts if part.supervised)
