"""Probes the features of the unadapted base with simple classifiers, before any training."""

# N rows, W width of the base

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from dtl.assembly.parts import assemble
from dtl.config.schema import RunConfig
from dtl.data.labels import get_label
from dtl.data.sources.rows import Row
from dtl.evaluation.pooled_features import pool_features
from dtl.prepare.prepared_data import prepare_data

NEIGHBORS = 5
MAX_ROWS = 2000  # per split


@dataclass(frozen=True)
class ProbeAccuracies:
    """Accuracies on the held-out rows of the config. `rows`: training rows of the classifiers."""

    rows: int
    probe: float
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

    of_train, of_held_out = (each.rows for each in prepare_data(config, assemble(config)).encoded)
    learnt, truth = _extract_vectors(config, of_train)
    scored, wanted = _extract_vectors(config, of_held_out)
    scale = StandardScaler().fit(learnt)
    learnt, scored = scale.transform(learnt), scale.transform(scored)
    probe = LogisticRegression(max_iter=1000).fit(learnt, truth)
    near = KNeighborsClassifier(min(NEIGHBORS, len(truth))).fit(learnt, truth)
    names, counts = np.unique(truth, return_counts=True)
    return ProbeAccuracies(
        rows=len(truth),
        probe=float(probe.score(scored, wanted)),
        nearest_neighbors=float(near.score(scored, wanted)),
        majority_class=float((wanted == names[counts.argmax()]).mean()),
    )


def _extract_vectors(config: RunConfig, rows: Iterable[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors (N, W) and labels (N,) of all readable rows."""
    labels: list[str] = []

    def seen() -> Iterator[Row]:
        for row in islice(rows, MAX_ROWS):
            labels.append(get_label(row))
            yield row

    vectors_NW = pool_features(config, seen())
    read_N = ~np.isnan(vectors_NW).any(1)
    return vectors_NW[read_N], np.array(labels)[read_N]
