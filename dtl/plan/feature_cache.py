"""Whether what a frozen base makes of the examples is kept, and why."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dtl.assembly.parts import Parts
from dtl.config.schema import RunConfig
from dtl.core.errors import DtlError
from dtl.core.units import format_bytes
from dtl.data.order import padded
from dtl.plan.records import Decision

KEY = "feature cache"
PLACE = "strategy.cache_features"
NUMBER = 4  # bytes; half precision keeps some in fp32 too


@dataclass(frozen=True)
class Reading:
    """What the data say. `varied`: why the base makes something else of an example each time; None:
    it does not. `lengths`: of the examples whose features would be kept."""

    varied: str | None
    lengths: np.ndarray
    free: int | None  # bytes on the disk of the cache; None: not looked at


def plan_features(
    config: RunConfig,
    parts: Parts,
    reading: Reading,
    *,
    inseparable: str | None,
    width: int,
    steps: int,
    per_epoch: int,
) -> tuple[bool, Decision | None]:
    """Of the first phase; no other has the pretrained base. `inseparable`: why the base's part
    cannot be kept; None: it can. `width`: of the base's output, or 0. `steps`: of that phase.

    Raises DtlError where it is asked for and would not give the same.
    """
    first, *later = parts.strategies
    for number, strategy in enumerate(later, start=1):
        if strategy.caches_features:
            raise DtlError.of(
                f"strategy.{number}.cache_features",
                "only the first phase has a base that nothing has changed",
                "remove it: the run learns the same without it",
            )
    asked = first.caches_features
    if asked is False:
        wanted = type(first).caches_features is not False
        return False, Decision(KEY, "off", PLACE) if wanted else None
    fault = _why_not(config, parts, reading.varied or inseparable)
    if fault is not None:
        if asked:
            raise DtlError.of(PLACE, fault, "remove it: the run learns the same without it")
        return False, Decision(KEY, "off", fault)
    if asked is None and steps <= per_epoch:
        return False, Decision(KEY, "off", "no example is read twice")
    most = int(padded(reading.lengths).sum()) * width * NUMBER
    size = f"about {format_bytes(most)} at most a layer that the head reads"
    size = size if most else "its size is seen in the run"
    if reading.free is not None:
        size += f"; {format_bytes(reading.free)} are free"
    why = PLACE if asked else "the base makes the same of an example in every epoch"
    return True, Decision(KEY, "on", f"{why}; {size}")


def _why_not(config: RunConfig, parts: Parts, fault: str | None) -> str | None:
    if not parts.task.single_forward:
        return (
            f"task {config.task.name} has no head that answers an example at once: a text is "
            "written token by token through the whole model"
        )
    return fault
