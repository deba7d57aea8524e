"""Probes the features of the unadapted base with simple classifiers, before any training."""

# N rows, W width of the base

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from dtl.assembly.parts import assemble
from dtl.config.schema import RunConfig
from dtl.data.sources.rows import Row
from dtl.evaluation.pooled_features import pool_features
from dtl.prepare.prepared_data import prepare_data

NEIGHBORS = 5
MAX_ROWS = 2000  # per split


@dataclass(frozen=True)
class ProbeAccuracies:
    """Accuracies on the held-out rows of the config. `rows`: training rows of the classifiers."""

    rows: int
    linear_probe: float
    nearest_neighbors: float
    majority_class: float


def probe_features(config: RunConfig) -> ProbeAccuracies:
    """Return the accuracies of logistic regression and nearest neighbors on the standardized
    feature vectors of the base. `config`: of a task with classes. Raises DtlError if the model has
    no separable base.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler

    train_rows, eval_rows = (each.rows for each in prepare_data(config, assemble(config)).encoded)
    train_NW, train_labels_N = _extract_vectors(config, train_rows)
    eval_NW, eval_labels_N = _extract_vectors(config, eval_rows)
    scaler = StandardScaler().fit(train_NW)
    train_NW, eval_NW = scaler.transform(train_NW), scaler.transform(eval_NW)
    linear = LogisticRegression(max_iter=1000).fit(train_NW, train_labels_N)
    neighbors = KNeighborsClassifier(min(NEIGHBORS, len(train_labels_N)))
    neighbors.fit(train_NW, train_labels_N)
    names, counts = np.unique(train_labels_N, return_counts=True)
    return ProbeAccuracies(
        rows=len(train_labels_N),
        linear_probe=float(linear.score(eval_NW, eval_labels_N)),
        nearest_neighbors=float(neighbors.score(eval_NW, eval_labels_N)),
        majority_class=float((eval_labels_N == names[counts.argmax()]).mean()),
    )


def _extract_vectors(config: RunConfig, rows: Iterable[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors (N, W) and labels (N,) of all readable rows."""
    task, labels = assemble(config).task, list[str]()

    def rows_with_labels() -> Iterator[Row]:
        for row in islice(rows, MAX_ROWS):
            labels.append(task.get_class(row))
            yield row

    vectors_NW = pool_features(config, rows_with_labels())
    is_readable_N = ~np.isnan(vectors_NW).any(1)
    return vectors_NW[is_readable_N], np.array(labels)[is_readable_N]
