"""What a finished run should make its user doubt: each with the next thing to try."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import fmean

from dtl.evaluation.scoring import Scorer
from dtl.metrics.base import EvalRecord, Metric
from dtl.run.evaluations import read_evaluations
from dtl.train.state import RunContext, TrainState

Scores = Mapping[str, float]

MIN_STEPS = 10  # fewer say nothing about the loss
ENDS = 5  # the first and the last fifth of the steps are compared
MIN_FALL = 0.01  # of the loss, as a share of its start
MIN_DECLINE = 0.05  # of a score since the best step, as a share of the best score
MIN_LOST_GAIN = 0.1  # of a score since the best step, as a share of what training gained
ERROR_RATES = ("wer", "cer")


@dataclass(frozen=True)
class TrainingRecord:
    """What is known of a run at its end.

    `losses`: of the steps of the last phase; None: not finite. `evaluations`: step and scores of
    the adapted model, in that phase. `base`, `final`: scores of the unadapted model and of the
    exported weights; None: not scored. `majority`: the score of an answer with the most frequent
    class for every example; None: there are no classes. `learning_rate`: the highest.
    """

    metric: Metric
    learning_rate: float
    losses: Sequence[float | None] = ()
    evaluations: Sequence[tuple[int, Scores]] = ()
    base: Scores | None = None
    final: Scores | None = None
    majority: float | None = None
    exports_best: bool = False


def read_training_record(context: RunContext, state: TrainState, scorer: Scorer) -> TrainingRecord:
    """Return what the log of a run holds at its end. Only on the rank that writes."""
    folder, task, phase = context.folder, state.parts.task, state.phase(context.plan)
    lines = [line for line in folder.read_metrics() if line.get("step", 0) > phase.start_step]
    return TrainingRecord(
        metric=task.metric,
        learning_rate=phase.learning_rate,
        losses=[line["loss"] for line in lines if line["kind"] == "train"],
        evaluations=[
            (line.step, line.scores) for line in read_evaluations(lines) if line.model == "adapted"
        ],
        base=scorer.scores.get("unadapted"),
        final=scorer.scores.get("adapted"),
        majority=score_majority_class(
            folder.read_eval_records(state.progress.step),
            lambda records: task.score(records, state.data.dataset_stats),
            task.metric,
        ),
        exports_best=context.config.train.exported_weights == "best",
    )


def find_run_warnings(record: TrainingRecord) -> list[str]:
    """Return each doubt as *problem. Fix: what to do*."""
    return [
        *_loss_warnings(record),
        *_baseline_warnings(record),
        *_decline_warnings(record),
    ]


def score_majority_class(
    records: Sequence[EvalRecord], score: Callable[[list[EvalRecord]], Scores], metric: Metric
) -> float | None:
    """Return the metric of a model that always predicts the most frequent label of `records`;
    None: the records have no single label and prediction, or only one label."""
    if not records or not all({"label", "predicted"} <= each.keys() for each in records):
        return None
    counts = Counter(each["label"] for each in records)
    majority, _ = counts.most_common(1)[0]
    if len(counts) < 2:
        return None
    return score([{**each, "predicted": majority} for each in records])[metric.name]


def _loss_warnings(record: TrainingRecord) -> Iterator[str]:
    losses = [loss for loss in record.losses if loss is not None and isfinite(loss)]
    if len(losses) < MIN_STEPS:
        return
    count = max(1, len(losses) // ENDS)
    first, last = fmean(losses[:count]), fmean(losses[-count:])
    if first - last > MIN_FALL * abs(first):
        return
    rate, rose = record.learning_rate, last - first > MIN_FALL * abs(first)
    other = rate / 10 if rose else rate * 10
    yield (
        f"the training loss did not fall: {first:.4g} in the first {count} steps, {last:.4g} in "
        f"the last {count}. Fix: set optim.learning_rate to {other:.2g} (it was {rate:.2g})"
        + ("" if rose else ", or train for more steps")
    )


def _baseline_warnings(record: TrainingRecord) -> Iterator[str]:
    if record.final is None:
        return
    metric, value = record.metric, record.final[record.metric.name]
    if value == (1.0 if metric.higher_is_better else 0.0):
        return  # nothing can be better
    baselines = []
    if record.base is not None and metric.name in record.base:
        baselines.append(("the unadapted base", record.base[metric.name]))
    if record.majority is not None:
        baselines.append(("answering with the most frequent class", record.majority))
    if metric.name in ERROR_RATES:
        baselines.append(("no text at all", 1.0))
    for name, baseline in baselines:
        if metric.sign * (value - baseline) <= 0:
            yield (
                f"the result is no better than {name}: {metric.name} {value:.4g}, and "
                f"{baseline:.4g} ({metric.better} is better). Fix: train for more steps, try "
                f"optim.learning_rate {record.learning_rate * 3:.2g} (it was "
                f"{record.learning_rate:.2g}), or check with `dtl check` that the held-out rows "
                "are like the training rows"
            )


def _decline_warnings(record: TrainingRecord) -> Iterator[str]:
    """Yield that the last step scores far worse than the best one."""
    if len(record.evaluations) < 2:
        return
    metric = record.metric
    values = [(step, metric.to_maximize(scores)) for step, scores in record.evaluations]
    best_step, best = max(values, key=lambda each: each[1])
    last_step, last = values[-1]
    start = values[0][1] if record.base is None else metric.to_maximize(record.base)
    lost = best - last
    if lost <= MIN_DECLINE * abs(best) or lost <= MIN_LOST_GAIN * (best - start):
        return
    exported = "the best step is exported" if record.exports_best else "set train.export to best"
    yield (
        f"the last step is far worse than step {best_step}: {metric.name} {abs(last):.4g} at step "
        f"{last_step}, and {abs(best):.4g}; {exported}. Fix: train for about {best_step} steps, "
        f"try optim.learning_rate {record.learning_rate / 3:.2g} (it was "
        f"{record.learning_rate:.2g}), or add training rows"
    )
