"""The data X-ray of a config: read, look, and tell."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from dtl.assembly.parts import Parts
from dtl.config.schema import Data, RunConfig
from dtl.core.errors import DtlError, Fault
from dtl.data.cache.encoded import EncodedData
from dtl.data.modalities.media_files import Undecodable
from dtl.data.sources.rows import Row
from dtl.inspect.check.findings import Finding, findings
from dtl.inspect.check.media import decoding_fault
from dtl.inspect.check.preview import Shown, choose
from dtl.inspect.check.render import example_line, finding_line, source_lines, source_summary
from dtl.inspect.check.stats import SourceFacts, gather
from dtl.prepare.dataset import Examples, ReadSource, prepare, split
from dtl.tasks.base import Task


@dataclass(frozen=True)
class Report:
    """What `dtl check` found."""

    sources: tuple[SourceFacts, ...]
    findings: tuple[Finding, ...]
    shown: tuple[Shown, ...]

    @property
    def exit_code(self) -> int:
        """2 where a run would be wasted."""
        return 2 if any(finding.wastes for finding in self.findings) else 0

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        return {
            "sources": [source_summary(source) for source in self.sources],
            "findings": [asdict(finding) for finding in self.findings],
            "examples": [asdict(shown) for shown in self.shown],
        }

    def lines(self, *, colour: bool = False) -> list[str]:
        """For a terminal; learnt tokens are coloured, or stand in brackets."""
        told = [line for source in self.sources for line in source_lines(source)]
        told += [example_line(shown, colour=colour) for shown in self.shown]
        told += [finding_line(finding) for finding in self.findings]
        return told if self.findings else [*told, "nothing is wrong with the data"]


def look(config: RunConfig, parts: Parts) -> Report:
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
        return _look(config, parts, prepare(lenient, parts), undecodable={})
    except Undecodable:
        check = _Decoding(parts.task)
        examples = prepare(lenient, parts, check=check)
        return _look(config, parts, examples, undecodable=check.found)
    except DtlError:
        prepare(config, parts)  # what a run would tell, where too few rows are good to go on
        raise


class _Decoding:
    """A task's check that also decodes a row's media to its end, once for each row."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.found: dict[str, Fault] = {}
        self._decoded: set[str] = set()

    def __call__(self, row: Row) -> Fault | None:
        if fault := self.task.find_row_fault(row):
            return fault
        if row.location not in self._decoded:
            self._decoded.add(row.location)
            if fault := decoding_fault(row, str(self.task.media_column)):
                self.found[row.location] = fault
        return self.found.get(row.location)


def _look(
    config: RunConfig, parts: Parts, examples: Examples, *, undecodable: dict[str, Fault]
) -> Report:
    train_rows, held_out_rows = split(config, parts.task, examples.sources, examples.mixed)
    assert isinstance(examples.train, EncodedData), "for a look nothing is streamed"
    train = gather("train", train_rows, examples.train, parts.task, examples)
    held_out = None
    if held_out_rows is not None and examples.held_out is not None:
        held_out = gather("held out", held_out_rows, examples.held_out, parts.task, examples)
    train = _with_faults(train, examples.sources[0], config.data, undecodable)
    if held_out is not None and len(examples.sources) > 1:
        held_out = _with_faults(held_out, examples.sources[1], config.data, undecodable)
    sources = (train,) if held_out is None else (train, held_out)
    shown = tuple(choose(train_rows, examples, parts.task))
    return Report(sources, findings(train, held_out), shown)


def _with_faults(
    facts: SourceFacts, source: ReadSource, data: Data, undecodable: dict[str, Fault]
) -> SourceFacts:
    """Add the rows at fault of a source; where it is split, the training part has them all."""
    bad = tuple(fault for fault in source.bad if fault.location not in undecodable)
    share = len(bad) / (source.good + len(source.bad))
    return replace(
        facts,
        at_fault=bad,
        undecodable=tuple(fault for fault in source.bad if fault.location in undecodable),
        stops=bool(bad) and (data.on_bad_row == "fail" or share > data.max_bad_fraction),
    )
