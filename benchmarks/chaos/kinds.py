"""All kinds of trials, and how many faults of each are wanted."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable

from benchmarks.chaos import ask, corruption, crash_points, kill
from benchmarks.chaos.bed import Bed
from benchmarks.chaos.trials import Kind

MODULES = (kill, crash_points, corruption, ask)


def chosen(bed: Bed, options: Namespace) -> list[Kind]:
    """Those that were asked for and of which any are wanted, in the order of the table."""
    wanted: dict[str, Callable[[], int]] = {
        kill.NAME: lambda: options.kills,
        crash_points.NAME: lambda: len(crash_points.calls(bed)),
        corruption.NAME: lambda: options.corruptions,
        ask.NAME: lambda: options.signals,
    }
    names = options.only.split(",") if options.only else list(wanted)
    if unknown := set(names) - set(wanted):
        known = ", ".join(wanted)
        raise SystemExit(f"no such kind: {', '.join(sorted(unknown))}; there are {known}")
    kinds = []
    for module in MODULES:
        if module.NAME in names and (count := wanted[module.NAME]()):
            kinds.append(Kind(module.NAME, module.HOLDS, module.trial, count, module.line))
    return kinds
