"""What the facts mean: each finding with its rows and its fix."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dtl.core.errors import Fault
from dtl.inspect.check.media import Picture, Sound
from dtl.inspect.check.stats import Note, SourceFacts, Tokens

PLACES_SHOWN = 3
RARE, ALMOST_ALL = 0.01, 0.95  # shares of the rows
FEW = 0.01  # share of answers cut, of tokens unknown
GONE = 0.2  # share of answers cut entirely that wastes a run
SILENT = 1e-3  # -60 dB of full scale
CLIPPED = 1e-3  # share of a sound's samples
SMALLEST_SIDE = 8  # pixels


@dataclass(frozen=True)
class Finding:
    """`wastes`: a run on this data would be for nothing. `count`: the rows concerned."""

    kind: str
    fault: Fault
    count: int
    wastes: bool = False


def findings(train: SourceFacts, held_out: SourceFacts | None) -> tuple[Finding, ...]:
    """Those that would waste a run first."""
    both = [train] if held_out is None else [train, held_out]
    found = [*_twins(train), *_classes(train)]
    if held_out is not None:
        found += [*_leaks(train, held_out), *_unseen(train, held_out)]
    for source in both:
        found += [*_at_fault(source), *_left_out(source), *_answers(source)]
        found += [*_cut(source.tokens), *_tokens(source.tokens), *_media(source)]
    return tuple(sorted(found, key=lambda finding: not finding.wastes))


def _finding(
    kind: str, places: Sequence[str], of: int, what: str, fix: str, *, wastes: bool = False
) -> Finding:
    """Told at its first row, with the next ones and the share."""
    others = "".join(f", {place}" for place in places[1:PLACES_SHOWN])
    also = f" (also {others[2:]}{' ...' * (len(places) > PLACES_SHOWN)})" if others else ""
    share = f"{len(places)} of {of} {what}{also}"
    return Finding(kind, Fault(places[0], share, fix), len(places), wastes)


def _twins(train: SourceFacts) -> Iterator[Finding]:
    same: dict[str, list[Note]] = defaultdict(list)
    for note in train.notes:
        same[note.given].append(note)
    twins = [notes for notes in same.values() if len(notes) > 1]
    torn = [note.place for notes in twins if len({n.labels for n in notes}) > 1 for note in notes]
    total = len(train.notes)
    if torn:
        what = "rows have the input of another row and a different label"
        yield _finding("conflicts", torn, total, what, "keep the right one of each")
    first: set[tuple[object, ...]] = set()
    again = []
    for notes in twins:
        for note in notes:
            whole = (note.given, note.answer, note.labels)
            again += [note.place] * (whole in first)
            first.add(whole)
    if again:
        what = "rows of data.train repeat an earlier one"
        yield _finding(
            "duplicates", again, total, what, "remove them, unless they should count more"
        )


def _leaks(train: SourceFacts, held_out: SourceFacts) -> Iterator[Finding]:
    seen = {note.given: note.place for note in reversed(train.notes)}
    leaks = [f"{n.place} (as {seen[n.given]})" for n in held_out.notes if n.given in seen]
    if leaks:
        total = len(held_out.notes)
        what = "held-out rows are also in data.train"
        fix = "remove them from one of the two: a score on them says nothing"
        yield _finding("leak", leaks, total, what, fix, wastes=len(leaks) == total)


def _classes(train: SourceFacts) -> Iterator[Finding]:
    first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for note in train.notes:
        counts.update(note.labels)
        for label in note.labels:
            first.setdefault(label, note.place)
    total = counts.total()
    one_each = all(len(note.labels) == 1 for note in train.notes)
    fix = "add rows of it, or merge it with another class"
    for label, count in counts.items():
        share = f"the class {label!r} has {count} of {total}"
        if len(counts) == 1:
            fault = Fault(first[label], f"{share}: there is no other class", "add other classes")
            yield Finding("single class", fault, count, True)
        elif one_each and count / total > ALMOST_ALL:
            more = "add rows of the others; always saying this one would be right as often"
            yield Finding("imbalance", Fault(first[label], share, more), count)
        elif count < 2 or (one_each and count / total < RARE):
            yield Finding("rare class", Fault(first[label], share, fix), count)


def _unseen(train: SourceFacts, held_out: SourceFacts) -> Iterator[Finding]:
    known = {label for note in train.notes for label in note.labels}
    strange = [note.place for note in held_out.notes if set(note.labels) - known]
    if strange:
        what = "held-out rows have a label that no training row has"
        yield _finding(
            "unseen label", strange, len(held_out.notes), what, "add such rows", wastes=True
        )


def _at_fault(source: SourceFacts) -> Iterator[Finding]:
    bad, total = source.at_fault, source.rows
    if bad:
        fate = "are at fault, and stop a run" if source.stops else "are at fault, and skipped"
        what, places = f"rows {fate}: {bad[0].problem}", [fault.location for fault in bad]
        yield _finding("at fault", places, total, what, bad[0].fix, wastes=source.stops)
    if bad := source.undecodable:
        what, places = f"rows stop a run: {bad[0].problem}", [fault.location for fault in bad]
        yield _finding("undecodable", places, total, what, bad[0].fix, wastes=True)


def _left_out(source: SourceFacts) -> Iterator[Finding]:
    for reason, places in source.left_out.items():
        what = f"rows are left out: {reason}"
        yield _finding("left out", places, len(source.notes), what, "fix or remove them")


def _answers(source: SourceFacts) -> Iterator[Finding]:
    given = [note for note in source.notes if note.answer is not None]
    empty = [note.place for note in given if not (note.answer or "").strip()]
    if empty:
        what, fix = "rows have an empty answer", "fill them in, or remove the rows"
        wastes = len(empty) == len(given)
        yield _finding("empty answers", empty, len(source.notes), what, fix, wastes=wastes)


def _cut(sums: Tokens) -> Iterator[Finding]:
    of = sums.looked_at
    for option, places in sums.cut.items():
        if len(places) > FEW * of:
            reads, asked = sums.reads[option], sums.limits[option]
            end = f"task.{option}" if asked <= reads else f"the {reads} tokens that the model reads"
            what, fix = f"rows are cut off at {end}", _longer(sums, option, "shorten them")
            yield _finding("cut", places, of, what, fix)
    if not sums.lengths:
        return
    option = list(sums.lengths)[-1]  # what comes out stands last
    if sums.answers_gone:
        what, wastes = "answers lie wholly beyond the limit", len(sums.answers_gone) > GONE * of
        fix = _longer(sums, option, "shorten the prompts")
        yield _finding("answers gone", sums.answers_gone, of, what, fix, wastes=wastes)
    if len(sums.answers_cut) > FEW * of:
        what, fix = "rows lose tokens to learn", _longer(sums, option, "shorten the rows")
        yield _finding("answers cut", sums.answers_cut, of, what, fix)


def _longer(sums: Tokens, option: str, instead: str) -> str:
    """The limit that would do, as far as the model reads."""
    enough, reads = longest_for(sums.lengths[option]), sums.reads[option]
    if enough <= reads:
        return f"set task.{option}={enough}, or {instead}"
    other = f"{instead}, or take a model that reads {enough} tokens"
    return other if sums.limits[option] >= reads else f"set task.{option}={reads}, and {other}"


def _tokens(sums: Tokens) -> Iterator[Finding]:
    if len(sums.unended) > FEW * sums.answers:
        what = "answers have no end token that is learnt, so the model would not learn to stop"
        other = "take a tokenizer or chat template that closes them with one"
        fix = f"set task.end_token=true, or {other}" if sums.end_token is False else other
        yield _finding("no end", sums.unended, sums.answers, what, fix)
    if sums.unknown > FEW * sums.all:
        what = f"rows have unknown tokens, {sums.unknown / sums.all:.1%} of all tokens"
        fix = "take a model whose tokenizer knows this language and script"
        yield _finding("unknown tokens", sums.unknown_in, sums.looked_at, what, fix)


def _media(source: SourceFacts) -> Iterator[Finding]:
    sounds = [medium for medium in source.media if isinstance(medium, Sound)]
    pictures = [medium for medium in source.media if isinstance(medium, Picture)]
    of = len(source.media)
    silent = [sound.place for sound in sounds if sound.seconds and sound.level < SILENT]
    if silent:
        wastes = len(silent) == of
        what = "sounds looked at are silent (below -60 dB)"
        yield _finding("silence", silent, of, what, "remove them", wastes=wastes)
    if clipped := [sound.place for sound in sounds if sound.clipped > CLIPPED]:
        what = "sounds looked at are clipped"
        yield _finding("clipping", clipped, of, what, "record or convert them at a lower level")
    rates = Counter(sound.rate for sound in sounds)
    if len(rates) > 1:
        usual = rates.most_common(1)[0][0]
        others = [sound.place for sound in sounds if sound.rate != usual]
        what = f"sounds looked at are not at {usual} Hz ({sorted(rates)})"
        yield _finding(
            "sample rates", others, of, what, "check their source: a low rate sounds dull"
        )
    if tiny := [p.place for p in pictures if min(p.width, p.height) < SMALLEST_SIDE]:
        what = f"pictures looked at have a side below {SMALLEST_SIDE} pixels"
        yield _finding("tiny pictures", tiny, of, what, "remove them", wastes=len(tiny) == of)
    if flat := [p.place for p in pictures if p.flat]:
        what = "pictures looked at are of one colour"
        yield _finding("blank pictures", flat, of, what, "remove them", wastes=len(flat) == of)


def longest_for(lengths: Sequence[int]) -> int:
    """So that 99 % are read whole; rounded up to 8."""
    return int(-(-np.percentile(lengths, 99, method="higher") // 8) * 8)
