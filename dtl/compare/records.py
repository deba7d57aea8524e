"""The records of a comparison, as comparison.json stores them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from dtl.core.errors import DtlError
from dtl.core.files import read_record

COMPARISON_FILE = "comparison.json"
UNADAPTED = "unadapted"  # the base without training, in the place of a strategy

Verdict = Literal["best", "not significantly different", "scratch", "unadapted"]


@dataclass(frozen=True)
class ConfidenceInterval:
    """A confidence interval at the comparison's confidence level."""

    low: float
    high: float


@dataclass(frozen=True)
class CurvePoint:
    """A point of a learning curve: held-out score after `step` steps and `seconds` of training."""

    seconds: float
    step: int
    score: float


@dataclass(frozen=True)
class CellResult:
    """One finished run of the grid.

    `labels`: labeled rows per class, or rows if the task has no classes. `rows`: training rows.
    `interval`: over held-out examples. `train_seconds`: without loading and evaluation;
    `wall_seconds`: all launches. `peak_memory_bytes`: of the device, or on a CPU of the process.
    `source_score`: on the source data after training. `run`: its run folder, relative to the
    comparison's. None: not measured.
    """

    strategy: str
    labels: int
    rows: int
    seed: int
    learning_rate: float
    score: float
    interval: ConfidenceInterval
    scores: dict[str, float]
    steps: int
    train_seconds: float
    wall_seconds: float
    peak_memory_bytes: int
    export_bytes: int
    curve: tuple[CurvePoint, ...]
    source_score: float | None
    ood_score: float | None
    worst_group_score: float | None
    run: str


@dataclass(frozen=True)
class LabelEfficiency:
    """The number of labels with which `scratch` has the same score, interpolated on its measured
    curve. `bound` is not None if the score is beyond that end of the curve."""

    scratch_labels: float
    bound: Literal["more than", "at most"] | None


@dataclass(frozen=True)
class TimeToScratchScore:
    """The steps and training seconds after which the mean over seeds has the final score of
    `scratch` with the same labels, interpolated linearly between evaluations. `bound`: "at most" if
    the first evaluation has it, "more than" if none has it."""

    steps: float
    seconds: float
    bound: Literal["more than", "at most"] | None


@dataclass(frozen=True)
class StrategySummary:
    """The means over all seeds of a strategy with a number of labels. The confidence intervals are
    over seeds and examples; `peak_memory_bytes` and `export_bytes` are maxima."""

    strategy: str
    labels: int
    seeds: tuple[int, ...]
    score: float
    interval: ConfidenceInterval
    label_efficiency: LabelEfficiency | None
    time_to_scratch_score: TimeToScratchScore | None
    train_seconds: float
    peak_memory_bytes: int
    export_bytes: int
    source_score: float | None
    source_interval: ConfidenceInterval | None
    ood_score: float | None
    ood_interval: ConfidenceInterval | None
    worst_group_score: float | None


@dataclass(frozen=True)
class BaseScores:
    """The scores of the unadapted base on the held-out rows and on the source data. None: it has no
    head for the task, or there is no source."""

    score: float | None = None
    interval: ConfidenceInterval | None = None
    source_score: float | None = None
    source_interval: ConfidenceInterval | None = None


@dataclass(frozen=True)
class PairedDifference:
    """The difference `first` minus `second` with a number of labels, paired by seeds and examples.
    Above 0 the first is better, also for scores where lower is better. `p_value`: two-sided;
    `adjusted_p_value`: by Holm's method over all pairs of strategies with these labels, or over
    all pairs with the unadapted base."""

    labels: int
    first: str
    second: str
    difference: float
    interval: ConfidenceInterval
    p_value: float
    adjusted_p_value: float
    is_significant: bool


@dataclass(frozen=True)
class Recommendation:
    """The recommended strategy for a number of labels. `text`: choice and reason, two sentences."""

    labels: int
    choice: str
    verdict: Verdict
    text: str


