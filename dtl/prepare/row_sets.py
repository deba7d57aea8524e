"""Rows derived from sources: a subset of one source, and a mixture of several."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from dtl.data.batching import epoch_rng
from dtl.data.sources.rows import Row, Rows

MIX_SEED = 20_000_017  # seed of the rows that a fractional weight adds


@dataclass(frozen=True)
class RowSubset:
    """The rows with the chosen indices (`include`), or all others. The rows keep their indices."""

    rows: Rows | RowSubset
    indices: frozenset[int]
    include: bool

    @property
    def fingerprint(self) -> str:
        """A hash of the content of the rows."""
        digest = hashlib.sha256(repr((sorted(self.indices), self.include)).encode()).hexdigest()
        return f"{self.rows.fingerprint}/{digest}"

    def __iter__(self) -> Iterator[Row]:
        return (row for row in self.rows if (row.index in self.indices) == self.include)


@dataclass(frozen=True)
class Mixture:
    """Rows of several sources, each repeated by its weight, with new consecutive indices.

    An epoch has every example of the mixture exactly once.
    """

    weighted: tuple[tuple[Rows | RowSubset, float], ...]

    @property
    def fingerprint(self) -> str:
        """A hash of the content of the rows and of the weights."""
        parts = [[rows.fingerprint, weight] for rows, weight in self.weighted]
        return f"mixture/{hashlib.sha256(json.dumps(parts).encode()).hexdigest()}"

    def __iter__(self) -> Iterator[Row]:
        sources = (_repeat_rows(rows, weight) for rows, weight in self.weighted)
        return (replace(row, index=n) for n, row in enumerate(chain.from_iterable(sources)))


def _repeat_rows(rows: Rows | RowSubset, weight: float) -> Iterator[Row]:
    repetitions, share = divmod(weight, 1)
    for _ in range(int(repetitions)):
        yield from rows
    if share:
        indices = sample_share([row.index for row in rows], share, seed=MIX_SEED)
        yield from (row for row in rows if row.index in indices)


def sample_share(indices: Sequence[int], share: float, *, seed: int) -> frozenset[int]:
    """Return a random share of the indices, at least one."""
    total = len(indices)
    shuffled = epoch_rng(seed=seed, epoch=0).permutation(total)
    chosen = shuffled[: max(1, round(total * share))].tolist()
    return frozenset(indices[position] for position in chosen)
