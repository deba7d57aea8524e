"""What one pass over a source and its encoded examples shows."""

from __future__ import annotations

import copy
import hashlib
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from dtl.data.encoded import Encoded, EncodedData
from dtl.data.source import Row
from dtl.errors import Fault
from dtl.examples import Examples
from dtl.tasks import Part, Task
from dtl.xray.media import Picture, Sound, digest_of_medium, medium_of

LOOKED_AT = 20_000  # examples whose tokens are looked at, evenly spaced
MEDIA_LOOKED_AT = 200  # sounds or pictures that are decoded, evenly spaced
WHOLE = 100_000  # tokens; the limit under which a row is encoded again, to see what was cut
ENDLESS = 2**31  # tokens; more than any model reads
CLOSING = 3  # last tokens of an answer among which its end is: a template may add a line break
LENGTH_UNITS = {None: "tokens", "audio": "frames", "image": "patches"}  # by the task's media


@dataclass(frozen=True)
class Note:
    """A row: where it stands, a digest of what it gives, and what should come out."""

    place: str
    given: str
    answer: str | None
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Reach:
    """How long a row may be. `limits`: the task's options, in tokens; `model`: what the model reads
    at most, ENDLESS where it says nothing; `end_token`: the task's option, where it has one."""

    limits: dict[str, int]
    model: int
    end_token: bool | None

    def within(self, option: str) -> int:
        """Tokens that are read of a row."""
        return min(self.limits[option], self.model)

    @property
    def shortest(self) -> int:
        """Rows below are read whole."""
        return min([self.model, *self.limits.values()])


@dataclass
class Tokens:
    """Sums over the examples that were looked at; places of those at fault."""

    reach: Reach
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
    reasons, encoder = data.left_out, _unlimited(task, examples)
    step = -(-len(data) // LOOKED_AT) or 1
    at = {int(data.rows[number]): number for number in range(0, len(data), step)}
    every = -(-data.census.rows // MEDIA_LOOKED_AT) or 1
    special = _Special.of(examples.processor)
    notes: list[Note] = []
    media: list[Sound | Picture] = []
    left_out: dict[str, list[str]] = {}
    tokens = Tokens(_reach(task, examples))
    for count, row in enumerate(rows):
        notes.append(note := _note(row, task))
        if task.media and count % every == 0:
            media.append(medium_of(row, task.media))
        if row.index in reasons:
            left_out.setdefault(reasons[row.index], []).append(row.place)
        if row.index in reasons or row.index in at:
            values = data[at[row.index]] if row.index in at else None
            near = values is None or int(data.lengths[at[row.index]]) >= tokens.reach.shortest
            full = encoder(row) if encoder and near else None
            found = full.values if isinstance(full, Encoded) else values
            _add(tokens, note, values, found, task=task, special=special)
    return SourceFacts(
        name=name,
        unit=LENGTH_UNITS[task.media],
        notes=tuple(notes),
        examples=len(data),
        left_out=left_out,
        lengths=tuple(data.lengths.tolist()),
        tokens=tokens,
        media=tuple(media),
    )


def _note(row: Row, task: Task) -> Note:
    lesson = task.lesson(row)
    given = lesson.given
    given = digest_of_medium(row, str(task.media)) if given is None else _normal(given)
    digest = hashlib.sha256(given.encode("utf-8", "replace")).hexdigest()[:32]
    return Note(row.place, digest, lesson.answer, lesson.labels)


def _normal(text: str) -> str:
    """Without what a reader does not see: case, width, runs of blanks."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _unlimited(task: Task, examples: Examples) -> Any:
    """The same encoder with no limit in reach; None where the task has none."""
    if not task.limits:
        return None
    raised = {name: max(WHOLE, getattr(task.options, name)) for name in task.limits}
    processor, settings = copy.deepcopy(examples.processor), copy.copy(examples.settings)
    if hasattr(processor, "model_max_length"):
        processor.model_max_length = ENDLESS
    settings.max_position_embeddings = ENDLESS
    free = type(task)(task.options.model_copy(update=raised))
    return free.encoder(processor, examples.facts, settings)


def _reach(task: Task, examples: Examples) -> Reach:
    positions = getattr(examples.settings, "max_position_embeddings", None) or ENDLESS
    own = getattr(examples.processor, "model_max_length", ENDLESS)
    return Reach(
        limits={name: getattr(task.options, name) for name in task.limits},
        model=int(min(positions, own, ENDLESS)),
        end_token=getattr(task.options, "end_token", None),
    )


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
) -> None:
    """Add one row. `values`: as encoded, None for one left out; `full`: without a limit."""
    if full is None:
        return
    sums.looked_at += 1
    was_cut = False
    for option, columns in task.limits.items():
        longest = max(len(full[column]) for column in columns)
        sums.lengths.setdefault(option, []).append(longest)
        kept = 0 if values is None else max(len(values[column]) for column in columns)
        if kept < longest and (values is not None or longest > sums.reach.within(option)):
            sums.cut.setdefault(option, []).append(note.place)
            was_cut = True
    parts = [] if values is None else task.parts(values)
    kept_learnt = _learnt(parts)
    if kept_learnt < _learnt(task.parts(full)):
        (sums.answers_cut if values is not None else sums.answers_gone).append(note.place)
    sums.all += sum(len(part.tokens) for part in parts)
    sums.learnt += kept_learnt
    if special is None or not parts:
        return
    _add_unknown(sums, note.place, parts, special)
    if task.learns_to_stop and note.answer is not None and parts[-1].learnt and not was_cut:
        sums.answers += 1
        sums.unended += [note.place] * special.all.isdisjoint(parts[-1].tokens[-CLOSING:])


def _add_unknown(sums: Tokens, place: str, parts: list[Part], special: _Special) -> None:
    count = sum(part.tokens.count(special.unknown) for part in parts if special.unknown is not None)
    sums.unknown += count
    sums.unknown_in += [place] * bool(count)


def _learnt(parts: list[Part]) -> int:
    return sum(len(part.tokens) for part in parts if part.learnt)
