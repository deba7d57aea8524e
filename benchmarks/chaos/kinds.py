"""All kinds of trials, and how many of each are wanted."""

from __future__ import annotations

from argparse import Namespace

from benchmarks.chaos import kill
from benchmarks.chaos.trials import Kind

__all__ = ["Kind", "chosen", "every"]


def every(options: Namespace) -> list[Kind]:
    """In the order of the table."""
    return [
        Kind(kill.NAME, kill.HOLDS, kill.trial, options.kills, kill.line),
    ]


def chosen(options: Namespace) -> list[Kind]:
    """Those that were asked for and of which any are wanted."""
    kinds = every(options)
    names = options.only.split(",") if options.only else [kind.name for kind in kinds]
    unknown = set(names) - {kind.name for kind in kinds}
    if unknown:
        known = ", ".join(kind.name for kind in kinds)
        raise SystemExit(f"no such kind: {', '.join(sorted(unknown))}; there are {known}")
    return [kind for kind in kinds if kind.name in names and kind.wanted > 0]
