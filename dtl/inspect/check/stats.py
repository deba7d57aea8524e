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
from dtl.data.example import Encoded
from dtl.data.sources.rows import Row
from dtl.inspect.check.media import Picture, Sound, digest_of_medium, medium_of
from dtl.prepare.dataset import Examples
from dtl.tasks.base import Task, TokenSpan

LOOKED_AT = 20_000  # examples whose tokens are looked at, evenly spaced
MEDIA_LOOKED_AT = 200  # sounds or pictures that are decoded, evenly spaced
WHOLE = 100_000  # tokens; the limit under which a row is encoded again, to see what was cut
ENDLESS = 2**31  # tokens; more than any model reads
CLOSING = 3  # last tokens of an answer among which its end is: a template may add a line break


@dataclass(frozen=True)
class Note:
    """A row: where it stands, a digest of what it gives, and what should come out."""

    place: str
    given: str
    answer: str | None
    labels: tuple[str, ...]


@dataclass
class Tokens:
    """Sums over the examples that were looked at; places of those at fault.

    `limits`: the task's options, in tokens; `reads`: what the model reads at most, whatever the
    option says; `end_token`: the task's option, where it has one.
    """

    limits: dict[str, int] = field(default_factory=dict)
    reads: dict[str, int] = field(default_factory=dict)
    end_token: bool | None = None
    looked_at: int = 0
    all: int = 0
    learnt: int = 0
    unknown: int = 0
    unknown_in: list[str] = field(default_factory=list)
    unended: list[str] = field(default_factory=list)
    answers: int = 0
    cut: dict[str, list[str]] = field(default_factory=dict)
    answers_cut: list[str] = field(default_factory=list)
    answers_gone: list[str] = field(default_factory=list)
    lengths: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class SourceFacts:
    """All of one source; `left_out`: the places for each reason. `at_fault`: rows that cannot be
    read, `stops`: so many that they stop a run; `undecodable`: those that stop any run."""

    name: str
    unit: str
    notes: tuple[Note, ...]
    examples: int
    left_out: dict[str, list[str]]
    lengths: tuple[int, ...]
    tokens: Tokens
    media: tuple[Sound | Picture, ...]
    at_fault: tuple[Fault, ...] = ()
    undecodable: tuple[Fault, ...] = ()
    stops: bool = False

    @property
    def rows(self) -> int:
        """With those that cannot be read."""
        return len(self.notes) + len(self.at_fault) + len(self.undecodable)


