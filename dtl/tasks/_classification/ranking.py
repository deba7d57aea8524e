"""Classification of pairs as a ranking: the documents of each query, by the head's output."""

# B batch, C outputs

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

from dtl.metrics.retrieval import RANKING_METRICS, ranking_records

if TYPE_CHECKING:
    from torch import Tensor

    from dtl.metrics.base import EvalRecord

QUERY_IDS = "query_ids"  # of an example and of a batch, which no model reads
ID_BITS = 31  # an id has two parts that fit into int32


def query_id(text: str) -> list[int]:
    """Return the id of a query, as two integers of ID_BITS bits."""
    digest = hashlib.blake2b(text.strip().encode("utf-8", "replace"), digest_size=8).digest()
    number = int.from_bytes(digest, "big") >> 2
    return [number >> ID_BITS, number & ((1 << ID_BITS) - 1)]


def add_rankings(
    records: list[EvalRecord], logits_BC: Tensor, batch: dict[str, Tensor]
) -> list[EvalRecord]:
    """Return the records with the query, the similarity and the relevance of each pair, if the
    batch has queries: by the only output, or by the second label against the first one."""
    if QUERY_IDS not in batch:
        return records
    labels_B = batch["labels"].flatten()
    scores_B = logits_BC[:, 0] if logits_BC.shape[1] == 1 else logits_BC[:, 1] - logits_BC[:, 0]
    columns = (batch[QUERY_IDS], scores_B, labels_B > 0)
    pairs = zip(records, *(column.tolist() for column in columns), strict=True)
    return [
        {**record, "query": query, "similarity": score, "is_relevant": is_relevant}
        for record, query, score, is_relevant in pairs
    ]


def rank_documents(records: list[EvalRecord]) -> dict[str, float]:
    """Return the mean of each ranking metric over the queries that have a relevant document, and
    how many these are; nothing if the records have no queries."""
    import numpy as np

    by_query: dict[tuple[int, ...], list[EvalRecord]] = {}
    for record in records if records and "query" in records[0] else ():
        by_query.setdefault(tuple(record["query"]), []).append(record)
    rankings = []
    for pairs in by_query.values():
        is_relevant_C = np.array([pair["is_relevant"] for pair in pairs])
        if is_relevant_C.any():
            similarities_C = np.array([pair["similarity"] for pair in pairs])
            rankings += ranking_records(similarities_C[None], is_relevant_C[None])
    if not rankings:
        return {}
    means = {
        name: math.fsum(ranking[name] for ranking in rankings) / len(rankings)
        for name in RANKING_METRICS
        if name != "accuracy"
    }
    return {**means, "queries": float(len(rankings))}
