"""Metrics of rankings, against scikit-learn and numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dtl.metrics.retrieval import RANKING_METRICS, ranking_records, ranking_scores


def test_metrics_of_one_ranking_by_hand() -> None:
    """Two relevant documents, at ranks 2 and 7 of eight."""
    similarities = np.array([[8.0, 7, 6, 5, 4, 3, 2, 1]])
    is_relevant = np.array([[False, True, False, False, False, False, True, False]])
    ideal = 1 + 1 / math.log2(3)
    assert ranking_records(similarities, is_relevant) == [
        {
            "accuracy": 0.0,
            "recall@1": 0.0,
            "recall@5": 0.5,
            "recall@10": 1.0,
            "recall@100": 1.0,
            "ndcg@10": pytest.approx((1 / math.log2(3) + 1 / math.log2(8)) / ideal),
            "mrr@10": 0.5,
        }
    ]


def test_ndcg_and_reciprocal_rank_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import label_ranking_average_precision_score, ndcg_score

    generator = np.random.default_rng(0)
    similarities = generator.normal(size=(6, 40))
    is_relevant = generator.random((6, 40)) < 0.1
    is_relevant[:, 3] = True  # each query has one
    records = ranking_records(similarities, is_relevant)
    for row, record in enumerate(records):
        expected = ndcg_score(is_relevant[row : row + 1], similarities[row : row + 1], k=10)
        assert record["ndcg@10"] == pytest.approx(expected)
    single = np.zeros_like(is_relevant)
    single[np.arange(6), similarities.argsort(-1)[:, -4]] = True  # at rank 4
    expected = label_ranking_average_precision_score(single, similarities)
    assert [r["mrr@10"] for r in ranking_records(similarities, single)] == [expected] * 6


def test_of_equal_similarities_the_relevant_document_comes_last() -> None:
    records = ranking_records(np.zeros((1, 12)), np.arange(12)[None] == 0)
    assert records[0] == {name: float(name == "recall@100") for name in RANKING_METRICS}


def test_scores_are_means_over_queries() -> None:
    good = {"loss": 1.0, **dict.fromkeys(RANKING_METRICS, 1.0)}
    bad = {"loss": 4.0, **dict.fromkeys(RANKING_METRICS, 0.0)}
    scores = ranking_scores([good, bad, bad])
    assert scores == pytest.approx({"loss": 3.0, **dict.fromkeys(RANKING_METRICS, 1 / 3)})
