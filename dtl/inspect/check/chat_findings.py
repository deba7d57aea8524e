"""Problems of chats: texts that the chat template drops, and answers that differ from use."""

from __future__ import annotations

from collections.abc import Iterator

from dtl.config.schema import RunConfig
from dtl.inspect.check.findings import Finding, create_finding
from dtl.inspect.check.stats import SourceStats
from dtl.prepare.expanded_rows import allowed, describe_dropped, dropped_features

FIXES = "use a model whose chat template writes both alike, or set task.chat_template_kwargs, for "
FIX = FIXES + "example {enable_thinking: false}"


def find_chat_problems(source: SourceStats, config: RunConfig) -> Iterator[Finding]:
    """Yield findings for what the chat template drops, which stops a run unless the config allows
    it, and for each note on the examples."""
    total = len(source.summaries)
    for feature, locations in dropped_features(source.row_notes).items():
        if feature not in allowed(config):
            problem, fix = describe_dropped(feature, config)
            yield create_finding(
                "dropped", locations, total, f"rows: {problem}", fix, is_fatal=True
            )
    by_note: dict[str, dict[str, None]] = {}
    for notes in source.row_notes:
        for note in notes.notes:
            by_note.setdefault(note, {})[notes.location] = None
    for note, rows in by_note.items():
        yield create_finding("not_as_in_use", list(rows), total, f"rows: {note}", FIX)
