"""All kinds of trials, and how many faults of each are required."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

from benchmarks.chaos import (
    any_file,
    corruption,
    cost,
    crash_points,
    disk,
    frozen_rank,
    kill,
    limits,
    nonfinite,
    peer,
    rows,
    stop_request,
    verb_kills,
)
from benchmarks.chaos.setup import Setup
from benchmarks.chaos.trials import Kind

EXCLUSIVE = (cost.NAME,)
BASELINES = (peer.Kills.NAME, peer.Corruptions.NAME)


def select_kinds(setup: Setup, options: Namespace) -> list[Kind]:
    """Return the requested kinds that require faults, in the order of the table."""
    wanted: list[tuple[Any, Callable[[], int]]] = [
        (kill, lambda: options.kills),
        (crash_points, lambda: len(crash_points.calls(setup))),
        (corruption, lambda: options.corruptions),
        (stop_request, lambda: options.signals),
        (disk, lambda: len(disk.CASES)),
        (frozen_rank, lambda: 6),
        (nonfinite, lambda: 6),
        (rows, lambda: 6),
        (verb_kills, lambda: options.verb_kills),
        (any_file, lambda: options.damages),
        (limits, lambda: options.limits),
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
            part.REQUIREMENT,
            part.run_trial,
            count,
            part.describe,
            is_exclusive=part.NAME in EXCLUSIVE,
            is_baseline=part.NAME in BASELINES,
        )
        for part, how_many in wanted
        if part.NAME in names and (count := how_many())
    ]
