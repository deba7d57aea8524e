"""What the facts mean: each finding with its rows and its fix."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dtl.core.errors import Fault
from dtl.inspect.check.media import AudioStats, ImageStats
from dtl.inspect.check.stats import RowSummary, SourceStats, TokenStats

MAX_LOCATIONS_DISPLAYED = 3
RARE_CLASS_FRACTION, IMBALANCE_FRACTION = 0.01, 0.95  # shares of the rows
TOLERATED_FRACTION = 0.01  # share of answers cut, of tokens unknown
FATAL_LOST_TARGETS_FRACTION = 0.2  # share of answers cut entirely that wastes a run
SILENCE_RMS = 1e-3  # -60 dB of full scale
CLIPPING_FRACTION = 1e-3  # share of a sound's samples
MIN_IMAGE_SIDE = 8  # pixels


@dataclass(frozen=True)
class Finding:
    """`wastes`: a run on this data would be for nothing. `count`: the rows concerned."""

    kind: str
    fault: Fault
    count: int
    is_fatal: bool = False


def find_problems(train: SourceStats, held_out: SourceStats | None) -> tuple[Finding, ...]:
    """Those that would waste a run first."""
    both = [train] if held_out is None else [train, held_out]
    found = [*_find_duplicates(train), *_find_class_problems(train)]
    if held_out is not None:
        found += [*_find_leakage(train, held_out), *_find_unseen_labels(train, held_out)]
    for source in both:
        found += [
            *_find_invalid_rows(source),
            *_find_skipped_rows(source),
            *_find_empty_targets(source),
        ]
        found += [
            *_find_truncation(source.tokens),
            *_find_token_problems(source.tokens),
            *_find_media_problems(source),
        ]
    return tuple(sorted(found, key=lambda finding: not finding.is_fatal))


def _create_finding(
    kind: str,
    locations: Sequence[str],
    total: int,
    problem: str,
    fix: str,
    *,
    is_fatal: bool = False,
) -> Finding:
    """Told at its first row, with the next ones and the share."""
    others = "".join(f", {place}" for place in locations[1:MAX_LOCATIONS_DISPLAYED])
    also = (
        f" (also {others[2:]}{' ...' * (len(locations) > MAX_LOCATIONS_DISPLAYED)})"
        if others
        else ""
    )
    share = f"{len(locations)} of {total} {problem}{also}"
    return Finding(kind, Fault(locations[0], share, fix), len(locations), is_fatal)


def _find_duplicates(train: SourceStats) -> Iterator[Finding]:
    same: dict[str, list[RowSummary]] = defaultdict(list)
    for note in train.summaries:
        same[note.input_digest].append(note)
    twins = [notes for notes in same.values() if len(notes) > 1]
    torn = [
        note.location for notes in twins if len({n.labels for n in notes}) > 1 for note in notes
    ]
    total = len(train.summaries)
    if torn:
        what = "rows have the input of another row and a different label"
        yield _create_finding("conflicts", torn, total, what, "keep the right one of each")
    first: set[tuple[object, ...]] = set()
    again = []
    for notes in twins:
        for note in notes:
            whole = (note.input_digest, note.target, note.labels)
            again += [note.location] * (whole in first)
            first.add(whole)
    if again:
        what = "rows of data.train repeat an earlier one"
        yield _create_finding(
            "duplicates", again, total, what, "remove them, unless they should count more"
        )


def _find_leakage(train: SourceStats, held_out: SourceStats) -> Iterator[Finding]:
    seen = {note.input_digest: note.location for note in reversed(train.summaries)}
    leaks = [
        f"{n.location} (as {seen[n.input_digest]})" for n in held_out.summaries if n.given in seen
    ]
    if leaks:
        total = len(held_out.summaries)
        what = "held-out rows are also in data.train"
        fix = "remove them from one of the two: a score on them says nothing"
        yield _create_finding("leak", leaks, total, what, fix, is_fatal=len(leaks) == total)


def _find_class_problems(train: SourceStats) -> Iterator[Finding]:
    first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for note in train.summaries:
        counts.update(note.labels)
        for label in note.labels:
            first.setdefault(label, note.location)
    total = counts.total()
    one_each = all(len(note.labels) == 1 for note in train.summaries)
    fix = "add rows of it, or merge it with another class"
    for label, count in counts.items():
        share = f"the class {label!r} has {count} of {total}"
        if len(counts) == 1:
            fault = Fault(first[label], f"{share}: there is no other class", "add other classes")
            yield Finding("single class", fault, count, True)
        elif one_each and count / total > IMBALANCE_FRACTION:
            more = "add rows of the others; always saying this one would be right as often"
            yield Finding("imbalance", Fault(first[label], share, more), count)
        elif count < 2 or (one_each and count / total < RARE_CLASS_FRACTION):
            yield Finding("rare class", Fault(first[label], share, fix), count)


def _find_unseen_labels(train: SourceStats, held_out: SourceStats) -> Iterator[Finding]:
    known = {label for note in train.summaries for label in note.labels}
    strange = [note.location for note in held_out.summaries if set(note.labels) - known]
    if strange:
        what = "held-out rows have a label that no training row has"
        yield _create_finding(
            "unseen label", strange, len(held_out.summaries), what, "add such rows", is_fatal=True
        )


def _find_invalid_rows(source: SourceStats) -> Iterator[Finding]:
    bad, total = source.invalid_rows, source.rows
    if bad:
        fate = (
            "are at fault, and stop a run"
            if source.invalid_rows_stop_run
            else "are at fault, and skipped"
        )
        what, places = f"rows {fate}: {bad[0].problem}", [fault.location for fault in bad]
        yield _create_finding(
            "at fault", places, total, what, bad[0].fix, is_fatal=source.invalid_rows_stop_run
        )
    if bad := source.corrupted_media:
        what, places = f"rows stop a run: {bad[0].problem}", [fault.location for fault in bad]
        yield _create_finding("undecodable", places, total, what, bad[0].fix, is_fatal=True)


def _find_skipped_rows(source: SourceStats) -> Iterator[Finding]:
    for reason, places in source.skipped_rows.items():
        what = f"rows are left out: {reason}"
        yield _create_finding("left out", places, len(source.summaries), what, "fix or remove them")


def _find_empty_targets(source: SourceStats) -> Iterator[Finding]:
    given = [note for note in source.summaries if note.target is not None]
    empty = [note.location for note in given if not (note.target or "").strip()]
    if empty:
        what, fix = "rows have an empty answer", "fill them in, or remove the rows"
        wastes = len(empty) == len(given)
        yield _create_finding(
            "empty answers", empty, len(source.summaries), what, fix, is_fatal=wastes
        )


def _find_truncation(sums: TokenStats) -> Iterator[Finding]:
    of = sums.sampled
    for option, places in sums.truncated.items():
        if len(places) > TOLERATED_FRACTION * of:
            reads, asked = sums.model_limits[option], sums.limits[option]
            end = f"task.{option}" if asked <= reads else f"the {reads} tokens that the model reads"
            what, fix = f"rows are cut off at {end}", _suggest_limit(sums, option, "shorten them")
            yield _create_finding("cut", places, of, what, fix)
    if not sums.lengths:
        return
    option = list(sums.lengths)[-1]  # what comes out stands last
    if sums.lost_targets:
        what, wastes = (
            "answers lie wholly beyond the limit",
            len(sums.lost_targets) > FATAL_LOST_TARGETS_FRACTION * of,
        )
        fix = _suggest_limit(sums, option, "shorten the prompts")
        yield _create_finding("answers gone", sums.lost_targets, of, what, fix, is_fatal=wastes)
    if len(sums.truncated_targets) > TOLERATED_FRACTION * of:
        what, fix = "rows lose tokens to learn", _suggest_limit(sums, option, "shorten the rows")
        yield _create_finding("answers cut", sums.truncated_targets, of, what, fix)


def _suggest_limit(sums: TokenStats, option: str, instead: str) -> str:
    """The limit that would do, as far as the model reads."""
    enough, reads = recommend_limit(sums.lengths[option]), sums.model_limits[option]
    if enough <= reads:
        return f"set task.{option}={enough}, or {instead}"
    other = f"{instead}, or take a model that reads {enough} tokens"
    return other if sums.limits[option] >= reads else f"set task.{option}={reads}, and {other}"


def _find_token_problems(sums: TokenStats) -> Iterator[Finding]:
    if len(sums.missing_eos) > TOLERATED_FRACTION * sums.targets:
        what = "answers have no end token that is learnt, so the model would not learn to stop"
        other = "take a tokenizer or chat template that closes them with one"
        fix = f"set task.append_eos=true, or {other}" if sums.end_token is False else other
        yield _create_finding("no end", sums.missing_eos, sums.targets, what, fix)
    if sums.unknown > TOLERATED_FRACTION * sums.total:
        what = f"rows have unknown tokens, {sums.unknown / sums.total:.1%} of all tokens"
        fix = "take a model whose tokenizer knows this language and script"
        yield _create_finding("unknown tokens", sums.unknown_locations, sums.sampled, what, fix)


def _find_media_problems(source: SourceStats) -> Iterator[Finding]:
    sounds = [medium for medium in source.media if isinstance(medium, AudioStats)]
    pictures = [medium for medium in source.media if isinstance(medium, ImageStats)]
    of = len(source.media)
    silent = [sound.location for sound in sounds if sound.seconds and sound.rms < SILENCE_RMS]
    if silent:
        wastes = len(silent) == of
        what = "sounds looked at are silent (below -60 dB)"
        yield _create_finding("silence", silent, of, what, "remove them", is_fatal=wastes)
    if clipped := [
        sound.location for sound in sounds if sound.clipped_fraction > CLIPPING_FRACTION
    ]:
        what = "sounds looked at are clipped"
        yield _create_finding(
            "clipping", clipped, of, what, "record or convert them at a lower level"
        )
    rates = Counter(sound.sampling_rate for sound in sounds)
    if len(rates) > 1:
        usual = rates.most_common(1)[0][0]
        others = [sound.location for sound in sounds if sound.sampling_rate != usual]
        what = f"sounds looked at are not at {usual} Hz ({sorted(rates)})"
        yield _create_finding(
            "sample rates", others, of, what, "check their source: a low rate sounds dull"
        )
    if tiny := [p.location for p in pictures if min(p.width, p.height) < MIN_IMAGE_SIDE]:
        what = f"pictures looked at have a side below {MIN_IMAGE_SIDE} pixels"
        yield _create_finding(
            "tiny pictures", tiny, of, what, "remove them", is_fatal=len(tiny) == of
        )
    if flat := [p.location for p in pictures if p.is_blank]:
        what = "pictures looked at are of one colour"
        yield _create_finding(
            "blank pictures", flat, of, what, "remove them", is_fatal=len(flat) == of
        )


def recommend_limit(lengths: Sequence[int]) -> int:
    """So that 99 % are read whole; rounded up to 8."""
    return int(-(-np.percentile(lengths, 99, method="higher") // 8) * 8)
