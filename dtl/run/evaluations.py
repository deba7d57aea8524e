"""The evaluations in metrics.jsonl."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

EVALUATION_KIND = "eval"


@dataclass(frozen=True)
class LoggedEvaluation:
    """The scores of a model after a step. `model`: unadapted, adapted, ema or average."""

    step: int
    model: str
    scores: dict[str, float]


def read_evaluations(lines: Iterable[dict[str, Any]]) -> Iterator[LoggedEvaluation]:
    """Yield the evaluations among the lines of metrics.jsonl, in their order."""
    for line in lines:
        if line["kind"] == EVALUATION_KIND:
            scores = {key: line[key] for key in line if key not in ("kind", "step", "model")}
            yield LoggedEvaluation(line["step"], line["model"], scores)
