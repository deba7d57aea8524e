"""The data X-ray of a config: facts, findings, and what they look like in a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dtl.assemble import Parts
from dtl.config.schema import RunConfig
from dtl.data.source import Row
from dtl.examples import Examples, prepare, split
from dtl.tasks import Task
from dtl.xray.facts import Picture, Sound, SourceFacts, gather
from dtl.xray.findings import Finding, findings, longest_for

SHOWN = 5  # examples
LONGEST_SHOWN = 160  # characters of a run of tokens
BARS, WIDTH = 8, 30  # of a histogram
LEARNT = "\033[1;32m{}\033[0m"  # bold green


@dataclass(frozen=True)
class Shown:
    """An example as text: runs of tokens, and whether each is learnt."""

    place: str
    runs: tuple[tuple[str, bool], ...]


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
            "sources": [_summary(source) for source in self.sources],
            "findings": [asdict(finding) for finding in self.findings],
            "examples": [asdict(shown) for shown in self.shown],
        }

    def lines(self, *, colour: bool = False) -> list[str]:
        """For a terminal; learnt tokens are coloured, or stand in brackets."""
        told = [line for source in self.sources for line in _source_lines(source)]
        told += [f"example {shown.place}: {_drawn(shown, colour)}" for shown in self.shown]
        for finding in self.findings:
            told.append(f"{'FAULT' if finding.wastes else 'warning'}: {finding.fault}")
        return told if self.findings else [*told, "nothing is wrong with the data"]


def look(config: RunConfig, parts: Parts) -> Report:
    """Read, encode (or take from the cache) and look. Raises DtlError as a run would."""
    examples = prepare(config, parts)
    train_rows, held_out_rows = split(config, examples.sources)
    train = gather("train", train_rows, examples.train, parts.task, examples)
    held_out = None
    if held_out_rows is not None and examples.held_out is not None:
        held_out = gather("held out", held_out_rows, examples.held_out, parts.task, examples)
    sources = (train,) if held_out is None else (train, held_out)
    shown = tuple(_shown(train_rows, examples, parts.task))
    return Report(sources, findings(train, held_out), shown)


def _shown(rows: Any, examples: Examples, task: Task) -> Iterator[Shown]:
    data = examples.train
    chosen = np.unique(np.linspace(0, len(data) - 1, SHOWN).astype(int)).tolist()
    numbers = {int(data.rows[number]): number for number in chosen}
    tokenizer = getattr(examples.processor, "tokenizer", examples.processor)
    for row in rows:
        if row.index in numbers:
            yield _as_text(row, data[numbers[row.index]], task, tokenizer)


def _as_text(row: Row, values: dict[str, Any], task: Task, tokenizer: Any) -> Shown:
    runs = [
        (_printable(tokenizer.decode(part.tokens)), part.learnt)
        for part in (task.parts(values) if hasattr(tokenizer, "decode") else [])
    ]
    labels = task.lesson(row).labels
    if labels:
        runs.append((_printable(" ".join(labels)), True))
    return Shown(row.place, tuple(runs))


def _printable(text: str) -> str:
    """On one line, without what would steer a terminal, and not too long."""
    clean = "".join(c if c.isprintable() else "\\n" if c == "\n" else "?" for c in text)
    half = LONGEST_SHOWN // 2
    return clean if len(clean) <= LONGEST_SHOWN else f"{clean[:half]} ... {clean[-half:]}"


def _drawn(shown: Shown, colour: bool) -> str:
    mark = LEARNT if colour else "⟦{}⟧"
    return "".join(mark.format(text) if learnt else text for text, learnt in shown.runs)


def _summary(source: SourceFacts) -> dict[str, Any]:
    sums = source.tokens
    return {
        "name": source.name,
        "rows": len(source.notes),
        "examples": source.examples,
        "left_out": source.left_out,
        "lengths": histogram(source.lengths),
        "learnt_share": sums.learnt / sums.all if sums.all else None,
        "unknown_share": sums.unknown / sums.all if sums.all else None,
        "looked_at": sums.looked_at,
        "cut": {option: len(places) for option, places in sums.cut.items()},
        "answers_cut": len(sums.answers_cut),
        "answers_gone": len(sums.answers_gone),
        "limits_that_would_do": {k: longest_for(v) for k, v in sums.lengths.items()},
        "labels": dict(Counter(label for note in source.notes for label in note.labels)),
        "media": [asdict(medium) for medium in source.media],
    }


def _source_lines(source: SourceFacts) -> Iterator[str]:
    told, sums = _summary(source), source.tokens
    yield f"{source.name}: {source.examples} examples of {len(source.notes)} rows"
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
    sounds = [medium for medium in source.media if isinstance(medium, Sound)]
    sizes = [min(p.width, p.height) for p in source.media if isinstance(p, Picture)]
    if sounds:
        rates = Counter(sound.rate for sound in sounds)
        yield f"  sounds looked at: {len(sounds)}; rates in Hz: {dict(rates)}; seconds:"
        yield from _bars(histogram([sound.seconds for sound in sounds]))
    elif sizes:
        yield f"  pictures looked at: {len(sizes)}; shorter side in pixels:"
        yield from _bars(histogram(sizes))
    else:
        yield "  length in tokens:"
        yield from _bars(histogram(source.lengths))


def histogram(values: Sequence[float]) -> list[tuple[float, float, int]]:
    """Bars of equal width: from, to, count."""
    counts, edges = np.histogram(values, bins=min(BARS, len(set(values))) or 1)
    ends = np.round(edges, 2).tolist()
    return list(zip(ends[:-1], ends[1:], counts.tolist(), strict=True))


def _bars(bars: Sequence[tuple[float, float, int]]) -> Iterator[str]:
    most = max(count for *_, count in bars) or 1
    for start, end, count in bars:
        yield f"    {start:>8g} to {end:<8g} {'█' * round(WIDTH * count / most)} {count}"
