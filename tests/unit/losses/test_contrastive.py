"""The contrastive loss of a global batch, against loops over queries in plain Python."""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import pytest
import torch

from dtl.losses import contrastive
from dtl.losses.contrastive import (
    ABSENT,
    EmbeddedBatch,
    contrastive_losses,
    find_relevant,
    global_losses_and_gradients,
)

TEMPERATURE = 0.2
# Of five queries, the first and the last are equal; two share a positive; some negatives are absent
# or are a positive of the same query.
QUERY_IDS = [7, 3, 5, 9, 7]
DOCUMENT_IDS = [[11, 20], [12, ABSENT], [13, 12], [12, 21], [14, 11]]


def make_batch() -> EmbeddedBatch:
    torch.manual_seed(0)
    return EmbeddedBatch(
        torch.randn(5, 6, dtype=torch.float64),
        torch.randn(5, 2, 6, dtype=torch.float64),
        torch.tensor(QUERY_IDS),
        torch.tensor(DOCUMENT_IDS),
    )


def positives_of(query: int) -> set[int]:
    pairs = zip(QUERY_IDS, DOCUMENT_IDS, strict=True)
    return {documents[0] for other, documents in pairs if other == query}


def expected_losses(batch: EmbeddedBatch, *, is_symmetric: bool) -> list[float]:
    """Query by query, document by document."""
    losses = []
    for n in range(5):
        own = float(batch.queries_NW[n] @ batch.documents_NDW[n, 0]) / TEMPERATURE
        terms = [own]
        for k in range(5):
            for d in range(2):
                identity = DOCUMENT_IDS[k][d]
                if (k, d) != (n, 0) and identity not in {ABSENT, *positives_of(QUERY_IDS[n])}:
                    similarity = batch.queries_NW[n] @ batch.documents_NDW[k, d]
                    terms.append(float(similarity) / TEMPERATURE)
        loss = math.log(sum(map(math.exp, terms))) - own
        if is_symmetric:
            terms = [own]
            for k in range(5):
                if k != n and DOCUMENT_IDS[n][0] not in positives_of(QUERY_IDS[k]):
                    similarity = batch.queries_NW[k] @ batch.documents_NDW[n, 0]
                    terms.append(float(similarity) / TEMPERATURE)
            loss = (loss + math.log(sum(map(math.exp, terms))) - own) / 2
        losses.append(loss)
    return losses


@pytest.mark.parametrize("is_symmetric", [False, True])
def test_losses_are_those_of_loops_over_queries_and_documents(is_symmetric: bool) -> None:
    batch = make_batch()
    settings: dict[str, Any] = {"temperature": TEMPERATURE, "is_symmetric": is_symmetric}
    expected = expected_losses(batch, is_symmetric=is_symmetric)
    found = contrastive_losses(batch, slice(None), **settings)
    assert found.tolist() == pytest.approx(expected, rel=1e-9)
    part = contrastive_losses(batch, slice(1, 4), **settings)
    assert part.tolist() == pytest.approx(expected[1:4], rel=1e-9)


def test_documents_of_an_equal_query_are_relevant() -> None:
    expected = [
        [identity in positives_of(query) for row in DOCUMENT_IDS for identity in row]
        for query in QUERY_IDS
    ]
    assert find_relevant(make_batch(), slice(None)).tolist() == expected
    assert find_relevant(make_batch(), slice(2, 4)).tolist() == expected[2:4]


@pytest.mark.parametrize("is_symmetric", [False, True])
def test_gradients_of_the_global_batch_are_those_of_autograd(is_symmetric: bool) -> None:
    """Also if not all similarities are in memory at once."""
    batch = make_batch()
    settings: dict[str, Any] = {"temperature": TEMPERATURE, "is_symmetric": is_symmetric}
    queries, documents = (
        tensor.clone().requires_grad_() for tensor in (batch.queries_NW, batch.documents_NDW)
    )
    leaves = EmbeddedBatch(queries, documents, batch.query_ids_N, batch.document_ids_ND)
    losses = contrastive_losses(leaves, slice(None), **settings)
    losses.sum().backward()
    with mock.patch.object(contrastive, "ROWS_AT_ONCE", 2), torch.no_grad():
        found = global_losses_and_gradients(batch, **settings)
    for tensor, expected in zip(found, (losses, queries.grad, documents.grad), strict=True):
        assert torch.allclose(tensor, expected, rtol=1e-9)  # type: ignore[arg-type]
