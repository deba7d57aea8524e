"""Token statistics of a source: truncated, supervised and unknown tokens, and missing EOS."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dtl.data.modalities.special_tokens import find_special_texts
from dtl.inspect.check.row_summary import RowSummary
from dtl.inspect.check.unlimited_encoding import measure_lengths
from dtl.tasks.base import Task, TokenSpan

MAX_EOS_DISTANCE = 3  # EOS is searched in this many last tokens; a template may add a newline


@dataclass
class TokenStats:
    """Counts of tokens and examples, and locations of the rows with a problem.

    `limits`: the task's limit options, in tokens; `model_limits`: what the model can read, in
    tokens, whatever the option; `append_eos`: the task's option, if it has one. `special_texts`:
    special tokens that texts spell out, in the rows `special_locations` of all `rows`.
    """

    limits: dict[str, int] = field(default_factory=dict)
    model_limits: dict[str, int] = field(default_factory=dict)
    append_eos: bool | None = None
    sampled: int = 0
    total: int = 0
    supervised: int = 0
    unknown: int = 0
    unknown_locations: list[str] = field(default_factory=list)
    missing_eos: list[str] = field(default_factory=list)
    targets: int = 0
    truncated: dict[str, list[str]] = field(default_factory=dict)
    truncated_targets: list[str] = field(default_factory=list)
    lost_targets: list[str] = field(default_factory=list)
    lengths: dict[str, list[int]] = field(default_factory=dict)
    rows: int = 0
    special_texts: set[str] = field(default_factory=set)
    special_locations: list[str] = field(default_factory=list)


class TokenCounter:
    """Adds up the token statistics of a source. `max_positions`: the model's, in tokens."""

    def __init__(self, task: Task, processor: Any, *, max_positions: int) -> None:
        self.stats = TokenStats(
            limits={option: getattr(task.options, option) for option in task.truncation_options},
            append_eos=getattr(task.options, "append_eos", None),
        )
        self._task = task
        self._max_positions = max_positions
        self._tokenizer = getattr(processor, "tokenizer", processor)
        self._special_tokens = _SpecialTokens.from_processor(processor)

    def add(
        self, row: RowSummary, values: dict[str, Any] | None, unlimited: dict[str, Any] | None
    ) -> None:
        """Add one row. `values`: as encoded, None if the row is skipped; `unlimited`: as encoded
        without limits, None if that is unknown."""
        if unlimited is None:
            return
        stats, special = self.stats, self._special_tokens
        stats.sampled += 1
        is_truncated = self._add_lengths(row, values, unlimited)
        spans = [] if values is None else self._task.token_spans(values)
        supervised = _count_supervised(spans)
        has_target = bool(row.labels) or row.target is not None
        if has_target and supervised < _count_supervised(self._task.token_spans(unlimited)):
            locations = stats.lost_targets if values is None else stats.truncated_targets
            locations.append(row.location)
        stats.total += sum(len(span.tokens) for span in spans)
        stats.supervised += supervised
        if special is None or not spans:
            return
        self._add_unknown(row, spans, special.unknown)
        if self._task.supervises_eos and row.target is not None and not is_truncated:
            self._add_eos(row, spans[-1], special.ids)

    def add_text(self, location: str, text: str) -> None:
        """Add the text of a row, in which special tokens may be spelled out."""
        self.stats.rows += 1
        if self._special_tokens is None or (
            hasattr(self._task.options, "special_tokens")
            and (self._task.options.special_tokens is not None)
        ):
            return
        if found := find_special_texts(text, self._tokenizer):
            self.stats.special_texts |= found
            self.stats.special_locations.append(location)

    def _add_lengths(
        self, row: RowSummary, values: dict[str, Any] | None, unlimited: dict[str, Any]
    ) -> bool:
        """Add the lengths of a row, and return whether a limit truncates it."""
        is_truncated = False
        lengths = measure_lengths(values, self._task)
        for option, length in measure_lengths(unlimited, self._task).items():
            self.stats.lengths.setdefault(option, []).append(length)
            limit = min(self.stats.limits[option], self._max_positions)
            if lengths.get(option, limit) < length:
                self.stats.truncated.setdefault(option, []).append(row.location)
                is_truncated = True
        return is_truncated

    def _add_unknown(self, row: RowSummary, spans: list[TokenSpan], unknown: int | None) -> None:
        if unknown is None:
            return
        count = sum(span.tokens.count(unknown) for span in spans)
        self.stats.unknown += count
        if count:
            self.stats.unknown_locations.append(row.location)

    def _add_eos(self, row: RowSummary, last: TokenSpan, special_ids: frozenset[int]) -> None:
        if not last.supervised:
            return
        self.stats.targets += 1
        if special_ids.isdisjoint(last.tokens[-MAX_EOS_DISTANCE:]):
            self.stats.missing_eos.append(row.location)


@dataclass(frozen=True)
class _SpecialTokens:
    """The ids of a tokenizer's special tokens. `unknown`: None if it has no unknown token."""

    ids: frozenset[int]
    unknown: int | None

    @classmethod
    def from_processor(cls, processor: Any) -> _SpecialTokens | None:
        """Return the special tokens; None for a processor without a tokenizer."""
        tokenizer = getattr(processor, "tokenizer", processor)
        if not hasattr(tokenizer, "get_vocab"):
            return None
        unknown = tokenizer.unk_token_id
        if unknown in (tokenizer.eos_token_id, tokenizer.pad_token_id):
            unknown = None
        return cls(frozenset(tokenizer.all_special_ids), unknown)


def _count_supervised(spans: list[TokenSpan]) -> int:
    return sum(len(span.tokens) for span in spans if span.supervised)