@dataclass(frozen=True)
class LearningRateTrial:
    """A finished run of a learning-rate search: its score on the validation rows."""

    strategy: str
    labels: int
    learning_rate: float
    step_share: float  # of the steps
    score: float


@dataclass(frozen=True)
class FeatureProbe:
    """Accuracies of simple classifiers on the features of the unadapted base, with a number of
    labels, on the validation rows. `majority_class`: always predict the most frequent label."""

    labels: int
    rows: int
    linear_probe: float
    nearest_neighbors: float
    majority_class: float


@dataclass(frozen=True)
class MissingRuns:
    """Runs of the grid that were not run, and why."""

    description: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    """The results of a comparison. `name`: of its folder. `score_name`: the task's main score.
    `classes`: None if labels are counted in rows. `all_labels`: the number of labels that is all of
    the data; None: not in the grid. `differences`: on the held-out rows; `source_differences`: on
    the source data. `no_feature_probe`: why there is no probe."""

    name: str
    task: str
    score_name: str
    higher_is_better: bool
    classes: int | None
    confidence_level: float
    strategies: tuple[str, ...]
    labels: tuple[int, ...]
    all_labels: int | None
    seeds: tuple[int, ...]
    source: str | None
    base: BaseScores
    ood: str | None
    cells: tuple[CellResult, ...]
    summaries: tuple[StrategySummary, ...]
    differences: tuple[PairedDifference, ...]
    source_differences: tuple[PairedDifference, ...]
    recommendations: tuple[Recommendation, ...]
    learning_rate_trials: tuple[LearningRateTrial, ...]
    feature_probe: FeatureProbe | None
    no_feature_probe: str | None
    notes: tuple[str, ...]
    missing_runs: tuple[MissingRuns, ...]

    @property
    def is_finished(self) -> bool:
        """Return whether every cell is finished."""
        return len(self.cells) == len(self.strategies) * len(self.labels) * len(self.seeds)

    def find_summary(self, strategy: str, labels: int) -> StrategySummary | None:
        """Return the means over seeds; None if there are none."""
        key = (strategy, labels)
        return next((one for one in self.summaries if (one.strategy, one.labels) == key), None)

    def find_forgetting(self, strategy: str, labels: int) -> PairedDifference | None:
        """Return how much better the unadapted base is on the source data than the trained
        model; None if either has no score there."""
        return find_base_difference(self.source_differences, strategy, labels)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return dict(_ADAPTER.dump_python(self, mode="json"))


def find_base_difference(
    pairs: Sequence[PairedDifference], strategy: str, labels: int
) -> PairedDifference | None:
    """Return the difference unadapted base minus a strategy; None if there is none."""
    key = (UNADAPTED, strategy, labels)
    return next((one for one in pairs if (one.first, one.second, one.labels) == key), None)


def average_curves(cells: Sequence[CellResult]) -> list[CurvePoint]:
    """Return the mean learning curve, over the steps at which every seed was evaluated."""
    steps = set.intersection(*({one.step for one in cell.curve} for cell in cells))
    curve = []
    for step in sorted(steps):
        here = [one for cell in cells for one in cell.curve if one.step == step]
        seconds, scores = ([one.seconds for one in here], [one.score for one in here])
        curve.append(CurvePoint(fsum(seconds) / len(here), step, fsum(scores) / len(here)))
    return curve


_ADAPTER = TypeAdapter(Comparison)


def load_comparison(folder: str | Path) -> Comparison:
    """Load the results of a comparison, as far as it has been run. Raises DtlError if there are
    none."""
    path = Path(folder) / COMPARISON_FILE
    try:
        return _ADAPTER.validate_python(read_record(path))
    except (DtlError, ValueError) as fault:
        if not path.exists():
            raise DtlError.of(
                str(folder), f"no {COMPARISON_FILE} in this folder", "run `dtl compare CONFIG`"
            ) from None
        raise DtlError.of(
            str(path), f"cannot be read ({fault})", "remove it and run `dtl compare` again"
        ) from fault
