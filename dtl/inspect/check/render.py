"""What was found, as lines for a terminal and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dtl.core.errors import Fault
from dtl.inspect.check.findings import Finding, longest_for
from dtl.inspect.check.media import Picture, Sound
from dtl.inspect.check.preview import Shown
from dtl.inspect.check.stats import SourceFacts

BARS, WIDTH = 8, 30  # of a histogram
FAULTS_SHOWN = 5
LEARNT = "\033[1;32m{}\033[0m"  # bold green


def source_summary(source: SourceFacts) -> dict[str, Any]:
    """Of one source, as JSON."""
    sums = source.tokens
    return {
        "name": source.name,
        "rows": source.rows,
        "examples": source.examples,
        "at_fault": [_fault(fault) for fault in (*source.at_fault, *source.undecodable)],
        "left_out": source.left_out,
        "length_unit": source.unit,
        "lengths": histogram(source.lengths),
        "learnt_share": sums.learnt / sums.all if sums.all else None,
        "unknown_share": sums.unknown / sums.all if sums.all else None,
        "looked_at": sums.looked_at,
        "cut": {option: len(places) for option, places in sums.cut.items()},
        "answers_cut": len(sums.answers_cut),
        "answers_gone": len(sums.answers_gone),
        "limits_that_would_do": {k: longest_for(v) for k, v in sums.lengths.items()},
        "labels": dict(Counter(label for note in source.notes for label in note.labels)),
        "sounds": _sounds(source),
        "pictures": _pictures(source),
    }


def _fault(fault: Fault) -> dict[str, str]:
    return {"place": fault.location, "reason": fault.problem}


def _sounds(source: SourceFacts) -> dict[str, Any] | None:
    sounds = [medium for medium in source.media if isinstance(medium, Sound)]
    if not sounds:
        return None
    return {
        "looked_at": len(sounds),
        "rates": dict(Counter(sound.rate for sound in sounds)),
        "seconds": histogram([sound.seconds for sound in sounds]),
    }


def _pictures(source: SourceFacts) -> dict[str, Any] | None:
    sizes = [min(p.width, p.height) for p in source.media if isinstance(p, Picture)]
    return {"looked_at": len(sizes), "shorter_side": histogram(sizes)} if sizes else None


def source_lines(source: SourceFacts) -> Iterator[str]:
    """Of one source, for a terminal."""
    told, sums = source_summary(source), source.tokens
    yield f"{source.name}: {source.examples} examples of {source.rows} rows"
    bad = told["at_fault"]
    yield from (f"  at fault: {one['place']} ({one['reason']})" for one in bad[:FAULTS_SHOWN])
    if len(bad) > FAULTS_SHOWN:
        yield f"  at fault: {len(bad) - FAULTS_SHOWN} more, which --json lists"
    yield from (f"  left out: {len(v)} ({why})" for why, v in source.left_out.items())
    if sums.learnt:
        yield f"  learnt: {sums.learnt / sums.all:.1%} of the tokens, those in the examples' marks"
    if sums.answers:
        ended = sums.answers - len(sums.unended)
        yield f"  end learnt: in {ended} of {sums.answers} answers"
    for option, limit in told["limits_that_would_do"].items():
        cut = told["cut"].get(option, 0)
        yield f"  task.{option}: cuts {cut} of {sums.looked_at}; 99 % have at most {limit} tokens"
    if told["labels"]:
        yield "  labels: " + ", ".join(f"{label} {n}" for label, n in told["labels"].items())
    yield from _length_lines(told)


def _length_lines(told: dict[str, Any]) -> Iterator[str]:
    if sounds := told["sounds"]:
        yield f"  sounds looked at: {sounds['looked_at']}; rates in Hz: {sounds['rates']}; seconds:"
        yield from _bars(sounds["seconds"])
    elif pictures := told["pictures"]:
        yield f"  pictures looked at: {pictures['looked_at']}; shorter side in pixels:"
        yield from _bars(pictures["shorter_side"])
    else:
        yield f"  length in {told['length_unit']}:"
        yield from _bars(told["lengths"])


def example_line(shown: Shown, *, colour: bool) -> str:
    """Learnt tokens are coloured, or stand in brackets."""
    mark = LEARNT if colour else "⟦{}⟧"
    drawn = "".join(mark.format(text) if learnt else text for text, learnt in shown.runs)
    return f"example {shown.place}: {drawn}"


def finding_line(finding: Finding) -> str:
    return f"{'FAULT' if finding.wastes else 'warning'}: {finding.fault}"


def histogram(values: Sequence[float]) -> list[tuple[float, float, int]]:
    """Bars of equal width: from, to, count; of whole numbers, both ends belong to the bar."""
    if not all(isinstance(value, int) for value in values):
        counts, edges = np.histogram(values, bins=BARS if len(set(values)) > 1 else 1)
        ends = np.round(edges, 2).tolist()
        return list(zip(ends[:-1], ends[1:], counts.tolist(), strict=True))
    width = -(-(max(values) - min(values) + 1) // BARS)
    starts = range(int(min(values)), int(max(values)) + 1, int(width))
    inside = Counter((value - starts[0]) // width for value in values)
    return [(start, start + width - 1, inside[n]) for n, start in enumerate(starts)]


def _bars(bars: Sequence[tuple[float, float, int]]) -> Iterator[str]:
    most = max(count for *_, count in bars) or 1
    for start, end, count in bars:
        yield f"    {start:>8g} to {end:<8g} {'█' * round(WIDTH * count / most)} {count}"
