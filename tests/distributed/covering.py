"""Covering arrays: few cases in which the values of any two axes meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, product
from typing import Any

import pytest

Case = tuple[Any, ...]
Valid = Callable[[Case], bool]


def covering(*axes: Sequence[Any], strength: int = 2, valid: Valid | None = None) -> list[Case]:
    """Return cases of the full product that together hold every combination of the values of any
    `strength` axes, as far as a valid case has it. Greedy, and the same at each call."""
    possible = [case for case in product(*axes) if valid is None or valid(case)]
    missing = {pair for case in possible for pair in _combinations(case, strength)}
    chosen = []
    while missing:
        best = max(possible, key=lambda case: len(missing & _combinations(case, strength)))
        missing -= _combinations(best, strength)
        chosen.append(best)
    return chosen


def _combinations(case: Case, strength: int) -> set[tuple[tuple[int, Any], ...]]:
    return set(combinations(enumerate(case), strength))


def cases(*axes: Sequence[Any], strength: int = 2, valid: Valid | None = None) -> list[Any]:
    """Return the full product as parameters of a test: the covering cases for `make test`, and the
    others, marked as slow, for `make test-all`."""
    first = covering(*axes, strength=strength, valid=valid)
    others = [
        case for case in product(*axes) if case not in first and (valid is None or valid(case))
    ]
    return [pytest.param(*case) for case in first] + [
        pytest.param(*case, marks=pytest.mark.slow) for case in others
    ]
