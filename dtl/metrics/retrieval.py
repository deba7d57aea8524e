"""Recall, nDCG and reciprocal rank of documents that are ranked for queries."""

# N queries, R some of them, C distinct documents (the corpus)

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dtl.metrics.base import EvalRecord

if TYPE_CHECKING:
    import numpy as np

CUTOFFS = (1, 5, 10, 100)  # of recall
CUTOFF = 10  # of nDCG and of the reciprocal rank
RANKING_METRICS = (
    "accuracy",
    *(f"recall@{cutoff}" for cutoff in CUTOFFS),
    f"ndcg@{CUTOFF}",
    f"mrr@{CUTOFF}",
)


def ranking_records(similarities_RC: np.ndarray, is_relevant_RC: np.ndarray) -> list[EvalRecord]:
    """Return the metrics of each query, from the similarities of all documents.

    `accuracy`: whether the most similar document is relevant. `recall@k`: the share of the relevant
    documents that are among the first k. `ndcg@10`: with gain 1 for each of them. `mrr@10`: 1 /
    rank of the first one, or 0. Of equally similar documents, a relevant one comes last.
    """
    import numpy as np

    order_RC = np.lexsort((is_relevant_RC, -similarities_RC), axis=-1)
    hits_RC = np.take_along_axis(is_relevant_RC, order_RC, axis=-1)
    return [_ranking_record(hits_C) for hits_C in hits_RC]


def _ranking_record(hits_C: np.ndarray) -> EvalRecord:
    """Return the metrics of a ranking: whether each document is relevant (C,), best first."""
    ranks = [int(position) + 1 for position in hits_C.nonzero()[0]]
    ideal = math.fsum(1 / math.log2(rank + 1) for rank in range(1, min(len(ranks), CUTOFF) + 1))
    gains = math.fsum(1 / math.log2(rank + 1) for rank in ranks if rank <= CUTOFF)
    record: EvalRecord = {"accuracy": float(ranks[0] == 1)}
    for cutoff in CUTOFFS:
        record[f"recall@{cutoff}"] = sum(rank <= cutoff for rank in ranks) / len(ranks)
    record[f"ndcg@{CUTOFF}"] = gains / ideal
    record[f"mrr@{CUTOFF}"] = 1 / ranks[0] if ranks[0] <= CUTOFF else 0.0
    return record


def ranking_scores(records: list[EvalRecord]) -> dict[str, float]:
    """Return the mean loss and the mean of each metric over the queries."""
    return {
        name: math.fsum(record[name] for record in records) / len(records)
        for name in ("loss", *RANKING_METRICS)
    }
