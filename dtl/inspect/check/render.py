"""What was found, as lines for a terminal and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dtl.core.errors import Fault
from dtl.inspect.check.findings import Finding, recommend_limit
from dtl.inspect.check.media import AudioStats, ImageStats
from dtl.inspect.check.preview import Preview
from dtl.inspect.check.stats import SourceStats

HISTOGRAM_BINS, BAR_WIDTH = 8, 30  # of a histogram
MAX_FAULTS_DISPLAYED = 5
SUPERVISED_STYLE = "\033[1;32m{}\033[0m"  # bold green


def summarize_source(source: SourceStats) -> dict[str, Any]:
    """Of one source, as JSON."""
    sums = source.tokens
    return {
        "name": source.name,
        "rows": source.rows,
        "examples": source.examples,
        "at_fault": [
            _fault_to_dict(fault) for fault in (*source.invalid_rows, *source.corrupted_media)
        ],
        "left_out": source.skipped_rows,
        "length_unit": source.length_unit,
        "lengths": compute_histogram(source.lengths),
        "learnt_share": sums.supervised / sums.total if sums.total else None,
        "unknown_share": sums.unknown / sums.total if sums.total else None,
        "looked_at": sums.sampled,
        "cut": {option: len(places) for option, places in sums.truncated.items()},
        "answers_cut": len(sums.truncated_targets),
        "answers_gone": len(sums.lost_targets),
        "limits_that_would_do": {k: recommend_limit(v) for k, v in sums.lengths.items()},
        "labels": dict(Counter(label for note in source.summaries for label in note.labels)),
        "sounds": _summarize_audio(source),
        "pictures": _summarize_images(source),
    }


def _fault_to_dict(fault: Fault) -> dict[str, str]:
    return {"place": fault.location, "reason": fault.problem}


def _summarize_audio(source: SourceStats) -> dict[str, Any] | None:
    sounds = [medium for medium in source.media if isinstance(medium, AudioStats)]
    if not sounds:
        return None
    return {
        "looked_at": len(sounds),
        "rates": dict(Counter(sound.sampling_rate for sound in sounds)),
        "seconds": compute_histogram([sound.seconds for sound in sounds]),
    }


def _summarize_images(source: SourceStats) -> dict[str, Any] | None:
    sizes = [min(p.width, p.height) for p in source.media if isinstance(p, ImageStats)]
    return {"looked_at": len(sizes), "shorter_side": compute_histogram(sizes)} if sizes else None


def format_source(source: SourceStats) -> Iterator[str]:
    """Of one source, for a terminal."""
    summary, sums = summarize_source(source), source.tokens
    yield f"{source.name}: {source.examples} examples of {source.rows} rows"
    bad = summary["at_fault"]
    yield from (
        f"  at fault: {one['place']} ({one['reason']})" for one in bad[:MAX_FAULTS_DISPLAYED]
    )
    if len(bad) > MAX_FAULTS_DISPLAYED:
        yield f"  at fault: {len(bad) - MAX_FAULTS_DISPLAYED} more, which --json lists"
    yield from (f"  left out: {len(v)} ({why})" for why, v in source.skipped_rows.items())
    if sums.supervised:
        yield f"  learnt: {sums.supervised / sums.total:.1%} of the tokens, those in the examples' marks"
    if sums.targets:
        ended = sums.targets - len(sums.missing_eos)
        yield f"  end learnt: in {ended} of {sums.targets} answers"
    for option, limit in summary["limits_that_would_do"].items():
        cut = summary["cut"].get(option, 0)
        yield f"  task.{option}: cuts {cut} of {sums.sampled}; 99 % have at most {limit} tokens"
    if summary["labels"]:
        yield "  labels: " + ", ".join(f"{label} {n}" for label, n in summary["labels"].items())
    yield from _format_lengths(summary)


def _format_lengths(summary: dict[str, Any]) -> Iterator[str]:
    if sounds := summary["sounds"]:
        yield f"  sounds looked at: {sounds['looked_at']}; rates in Hz: {sounds['rates']}; seconds:"
        yield from _format_bars(sounds["seconds"])
    elif pictures := summary["pictures"]:
        yield f"  pictures looked at: {pictures['looked_at']}; shorter side in pixels:"
        yield from _format_bars(pictures["shorter_side"])
    else:
        yield f"  length in {summary['length_unit']}:"
        yield from _format_bars(summary["lengths"])


def format_preview(preview: Preview, *, color: bool) -> str:
    """Learnt tokens are coloured, or stand in brackets."""
    mark = SUPERVISED_STYLE if color else "⟦{}⟧"
    drawn = "".join(mark.format(text) if learnt else text for text, learnt in preview.spans)
    return f"example {preview.location}: {drawn}"


def format_finding(finding: Finding) -> str:
    return f"{'FAULT' if finding.is_fatal else 'warning'}: {finding.fault}"


def compute_histogram(values: Sequence[float]) -> list[tuple[float, float, int]]:
    """Bars of equal width: from, to, count; of whole numbers, both ends belong to the bar."""
    if not all(isinstance(value, int) for value in values):
        counts, edges = np.histogram(values, bins=HISTOGRAM_BINS if len(set(values)) > 1 else 1)
        ends = np.round(edges, 2).tolist()
        return list(zip(ends[:-1], ends[1:], counts.tolist(), strict=True))
    width = -(-(max(values) - min(values) + 1) // HISTOGRAM_BINS)
    starts = range(int(min(values)), int(max(values)) + 1, int(width))
    inside = Counter((value - starts[0]) // width for value in values)
    return [(start, start + width - 1, inside[n]) for n, start in enumerate(starts)]


def _format_bars(bars: Sequence[tuple[float, float, int]]) -> Iterator[str]:
    most = max(count for *_, count in bars) or 1
    for start, end, count in bars:
        yield f"    {start:>8g} to {end:<8g} {'█' * round(BAR_WIDTH * count / most)} {count}"