def gather(
    name: str, rows: Iterable[Row], data: EncodedData, task: Task, examples: Examples
) -> SourceFacts:
    """One pass over the rows; those that may have been cut are encoded again without a limit."""
    reasons, encoder = data.left_out, _encoder(task, examples, endless=True)
    step = -(-len(data) // LOOKED_AT) or 1
    at = {int(data.rows[number]): number for number in range(0, len(data), step)}
    every = -(-data.census.rows // MEDIA_LOOKED_AT) or 1
    special = _Special.of(examples.processor)
    notes: list[Note] = []
    media: list[Sound | Picture] = []
    left_out: dict[str, list[str]] = {}
    longest: dict[str, tuple[int, Row]] = {}
    tokens = Tokens(
        limits={option: getattr(task.options, option) for option in task.truncation_options},
        end_token=getattr(task.options, "end_token", None),
    )
    positions = _positions(examples)
    shortest = min([positions, _own_limit(examples), *tokens.limits.values()])
    for count, row in enumerate(rows):
        notes.append(note := _note(row, task))
        if task.media_column and count % every == 0:
            media.append(medium_of(row, task.media_column))
        if row.index in reasons:
            left_out.setdefault(reasons[row.index], []).append(row.location)
        if row.index in reasons or row.index in at:
            values = data[at[row.index]] if row.index in at else None
            near = values is None or int(data.lengths[at[row.index]]) >= shortest
            full = encoder(row) if encoder and near else None
            found = full.values if isinstance(full, Encoded) else values
            for option, length in _lengths(found, task).items():
                longest[option] = max(longest.get(option, (0, row)), (length, row), key=_length)
            _add(tokens, note, values, found, task=task, special=special, positions=positions)
    tokens.reads = _model_reads(longest, task, examples)
    return SourceFacts(
        name=name,
        unit=task.length_unit,
        notes=tuple(notes),
        examples=len(data),
        left_out=left_out,
        lengths=tuple(data.lengths.tolist()),
        tokens=tokens,
        media=tuple(media),
    )


def _note(row: Row, task: Task) -> Note:
    lesson = task.preview(row)
    given = lesson.input
    given = digest_of_medium(row, str(task.media_column)) if given is None else _normal(given)
    digest = hashlib.sha256(given.encode("utf-8", "replace")).hexdigest()[:32]
    return Note(row.location, digest, lesson.target, lesson.labels)


def _normal(text: str) -> str:
    """Without what a reader does not see: case, width, runs of blanks."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _encoder(task: Task, examples: Examples, *, endless: bool) -> Any:
    """The same encoder with the options out of reach; None where the task has no limit. `endless`:
    so are the limits of the model and its tokenizer."""
    if not task.truncation_options:
        return None
    raised = {name: max(WHOLE, getattr(task.options, name)) for name in task.truncation_options}
    processor, settings = copy.deepcopy(examples.processor), copy.copy(examples.settings)
    if endless:
        settings.max_position_embeddings = ENDLESS
        if hasattr(processor, "model_max_length"):
            processor.model_max_length = ENDLESS
    free = type(task)(task.options.model_copy(update=raised))
    return free.encoder(processor, examples.facts, settings)


def _model_reads(
    longest: dict[str, tuple[int, Row]], task: Task, examples: Examples
) -> dict[str, int]:
    """What the model reads of the longest rows, if the options let it; ENDLESS: all of them."""
    encoder, reads = _encoder(task, examples, endless=False), {}
    for option, (length, row) in longest.items():
        found = encoder(row)
        whole = isinstance(found, Encoded)
        kept = _lengths(found.values, task)[option] if whole else _positions(examples)
        reads[option] = kept if kept < length else ENDLESS
    return reads


def _lengths(values: dict[str, Any] | None, task: Task) -> dict[str, int]:
    """Tokens of an example, for each limit."""
    if values is None:
        return {}
    return {
        option: max(len(values[n]) for n in names)
        for option, names in task.truncation_options.items()
    }


def _length(found: tuple[int, Row]) -> int:
    return found[0]


def _positions(examples: Examples) -> int:
    return getattr(examples.settings, "max_position_embeddings", None) or ENDLESS


def _own_limit(examples: Examples) -> int:
    return int(min(ENDLESS, getattr(examples.processor, "model_max_length", ENDLESS)))


@dataclass(frozen=True)
class _Special:
    """Tokens that are no text. `unknown`: None where the tokenizer has none of its own."""

    all: frozenset[int]
    unknown: int | None

    @classmethod
    def of(cls, processor: Any) -> _Special | None:
        """None for a processor without a tokenizer."""
        tokenizer = getattr(processor, "tokenizer", processor)
        if not hasattr(tokenizer, "get_vocab"):
            return None
        unknown = tokenizer.unk_token_id
        if unknown in (tokenizer.eos_token_id, tokenizer.pad_token_id):
            unknown = None
        return cls(frozenset(tokenizer.all_special_ids), unknown)


def _add(
    sums: Tokens,
    note: Note,
    values: dict[str, Any] | None,
    full: dict[str, Any] | None,
    *,
    task: Task,
    special: _Special | None,
    positions: int,
) -> None:
    """Add one row. `values`: as encoded, None for one left out; `full`: without a limit."""
    if full is None:
        return
    sums.looked_at += 1
    was_cut = False
    kept, was_cut = _lengths(values, task), False
    for option, length in _lengths(full, task).items():
        sums.lengths.setdefault(option, []).append(length)
        reach = kept.get(option, min(sums.limits[option], positions))
        if reach < length:
            sums.cut.setdefault(option, []).append(note.place)
            was_cut = True
    parts = [] if values is None else task.token_spans(values)
    kept_learnt = _learnt(parts)
    if kept_learnt < _learnt(task.token_spans(full)) and (note.labels or note.answer is not None):
        (sums.answers_cut if values is not None else sums.answers_gone).append(note.place)
    sums.all += sum(len(part.tokens) for part in parts)
    sums.learnt += kept_learnt
    if special is None or not parts:
        return
    _add_unknown(sums, note.place, parts, special)
    if task.supervises_eos and note.answer is not None and parts[-1].supervised and not was_cut:
        sums.answers += 1
        sums.unended += [note.place] * special.all.isdisjoint(parts[-1].tokens[-CLOSING:])


def _add_unknown(sums: Tokens, place: str, parts: list[TokenSpan], special: _Special) -> None:
    count = sum(part.tokens.count(special.unknown) for part in parts if special.unknown is not None)
    sums.unknown += count
    sums.unknown_in += [place] * bool(count)


def _learnt(parts: list[TokenSpan]) -> int:
    return sum(len(part.tokens) for part in parts if part.supervised)
