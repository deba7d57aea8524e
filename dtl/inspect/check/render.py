"""The data report as lines for a terminal and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dtl.core.errors import Fault
from dtl.inspect.check.findings import Finding
from dtl.inspect.check.media import AudioStats, ImageStats
from dtl.inspect.check.preview import Preview
from dtl.inspect.check.stats import SourceStats
from dtl.inspect.check.token_findings import recommend_limit
from dtl.prepare.expanded_rows import (
    dropped_features,
    format_unread_keys,
    unread_message_keys,
)

HISTOGRAM_BINS, BAR_WIDTH = 8, 30
MAX_FAULTS_DISPLAYED = 5
SUPERVISED_STYLE = "\033[1;32m{}\033[0m"  # bold green


def summarize_source(source: SourceStats) -> dict[str, Any]:
    """Return the summary of one source as JSON values."""
    tokens = source.tokens
    faults = (*source.invalid_rows, *source.corrupted_media)
    return {
        "name": source.name,
        "rows": source.rows,
        "examples": source.examples,
        "expanded_rows": source.expanded,
        "unread_columns": list(source.unread_columns),
        "unread_message_keys": unread_message_keys(source.row_notes),
        "dropped": {k: len(rows) for k, rows in dropped_features(source.row_notes).items()},
        "invalid_rows": [_fault_to_dict(fault) for fault in faults],
        "skipped_rows": source.skipped_rows,
        "length_unit": source.length_unit,
        "lengths": compute_histogram(source.lengths),
        "supervised_fraction": tokens.supervised / tokens.total if tokens.total else None,
        "unknown_fraction": tokens.unknown / tokens.total if tokens.total else None,
        "sampled_examples": tokens.sampled,
        "truncated": {option: len(rows) for option, rows in tokens.truncated.items()},
        "truncated_targets": len(tokens.truncated_targets),
        "lost_targets": len(tokens.lost_targets),
        "recommended_limits": {
            option: recommend_limit(lengths) for option, lengths in tokens.lengths.items()
        },
        "labels": dict(Counter(label for row in source.summaries for label in row.labels)),
        "audio": _summarize_audio(source),
        "images": _summarize_images(source),
    }


def _fault_to_dict(fault: Fault) -> dict[str, str]:
    return {"location": fault.location, "reason": fault.problem}


def _summarize_audio(source: SourceStats) -> dict[str, Any] | None:
    audio = [each for each in source.media if isinstance(each, AudioStats)]
    if not audio:
        return None
    return {
        "sampled": len(audio),
        "sampling_rates": dict(Counter(each.sampling_rate for each in audio)),
        "seconds": compute_histogram([each.seconds for each in audio]),
    }


def _summarize_images(source: SourceStats) -> dict[str, Any] | None:
    sides = [min(each.width, each.height) for each in source.media if isinstance(each, ImageStats)]
    return {"sampled": len(sides), "shorter_side": compute_histogram(sides)} if sides else None


def format_source(source: SourceStats) -> Iterator[str]:
    """Yield the lines of one source for a terminal."""
    summary = summarize_source(source)
    yield f"{source.name}: {source.examples} examples from {source.rows} rows"
    if source.expanded:
        yield (
            f"  chats: {source.expanded} rows are several examples each, because the chat template "
            "renders an answer differently in a longer chat"
        )
    for feature, count in summary["dropped"].items():
        yield f"  the chat template does not render: {feature} ({count} rows)"
    if (unread := format_unread_keys(source.row_notes)) is not None:
        yield f"  {unread}"
    if source.unread_columns:
        names = ", ".join(column or repr(column) for column in source.unread_columns)
        yield f"  columns that the task does not read: {names}"
    invalid = summary["invalid_rows"]
    for row in invalid[:MAX_FAULTS_DISPLAYED]:
        yield f"  invalid row: {row['location']} ({row['reason']})"
    if len(invalid) > MAX_FAULTS_DISPLAYED:
        yield f"  invalid rows: {len(invalid) - MAX_FAULTS_DISPLAYED} more (listed by --json)"
    for reason, rows in source.skipped_rows.items():
        yield f"  skipped rows: {len(rows)} ({reason})"
    yield from _format_tokens(source, summary)
    if summary["labels"]:
        yield "  labels: " + ", ".join(f"{label} {n}" for label, n in summary["labels"].items())
    yield from _format_lengths(summary)


def _format_tokens(source: SourceStats, summary: dict[str, Any]) -> Iterator[str]:
    tokens = source.tokens
    if tokens.supervised:
        fraction = tokens.supervised / tokens.total
        yield f"  supervised tokens: {fraction:.1%} (highlighted in the examples)"
    if tokens.targets:
        with_eos = tokens.targets - len(tokens.missing_eos)
        yield f"  EOS token: at the end of {with_eos} of {tokens.targets} targets"
    for option, limit in summary["recommended_limits"].items():
        truncated = summary["truncated"].get(option, 0)
        yield (
            f"  task.{option}={tokens.limits[option]}: truncates {truncated} of {tokens.sampled} "
            f"examples; 99% have at most {limit} tokens"
        )


def _format_lengths(summary: dict[str, Any]) -> Iterator[str]:
    if audio := summary["audio"]:
        rates = ", ".join(f"{rate} Hz ({n})" for rate, n in audio["sampling_rates"].items())
        yield f"  sampled audio files: {audio['sampled']}; sampling rates: {rates}; seconds:"
        yield from _format_bars(audio["seconds"])
    elif images := summary["images"]:
        yield f"  sampled images: {images['sampled']}; shorter side in pixels:"
        yield from _format_bars(images["shorter_side"])
    else:
        yield f"  length in {summary['length_unit']}:"
        yield from _format_bars(summary["lengths"])


def format_preview(preview: Preview, *, color: bool) -> str:
    """Return an example as a line of text, its supervised tokens colored or in brackets."""
    style = SUPERVISED_STYLE if color else "⟦{}⟧"
    text = "".join(
        style.format(span) if is_supervised else span for span, is_supervised in preview.spans
    )
    return f"example {preview.location}: {text}"


def format_finding(finding: Finding) -> str:
    """Return a finding as a line of text."""
    return f"{'error' if finding.is_fatal else 'warning'}: {finding.fault}"


def compute_histogram(values: Sequence[float]) -> list[tuple[float, float, int]]:
    """Return bins of equal width: start, end, count; of integers, both ends belong to the bin."""
    if not all(isinstance(value, int) for value in values):
        counts, edges = np.histogram(values, bins=HISTOGRAM_BINS if len(set(values)) > 1 else 1)
        ends = np.round(edges, 2).tolist()
        return list(zip(ends[:-1], ends[1:], counts.tolist(), strict=True))
    width = -(-(max(values) - min(values) + 1) // HISTOGRAM_BINS)
    starts = range(int(min(values)), int(max(values)) + 1, int(width))
    bins = Counter((value - starts[0]) // width for value in values)
    return [(start, start + width - 1, bins[index]) for index, start in enumerate(starts)]


def _format_bars(bins: Sequence[tuple[float, float, int]]) -> Iterator[str]:
    largest = max(count for *_, count in bins) or 1
    for start, end, count in bins:
        bounds = f"{start:>8g} to {end:<8g}" if start != end else f"{start:>8g}{'':12}"
        yield f"    {bounds} {'█' * round(BAR_WIDTH * count / largest)} {count}"
