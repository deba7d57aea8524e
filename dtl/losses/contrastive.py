"""Contrastive loss of queries and documents with the negatives of the global batch (InfoNCE)."""

# N queries, R some of them, D documents of a query (the first is its positive, the others are hard
# negatives), M = N * D documents, W width

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ABSENT = -1  # the id of a document that a query does not have
ROWS_AT_ONCE = 1024  # queries whose similarities with all documents are in memory together


@dataclass(frozen=True)
class EmbeddedBatch:
    """Embeddings of queries (N, W) and of their documents (N, D, W), fp32, and ids of their texts.

    Equal texts have equal ids: (N,) and (N, D), int64. Every example of a batch has a positive.
    """

    queries_NW: Tensor
    documents_NDW: Tensor
    query_ids_N: Tensor
    document_ids_ND: Tensor


def contrastive_losses(
    batch: EmbeddedBatch, rows: slice, *, temperature: float, is_symmetric: bool
) -> Tensor:
    """Return the loss of the queries in `rows` (R,), in nats: the cross-entropy of the positive
    among all documents of the batch (van den Oord et al. 2018, arXiv:1807.03748).

    Documents that are a positive of an equal query are not negatives. `is_symmetric`: the mean with
    the cross-entropy of the query among all queries, given the positive.
    """
    import torch
    from torch.nn.functional import cross_entropy

    own_R = torch.arange(len(batch.queries_NW), device=batch.queries_NW.device)[rows]
    documents_MW = batch.documents_NDW.flatten(0, 1)
    similarities_RM = batch.queries_NW[rows] @ documents_MW.T / temperature
    positions_R = own_R * batch.documents_NDW.shape[1]  # of the positives among all documents
    is_excluded_RM = find_relevant(batch, rows) | (batch.document_ids_ND.flatten() == ABSENT)
    is_excluded_RM[torch.arange(len(own_R)), positions_R] = False
    masked_RM = similarities_RM.masked_fill(is_excluded_RM, float("-inf"))
    losses_R = cross_entropy(masked_RM, positions_R, reduction="none")
    if not is_symmetric:
        return losses_R
    positives_NW = batch.documents_NDW[:, 0]
    similarities_RN = positives_NW[rows] @ batch.queries_NW.T / temperature
    is_excluded_RN = _find_matching_queries(batch, rows)
    is_excluded_RN[torch.arange(len(own_R)), own_R] = False
    masked_RN = similarities_RN.masked_fill(is_excluded_RN, float("-inf"))
    return (losses_R + cross_entropy(masked_RN, own_R, reduction="none")) / 2


def find_relevant(batch: EmbeddedBatch, rows: slice) -> Tensor:
    """Return which documents are a positive of each query in `rows`, or of an equal query, (R, M)
    bool."""
    positives_N = batch.document_ids_ND[:, 0]
    return _find_pairs(
        (batch.query_ids_N, positives_N),
        batch.query_ids_N[rows],
        batch.document_ids_ND.flatten(),
    )


def _find_matching_queries(batch: EmbeddedBatch, rows: slice) -> Tensor:
    """Return of which queries the positive of each row in `rows` is a positive (R, N), bool."""
    positives_N = batch.document_ids_ND[:, 0]
    return _find_pairs((positives_N, batch.query_ids_N), positives_N[rows], batch.query_ids_N)


def _find_pairs(pairs: tuple[Tensor, Tensor], rows_R: Tensor, columns_C: Tensor) -> Tensor:
    """Return which combinations of an id in `rows_R` and one in `columns_C` are pairs (R, C), bool.

    `pairs`: ids (N,) of one kind and of the other.
    """
    import torch

    first_N, second_N = pairs
    known_rows, inverse_R = torch.unique(rows_R, return_inverse=True)
    known_columns, inverse_C = torch.unique(columns_C, return_inverse=True)
    is_known_N = torch.isin(first_N, known_rows) & torch.isin(second_N, known_columns)
    is_pair = torch.zeros(
        len(known_rows), len(known_columns), dtype=torch.bool, device=rows_R.device
    )
    is_pair[
        torch.searchsorted(known_rows, first_N[is_known_N]),
        torch.searchsorted(known_columns, second_N[is_known_N]),
    ] = True
    return is_pair[inverse_R][:, inverse_C]


def iter_row_slices(count: int) -> list[slice]:
    """Return slices of at most ROWS_AT_ONCE rows that cover `count` rows."""
    return [
        slice(start, min(start + ROWS_AT_ONCE, count)) for start in range(0, count, ROWS_AT_ONCE)
    ]


def global_losses_and_gradients(
    batch: EmbeddedBatch, *, temperature: float, is_symmetric: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss of each query (N,), and the gradients of their sum with respect to the
    embeddings of queries (N, W) and documents (N, D, W)."""
    import torch

    with torch.enable_grad():
        queries_NW = batch.queries_NW.detach().requires_grad_()
        documents_NDW = batch.documents_NDW.detach().requires_grad_()
        leaves = EmbeddedBatch(queries_NW, documents_NDW, batch.query_ids_N, batch.document_ids_ND)
        losses = []
        for rows in iter_row_slices(len(queries_NW)):
            losses_R = contrastive_losses(
                leaves, rows, temperature=temperature, is_symmetric=is_symmetric
            )
            losses_R.sum().backward()
            losses.append(losses_R.detach())
    assert queries_NW.grad is not None and documents_NDW.grad is not None
    return torch.cat(losses), queries_NW.grad, documents_NDW.grad
