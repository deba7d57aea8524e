"""All kinds of trials, and how many faults of each are wanted."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

from benchmarks.chaos import (
    ask,
    corruption,
    cost,
    crash_points,
    disk,
    kill,
    nonfinite,
    peer,
    rows,
    stopped,
)
from benchmarks.chaos.bed import Bed
from benchmarks.chaos.trials import Kind

ALONE = (cost.NAME,)
YARDSTICKS = (peer.Kills.NAME, peer.Corruptions.NAME)


def chosen(bed: Bed, options: Namespace) -> list[Kind]:
    """Those that were asked for and of which any are wanted, in the order of the table."""
    wanted: list[tuple[Any, Callable[[], int]]] = [
        (kill, lambda: options.kills),
        (crash_points, lambda: len(crash_points.calls(bed))),
        (corruption, lambda: options.corruptions),
        (ask, lambda: options.signals),
        (disk, lambda: len(disk.CASES)),
        (stopped, lambda: 6),
        (nonfinite, lambda: 6),
        (rows, lambda: 6),
        (cost, lambda: 1),
        (peer.Kills, lambda: options.peer_kills),
        (peer.Corruptions, lambda: options.peer_corruptions),
    ]
    known = [part.NAME for part, _ in wanted]
    names = options.only.split(",") if options.only else known
    if unknown := set(names) - set(known):
        raise SystemExit(f"no such kind: {', '.join(sorted(unknown))}; there are {known}")
    return [
        Kind(
            part.NAME,
            part.HOLDS,
            part.trial,
            count,
            part.line,
            alone=part.NAME in ALONE,
            yardstick=part.NAME in YARDSTICKS,
        )
        for part, how_many in wanted
        if part.NAME in names and (count := how_many())
    ]
