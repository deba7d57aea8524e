"""Decide whether the features that a frozen base computes are cached, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dtl.core.errors import DtlError
from dtl.core.units import format_bytes
from dtl.data.padding import pad_lengths
from dtl.plan.records import DecisionLog
from dtl.plan.request import CacheableExamples, PlanRequest
from dtl.strategies.base import Strategy

KEY = "feature cache"
LOCATION = "strategy.cache_features"
BYTES_PER_FEATURE = 4  # some are fp32 in half precision too
REMOVE = "remove it: the result is the same without it"


@dataclass(frozen=True)
class FirstPhase:
    """What decides on a cache in the first phase; no later one has the pretrained base.

    `inseparable_reason`: why the base's output cannot be cached apart from the head, None where it
    can.
    """

    steps: int
    steps_per_epoch: int
    inseparable_reason: str | None


def decide_feature_cache(request: PlanRequest, phase: FirstPhase, log: DecisionLog) -> bool:
    """Return whether the first phase trains its head on cached features.

    Raises DtlError where that is requested and would change the result.
    """
    first, *later = request.parts.strategies
    _check_later_phases(later)
    requested = first.cache_features
    if requested is False:
        if type(first).cache_features is not False:
            log.add(KEY, "off", LOCATION)
        return False
    examples = request.cacheable or CacheableExamples(None, request.lengths, None)
    obstacle = _find_obstacle(request, examples, phase)
    if obstacle is not None:
        if requested:
            raise DtlError.of(LOCATION, obstacle, REMOVE)
        log.add(KEY, "off", obstacle)
        return False
    if requested is None and phase.steps <= phase.steps_per_epoch:
        log.add(KEY, "off", "no example is read twice")
        return False
    reason = LOCATION if requested else "the base computes the same of an example in every epoch"
    log.add(KEY, "on", f"{reason}; {_describe_size(request, examples)}")
    return True


def _check_later_phases(strategies: Sequence[Strategy]) -> None:
    for number, strategy in enumerate(strategies, start=1):
        if strategy.cache_features:
            raise DtlError.of(
                f"strategy.{number}.cache_features",
                "only in the first phase the base is unchanged",
                REMOVE,
            )


def _find_obstacle(
    request: PlanRequest, examples: CacheableExamples, phase: FirstPhase
) -> str | None:
    """Return why cached features would not give the same result; None where they would."""
    if not request.parts.task.single_forward:
        return (
            f"task {request.config.task.name} generates text token by token through the full "
            "model, so there is no head that runs alone"
        )
    return examples.varied_reason or phase.inseparable_reason or request.padding_dependence


def _describe_size(request: PlanRequest, examples: CacheableExamples) -> str:
    """Return the most that the cache takes, as far as it is known before the run."""
    width = getattr(request.model_config, "hidden_size", None)
    width = width if isinstance(width, int) else 0
    most = int(pad_lengths(examples.lengths).sum()) * width * BYTES_PER_FEATURE
    size = "its size is known only in the run"
    if most:
        size = f"at most about {format_bytes(most)} per layer that the head reads"
    if examples.free_bytes is not None:
        size += f"; {format_bytes(examples.free_bytes)} free"
    return size
