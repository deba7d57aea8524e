"""What a comparison of strategies has found: the records, as its folder stores them, and `load`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from dtl.core.errors import DtlError

TABLE = "comparison.json"
UNADAPTED = "unadapted"  # the base as it is, where it stands beside strategies

Verdict = Literal["best", "not distinguishable", "scratch", "unadapted"]


@dataclass(frozen=True)
class Interval:
    """Where a value lies, at the comparison's level."""

    low: float
    high: float


@dataclass(frozen=True)
class Reached:
    """A held-out score after so many steps, which took so many seconds of learning."""

    seconds: float
    step: int
    score: float


@dataclass(frozen=True)
class Cell:
    """One finished run of the grid.

    `labels`: of each class, or rows where the task has no classes; `rows`: that it learnt from.
    `interval`: over held-out examples. `seconds`: of learning; `wall_seconds`: of the whole run,
    all launches. `peak_memory_bytes`: of the device, or on a CPU of the whole process.
    `stored_bytes`: of the export. `source_score`: on the data of --source after learning. `run`:
    its run folder, inside the comparison's. None: not measured, or there is nothing to measure.
    """

    strategy: str
    labels: int
    rows: int
    seed: int
    learning_rate: float
    score: float
    interval: Interval
    scores: dict[str, float]
    steps: int
    seconds: float
    wall_seconds: float
    peak_memory_bytes: int
    stored_bytes: int
    curve: tuple[Reached, ...]
    source_score: float | None
    ood_score: float | None
    worst_group: float | None
    run: str


@dataclass(frozen=True)
class LabelsSaved:
    """How many labels `scratch` needs for the same score, on its measured curve. `scratch_labels`
    is exact where `bound` is None; else the score lies beyond that end of the curve."""

    scratch_labels: float
    bound: Literal["more than", "at most"] | None


@dataclass(frozen=True)
class ToScratch:
    """After how many steps, and seconds of learning, the mean over seeds was at the score that
    `scratch` ends with, with the same labels; straight lines between scorings. Exact where `bound`
    is None; else it was there at the first scoring, or never."""

    steps: float
    seconds: float
    bound: Literal["more than", "at most"] | None


@dataclass(frozen=True)
class Point:
    """All seeds of a strategy with so many labels: mean values over them, and an interval over
    seeds and examples."""

    strategy: str
    labels: int
    seeds: tuple[int, ...]
    score: float
    interval: Interval
    labels_saved: LabelsSaved | None
    to_scratch: ToScratch | None
    seconds: float
    peak_memory_bytes: int
    stored_bytes: int
    source_score: float | None
    source_interval: Interval | None
    ood_score: float | None
    ood_interval: Interval | None
    worst_group: float | None


@dataclass(frozen=True)
class Base:
    """The base as it is, before any learning: on the held-out rows, and on the data of --source.
    None: it has no head for the task, or was not asked."""

    score: float | None = None
    interval: Interval | None = None
    source_score: float | None = None
    source_interval: Interval | None = None


@dataclass(frozen=True)
class Difference:
    """`first` minus `second` with so many labels, paired by seeds and examples; above 0 the first
    is better, also where less of the score is better. `p`: two-sided; `corrected`: by Holm over
    all pairs of strategies with these labels, or over the pairs of each with the unadapted base."""

    labels: int
    first: str
    second: str
    difference: float
    interval: Interval
    p: float
    corrected: float
    distinguishable: bool


@dataclass(frozen=True)
class Recommendation:
    """What to take with so many labels: two sentences, the choice and its reason."""

    labels: int
    choice: str
    verdict: Verdict
    text: str


@dataclass(frozen=True)
class Rate:
    """A learning rate that was tried for a strategy, with so many labels: its score on the rows
    kept apart."""

    strategy: str
    labels: int
    learning_rate: float
    share: float  # of the steps
    score: float


@dataclass(frozen=True)
class Hint:
    """Before any training: accuracy on the rows kept apart of what is cheap to ask of the features
    of the untouched base, with so many labels; `chance`: always the commonest label."""

    labels: int
    rows: int
    probe: float
    neighbours: float
    chance: float


@dataclass(frozen=True)
class NotRun:
    """What of the grid is missing, and why."""

    what: str
    why: str


@dataclass(frozen=True)
class Comparison:
    """`name`: the folder's. `score_name`: the task's best score. `classes`: None where labels are
    rows. `all_labels`: which number of labels is all there are; None: not in the grid. `level`: of
    the intervals. `differences`: on the held-out rows; `source_differences`: on the data of
    --source."""

    name: str
    task: str
    score_name: str
    higher_is_better: bool
    classes: int | None
    level: float
    strategies: tuple[str, ...]
    labels: tuple[int, ...]
    all_labels: int | None
    seeds: tuple[int, ...]
    source: str | None
    base: Base
    ood: str | None
    cells: tuple[Cell, ...]
    points: tuple[Point, ...]
    differences: tuple[Difference, ...]
    source_differences: tuple[Difference, ...]
    recommendations: tuple[Recommendation, ...]
    rates: tuple[Rate, ...]
    hint: Hint | None
    no_hint: str | None
    notes: tuple[str, ...]
    not_run: tuple[NotRun, ...]

    @property
    def finished(self) -> bool:
        """Whether every cell has been run."""
        return len(self.cells) == len(self.strategies) * len(self.labels) * len(self.seeds)

    def point(self, strategy: str, labels: int) -> Point | None:
        """The mean over seeds; None where it is missing."""
        found = (one for one in self.points if (one.strategy, one.labels) == (strategy, labels))
        return next(found, None)

    def forgotten(self, strategy: str, labels: int) -> Difference | None:
        """How much better the base as it is does on the data of --source than what has learnt;
        None where either is not scored there."""
        return from_base(self.source_differences, strategy, labels)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return dict(_ADAPTER.dump_python(self, mode="json"))


def from_base(pairs: Sequence[Difference], strategy: str, labels: int) -> Difference | None:
    """The unadapted base minus a strategy with so many labels; None where it is missing."""
    asked = (UNADAPTED, strategy, labels)
    return next((one for one in pairs if (one.first, one.second, one.labels) == asked), None)


def mean_curve(cells: Sequence[Cell]) -> list[Reached]:
    """Over the steps at which every seed was scored."""
    steps = set.intersection(*({one.step for one in cell.curve} for cell in cells))
    curve = []
    for step in sorted(steps):
        here = [one for cell in cells for one in cell.curve if one.step == step]
        seconds, scores = ([one.seconds for one in here], [one.score for one in here])
        curve.append(Reached(fsum(seconds) / len(here), step, fsum(scores) / len(here)))
    return curve


def in_words(labels: int, *, classes: int | None) -> str:
    """A number of labels."""
    if classes is None:
        return f"{labels} labelled rows"
    return f"{labels} label{'s' if labels > 1 else ''} a class"


_ADAPTER = TypeAdapter(Comparison)


def load(folder: str | Path) -> Comparison:
    """The table of a comparison, of what has been run so far. Raises DtlError where there is
    none."""
    path = Path(folder) / TABLE
    try:
        return _ADAPTER.validate_python(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise DtlError.of(
            str(folder), f"there is no {TABLE} in this folder", "`dtl compare CONFIG` makes one"
        ) from None
    except ValueError as fault:
        raise DtlError.of(
            str(path), f"cannot be read ({fault})", "remove it, and compare again"
        ) from fault
