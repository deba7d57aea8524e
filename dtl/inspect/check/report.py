"""The data report of a config: statistics, findings and example previews."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from dtl.assembly.parts import Parts
from dtl.config.schema import Data, RunConfig
from dtl.core.errors import DtlError, Fault
from dtl.data.cache.encoded import EncodedData
from dtl.data.chat.coverage import FEATURES
from dtl.data.invalid_rows import count_invalid
from dtl.data.sources.rows import Row
from dtl.inspect.check.chat_findings import find_chat_problems
from dtl.inspect.check.findings import (
    Finding,
    find_class_problems,
    find_duplicates,
    find_empty_targets,
    find_invalid_rows,
    find_leakage,
    find_missing_texts,
    find_skipped_rows,
    find_unknown_labels,
)
from dtl.inspect.check.label_findings import find_label_problems
from dtl.inspect.check.media import find_decode_fault
from dtl.inspect.check.media_findings import find_audio_problems, find_image_problems
from dtl.inspect.check.preview import Preview, preview_examples
from dtl.inspect.check.read_findings import find_read_problems
from dtl.inspect.check.render import format_finding, format_preview, format_source, summarize_source
from dtl.inspect.check.stats import SourceStats, collect_source_stats
from dtl.inspect.check.token_findings import (
    find_special_tokens,
    find_token_problems,
    find_truncation,
)
from dtl.prepare.prepared_data import PreparedData, prepare_data
from dtl.prepare.sources import ScannedSource
from dtl.prepare.splits import split_rows
from dtl.tasks.base import Task


@dataclass(frozen=True)
class DataReport:
    """The report of `dtl check`. `formats`: the format of each source, as a line of text."""

    sources: tuple[SourceStats, ...]
    findings: tuple[Finding, ...]
    previews: tuple[Preview, ...]
    formats: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """Return 2 if there is a fatal finding, else 0."""
        return 2 if any(finding.is_fatal for finding in self.findings) else 0

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "formats": list(self.formats),
            "sources": [summarize_source(source) for source in self.sources],
            "findings": [asdict(finding) for finding in self.findings],
            "examples": [asdict(preview) for preview in self.previews],
        }

    def format_lines(self, *, color: bool = False) -> list[str]:
        """Return the report as lines for a terminal; supervised tokens are colored or bracketed."""
        lines = [*self.formats]
        lines += [line for source in self.sources for line in format_source(source)]
        lines += [format_preview(preview, color=color) for preview in self.previews]
        lines += [format_finding(finding) for finding in self.findings]
        return lines if self.findings else [*lines, "no problems found"]


def check_data(config: RunConfig, parts: Parts) -> DataReport:
    """Read and encode the data (or take it from the cache), and report on it. Invalid rows are
    findings; anything else that stops a run raises DtlError."""
    train = config.data.train.model_copy(update={"streaming": False})  # all rows are read
    data = config.data.model_copy(
        update={
            "train": train,
            "on_bad_row": "skip",
            "max_bad_fraction": 1.0,
            "allow_dropped": FEATURES,
        }
    )
    lenient = config.model_copy(update={"data": data})
    try:
        prepared = prepare_data(lenient, parts)
        invalid = any(count_invalid(each.data.summary.skipped) for each in prepared.encoded)
        if not invalid or parts.task.media_column is None:
            return _create_report(config, parts, prepared, decode_faults={})
        check = _DecodingCheck(parts.task)
        prepared = prepare_data(lenient, parts, check=check)
        return _create_report(config, parts, prepared, decode_faults=check.faults)
    except DtlError:
        prepare_data(config, parts)  # raises a run's error if too few rows are valid
        raise


class _DecodingCheck:
    """A row check that also decodes the media of each row to its end, once."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.faults: dict[str, Fault] = {}
        self._decoded: set[str] = set()

    def __call__(self, row: Row) -> Fault | None:
        if fault := self.task.find_row_fault(row):
            return fault
        if row.location not in self._decoded:
            self._decoded.add(row.location)
            if fault := find_decode_fault(row, str(self.task.media_column)):
                self.faults[row.location] = fault
        return self.faults.get(row.location)


