"""Builds measured cells with known predictions."""

import numpy as np

from dtl.compare.measure import MeasuredCell
from dtl.compare.records import CellResult, ConfidenceInterval
from dtl.core.statistics import ScoreSample
from dtl.metrics.base import Metric

EXAMPLES = 200
SEEDS = 3


class Task:
    """A task with the only attribute that is read here."""

    metric = Metric("accuracy")


def accuracy(sums):
    return sums[..., 0] / sums[..., 1]


def make_sample(correct):
    """Return the bootstrap sample of the accuracy. `correct`: 1 per correct example, else 0."""
    return ScoreSample.from_counts(accuracy, np.stack([correct, np.ones(len(correct))], axis=1))


def make_cells(strategy, labels, correct_by_seed, *, seconds=10.0):
    """Return a measured cell per seed."""
    return [
        MeasuredCell(
            CellResult(
                strategy=strategy,
                labels=labels,
                rows=labels,
                seed=seed,
                learning_rate=0.1,
                score=float(correct.mean()),
                interval=ConfidenceInterval(0.0, 1.0),
                scores={},
                steps=1,
                train_seconds=seconds,
                wall_seconds=seconds,
                peak_memory_bytes=1,
                export_bytes=1,
                curve=(),
                source_score=None,
                ood_score=None,
                worst_group_score=None,
                run="",
            ),
            make_sample(correct),
            None,
            None,
        )
        for seed, correct in enumerate(correct_by_seed)
    ]


def draw_predictions(generator, accuracy, *, seed_std=0.02):
    """Return the correct examples of each seed; all seeds share the difficulty of the examples."""
    easiness = generator.beta(4 * accuracy, 4 * (1 - accuracy), size=EXAMPLES)
    return [
        (
            generator.random(EXAMPLES) < np.clip(easiness + generator.normal(0, seed_std), 0, 1)
        ).astype(float)
        for _ in range(SEEDS)
    ]
