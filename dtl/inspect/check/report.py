"""The data X-ray of a config: read, look, and tell."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from dtl.assembly.parts import Parts
from dtl.config.schema import Data, RunConfig
from dtl.core.errors import DtlError, Fault
from dtl.data.cache.encoded import EncodedData
from dtl.data.modalities.media_files import MediaDecodeError
from dtl.data.sources.rows import Row
from dtl.inspect.check.findings import Finding, find_problems
from dtl.inspect.check.media import find_decode_fault
from dtl.inspect.check.preview import Preview, preview_examples
from dtl.inspect.check.render import format_finding, format_preview, format_source, summarize_source
from dtl.inspect.check.stats import SourceStats, collect_source_stats
from dtl.prepare.prepared_data import PreparedData, prepare_data
from dtl.prepare.sources import ScannedSource
from dtl.prepare.splits import split_rows
from dtl.tasks.base import Task


@dataclass(frozen=True)
class DataReport:
    """What `dtl check` found."""

    sources: tuple[SourceStats, ...]
    findings: tuple[Finding, ...]
    previews: tuple[Preview, ...]

    @property
    def exit_code(self) -> int:
        """2 where a run would be wasted."""
        return 2 if any(finding.is_fatal for finding in self.findings) else 0

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        return {
            "sources": [summarize_source(source) for source in self.sources],
            "findings": [asdict(finding) for finding in self.findings],
            "examples": [asdict(shown) for shown in self.previews],
        }

    def format_lines(self, *, color: bool = False) -> list[str]:
        """For a terminal; learnt tokens are coloured, or stand in brackets."""
        lines = [line for source in self.sources for line in format_source(source)]
        lines += [format_preview(shown, color=color) for shown in self.previews]
        lines += [format_finding(finding) for finding in self.findings]
        return lines if self.findings else [*lines, "nothing is wrong with the data"]


def check_data(config: RunConfig, parts: Parts) -> DataReport:
    """Read, encode (or take from the cache) and look. Rows at fault are findings; what else stops a
    run raises DtlError as a run would."""
    encoded = config.data.train.model_copy(update={"streaming": False})  # all is looked at
    lenient = config.model_copy(
        update={
            "data": config.data.model_copy(
                update={"train": encoded, "on_bad_row": "skip", "max_bad_fraction": 1.0}
            )
        }
    )
    try:
        return _create_report(config, parts, prepare_data(lenient, parts), decode_faults={})
    except MediaDecodeError:
        check = _DecodingCheck(parts.task)
        examples = prepare_data(lenient, parts, check=check)
        return _create_report(config, parts, examples, decode_faults=check.faults)
    except DtlError:
        prepare_data(config, parts)  # what a run would tell, where too few rows are good to go on
        raise


class _DecodingCheck:
    """A task's check that also decodes a row's media to its end, once for each row."""

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
    config: RunConfig, parts: Parts, examples: PreparedData, *, decode_faults: dict[str, Fault]
) -> DataReport:
    split = split_rows(config, parts.task, examples.sources, examples.mixed_sources)
    train_rows, held_out_rows = split.train, split.held_out
    assert isinstance(examples.train, EncodedData), "for a look nothing is streamed"
    train = collect_source_stats("train", train_rows, examples.train, parts.task, examples)
    held_out = None
    if held_out_rows is not None and examples.held_out is not None:
        held_out = collect_source_stats(
            "held out", held_out_rows, examples.held_out, parts.task, examples
        )
    train = _add_invalid_rows(train, examples.sources[0], config.data, decode_faults)
    if held_out is not None and len(examples.sources) > 1:
        held_out = _add_invalid_rows(held_out, examples.sources[1], config.data, decode_faults)
    sources = (train,) if held_out is None else (train, held_out)
    shown = tuple(preview_examples(train_rows, examples, parts.task))
    return DataReport(sources, find_problems(train, held_out), shown)


def _add_invalid_rows(
    stats: SourceStats, source: ScannedSource, data: Data, decode_faults: dict[str, Fault]
) -> SourceStats:
    """Add the rows at fault of a source; where it is split, the training part has them all."""
    bad = tuple(fault for fault in source.faults if fault.location not in decode_faults)
    share = len(bad) / (source.valid_rows + len(source.faults))
    return replace(
        stats,
        invalid_rows=bad,
        corrupted_media=tuple(fault for fault in source.faults if fault.location in decode_faults),
        invalid_rows_stop_run=bool(bad)
        and (data.on_bad_row == "fail" or share > data.max_bad_fraction),
    )
