"""What one pass over a source and its encoded examples shows."""

from __future__ import annotations

import copy
import hashlib
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dtl.data.audio import FULL_SCALE, rate_of, sound_of
from dtl.data.encoded import Encoded, EncodedData
from dtl.data.image import picture_of
from dtl.data.media import digest_of_files, file_of
from dtl.data.source import Row
from dtl.examples import Examples
from dtl.tasks import Part, Task

LOOKED_AT = 20_000  # examples whose tokens are looked at, evenly spaced
MEDIA_LOOKED_AT = 200  # sounds or pictures that are decoded, evenly spaced
WHOLE = 100_000  # tokens; the limit under which a row is encoded again, to see what was cut
HASHED_WHOLE = 2**20  # bytes; of a larger file the size and both ends


@dataclass(frozen=True)
class Note:
    """A row: where it stands, a digest of what it gives, and what should come out."""

    place: str
    given: str
    answer: str | None
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Sound:
    """`level`: root mean square, a fraction of full scale; `clipped`: share of its samples."""

    place: str
    rate: int
    seconds: float
    level: float
    clipped: float


@dataclass(frozen=True)
class Picture:
    """`flat`: all of its pixels are the same."""

    place: str
    width: int
    height: int
    flat: bool


@dataclass
class Tokens:
    """Sums over the examples that were looked at; places of those at fault."""

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
    """All of one source; `left_out`: the places for each reason."""

    name: str
    place: str
    notes: tuple[Note, ...]
    examples: int
    left_out: dict[str, list[str]]
    lengths: tuple[int, ...]
    tokens: Tokens
    media: tuple[Sound | Picture, ...]


def gather(
    name: str, rows: Iterable[Row], data: EncodedData, task: Task, examples: Examples
) -> SourceFacts:
    """One pass over the rows; those that may have been cut are encoded again without a limit."""
    reasons, encoder = data.left_out, _unlimited(task, examples)
    step = -(-len(data) // LOOKED_AT) or 1
    at = {int(data.rows[number]): number for number in range(0, len(data), step)}
    shortest = _shortest_limit(task, examples)
    every = -(-data.census.rows // MEDIA_LOOKED_AT) or 1
    notes: list[Note] = []
    media: list[Sound | Picture] = []
    left_out: dict[str, list[str]] = {}
    tokens = Tokens()
    for count, row in enumerate(rows):
        notes.append(_note(row, task))
        if task.media and count % every == 0:
            media.append(_sound(row) if task.media == "audio" else _picture(row))
        if row.index in reasons:
            left_out.setdefault(reasons[row.index], []).append(row.place)
        if row.index in reasons or row.index in at:
            values = data[at[row.index]] if row.index in at else None
            near = values is None or int(data.lengths[at[row.index]]) >= shortest
            full = encoder(row) if encoder and near else None
            found = full.values if isinstance(full, Encoded) else values
            _add(tokens, row.place, values, found, task=task, tokenizer=_tokenizer(examples))
    return SourceFacts(
        name=name,
        place="data.train" if name == "train" else "data.eval",
        notes=tuple(notes),
        examples=len(data),
        left_out=left_out,
        lengths=tuple(data.lengths.tolist()),
        tokens=tokens,
        media=tuple(media),
    )


def _note(row: Row, task: Task) -> Note:
    lesson = task.lesson(row)
    given = _of_media(row, str(task.media)) if lesson.given is None else _normal(lesson.given)
    digest = hashlib.sha256(given.encode("utf-8", "replace")).hexdigest()[:32]
    return Note(row.place, digest, lesson.answer, lesson.labels)


def _normal(text: str) -> str:
    """Without what a reader does not see: case, width, runs of blanks."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _of_media(row: Row, media: str) -> str:
    """A digest of a sound or picture; a part of a file counts as that part."""
    value: Any = row.fields.get(media)
    part = f"{row.fields.get('offset')}/{row.fields.get('duration')}"
    file = file_of(value, row.folder)
    if file is not None and file.stat().st_size <= HASHED_WHOLE:
        return hashlib.sha256(file.read_bytes()).hexdigest() + part
    if file is not None:
        return digest_of_files([("", file)]) + part
    if isinstance(value, dict):
        array = value.get("array")
        value = value.get("bytes") if array is None else np.asarray(array).tobytes()
    return hashlib.sha256(value or b"").hexdigest() + part


def _sound(row: Row) -> Sound:
    rate = rate_of(row)
    samples_T = sound_of(row, rate=rate).astype(np.float64)
    if not len(samples_T):
        return Sound(row.place, rate, 0.0, 0.0, 0.0)
    level = float(np.sqrt(np.mean(samples_T**2))) / FULL_SCALE
    clipped = float(np.mean(np.abs(samples_T) >= FULL_SCALE - 1))
    return Sound(row.place, rate, len(samples_T) / rate, level, clipped)


def _picture(row: Row) -> Picture:
    pixels = picture_of(row)
    height, width = pixels.shape[:2]
    return Picture(row.place, width, height, bool((pixels == pixels[:1, :1]).all()))


def _unlimited(task: Task, examples: Examples) -> Any:
    """The same encoder with no limit in reach; None where the task has none."""
    if not task.limits:
        return None
    raised = {name: max(WHOLE, getattr(task.options, name)) for name in task.limits}
    processor, settings = copy.deepcopy(examples.processor), copy.copy(examples.settings)
    if hasattr(processor, "model_max_length"):
        processor.model_max_length = 2**31
    settings.max_position_embeddings = 2**31
    free = type(task)(task.options.model_copy(update=raised))
    return free.encoder(processor, examples.facts, settings)


def _shortest_limit(task: Task, examples: Examples) -> int:
    positions = getattr(examples.settings, "max_position_embeddings", None) or 2**31
    own = getattr(examples.processor, "model_max_length", 2**31)
    return int(min([positions, own, *(getattr(task.options, name) for name in task.limits)]))


def _tokenizer(examples: Examples) -> Any:
    tokenizer = getattr(examples.processor, "tokenizer", examples.processor)
    return tokenizer if hasattr(tokenizer, "get_vocab") else None


def _add(
    sums: Tokens,
    place: str,
    values: dict[str, Any] | None,
    full: dict[str, Any] | None,
    *,
    task: Task,
    tokenizer: Any,
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
        if kept < longest and (values is not None or longest > getattr(task.options, option)):
            sums.cut.setdefault(option, []).append(place)
            was_cut = True
    parts = [] if values is None else task.parts(values)
    kept_learnt = _learnt(parts)
    if kept_learnt < _learnt(task.parts(full)):
        (sums.answers_cut if values is not None else sums.answers_gone).append(place)
    sums.all += sum(len(part.tokens) for part in parts)
    sums.learnt += kept_learnt
    _add_special(sums, place, parts, tokenizer, stops=task.learns_to_stop and not was_cut)


def _add_special(
    sums: Tokens, place: str, parts: list[Part], tokenizer: Any, *, stops: bool
) -> None:
    if tokenizer is None or not parts:
        return
    special = set(tokenizer.all_special_ids)
    unknown = tokenizer.unk_token_id
    if unknown is not None and unknown not in (tokenizer.eos_token_id, tokenizer.pad_token_id):
        count = sum(part.tokens.count(unknown) for part in parts)
        sums.unknown += count
        sums.unknown_in += [place] * bool(count)
    if stops and parts[-1].learnt and not all(part.learnt for part in parts):
        sums.answers += 1
        sums.unended += [place] * (parts[-1].tokens[-1] not in special)


def _learnt(parts: list[Part]) -> int:
    return sum(len(part.tokens) for part in parts if part.learnt)