def _create_report(
    config: RunConfig, parts: Parts, prepared: PreparedData, *, decode_faults: dict[str, Fault]
) -> DataReport:
    split = split_rows(config, parts.task, prepared.sources, prepared.mixed_sources)
    train_rows, held_out_rows = split.train, split.held_out
    assert isinstance(prepared.train, EncodedData), "check_data does not stream"
    train = collect_source_stats("train", train_rows, prepared.train, parts.task, prepared)
    held_out = None
    if held_out_rows is not None and prepared.held_out is not None:
        held_out = collect_source_stats(
            "held-out", held_out_rows, prepared.held_out, parts.task, prepared
        )
    train = _add_invalid_rows(train, prepared.sources[0], config.data, decode_faults)
    if held_out is not None:
        source = prepared.sources[1] if len(prepared.sources) > 1 else None
        held_out = _add_invalid_rows(held_out, source, config.data, decode_faults)
    read = config.task.group_by
    sources = tuple(
        replace(each, unread_columns=tuple(c for c in each.unread_columns if c != read))
        for each in ((train,) if held_out is None else (train, held_out))
    )
    previews = tuple(preview_examples(train_rows, prepared, parts.task))
    findings = [*find_problems(train, held_out, config)]
    findings += find_read_problems(prepared, parts.task, config.data)
    findings.sort(key=lambda finding: not finding.is_fatal)
    formats = [source.format_description() for source in prepared.all_sources]
    formats += parts.task.find_data_notes(prepared.dataset_stats)
    return DataReport(sources, tuple(findings), previews, tuple(formats))


def _add_invalid_rows(
    stats: SourceStats, source: ScannedSource | None, data: Data, decode_faults: dict[str, Fault]
) -> SourceStats:
    """Add the invalid rows of a source to those that were found when they were encoded; if it is
    split, the training part gets all of them, and the other part has no source."""
    faults = () if source is None else source.faults
    invalid = tuple(fault for fault in faults if fault.location not in decode_faults)
    corrupted = tuple(fault for fault in faults if fault.location in decode_faults)
    total = stats.rows if source is None else source.valid_rows + len(faults)

    def stop_run(faults: tuple[Fault, ...], rows: int) -> bool:
        is_refused = data.on_bad_row == "fail" or len(faults) > data.max_bad_fraction * rows
        return bool(faults) and is_refused

    return replace(
        stats,
        invalid_rows=(*invalid, *stats.invalid_rows),
        corrupted_media=corrupted,
        invalid_rows_stop_run=stop_run(invalid, total)
        or stop_run(stats.invalid_rows, total - len(faults)),
        corrupted_media_stop_run=stop_run(corrupted, total - len(invalid)),
    )


def find_problems(
    train: SourceStats, held_out: SourceStats | None, config: RunConfig
) -> tuple[Finding, ...]:
    """Return all findings, the fatal ones first."""
    findings = [*find_duplicates(train), *find_class_problems(train)]
    if held_out is not None:
        findings += [*find_leakage(train, held_out), *find_unknown_labels(train, held_out)]
    for source in [train] if held_out is None else [train, held_out]:
        findings += [
            *find_invalid_rows(source),
            *find_skipped_rows(source),
            *find_empty_targets(source),
            *find_missing_texts(source),
            *find_label_problems(source, config),
            *find_chat_problems(source, config),
            *find_truncation(source.tokens),
            *find_token_problems(source.tokens),
            *find_special_tokens(
                source.tokens, can_read_as_text=hasattr(config.task.options, "special_tokens")
            ),
            *find_audio_problems(source),
            *find_image_problems(source),
        ]
    return tuple(sorted(findings, key=lambda finding: not finding.is_fatal))
