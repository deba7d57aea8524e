"""Plan the highest learning rates of a phase: by its strategy, what is new, the width and the
number of steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from dtl.assembly.parts import Parts
from dtl.config.optimizers import OPTIMIZERS
from dtl.config.schema import RunConfig

NEW_HEAD_RATE = 1e-3  # of AdamW, for a head that is drawn at random, at WIDTH
WIDTH = 768  # hidden size of the base models for which the field's usual rates were found
MAX_WIDTH_FACTOR = 8.0
SHORT_RUN = 200  # steps; below, usual rates move the weights too little
MAX_STEPS_FACTOR = 2.0


@dataclass(frozen=True)
class LearningRates:
    """The highest learning rates of a phase, and where they come from.

    `value`: of what is in the base, and of adapters. `head`: of the head and other parameters that
    are not in the base; None: `value`.
    """

    value: float
    reason: str
    head: float | None = None
    head_reason: str = ""


@dataclass(frozen=True)
class PhaseSize:
    """What the rates of a phase depend on, besides its strategy.

    `steps`: of the phase. `width`: the base's hidden size; None: unknown. `trains_new_head`:
    whether it trains a head that no weight file and no phase before it contains.
    """

    steps: int
    width: int | None
    trains_new_head: bool


def plan_learning_rates(config: RunConfig, parts: Parts, size: PhaseSize) -> LearningRates:
    """Return the rates that the config sets, else those that fit what the phase trains.

    A rate that the config sets is the head's too, unless `optim.head_learning_rate` is set.
    """
    phase, options = config.phases[parts.phase], config.optim
    head, head_reason = options.head_learning_rate, "optim.head_learning_rate"
    for rate, reason in (
        (phase.learning_rate, "of the phase"),
        (options.learning_rate, "optim.learning_rate"),
    ):
        if rate is not None:
            return LearningRates(rate, reason, head, head_reason)
    base, reason = _plan_base_rate(config, parts, size)
    if head is None and size.trains_new_head and parts.strategy.starts_from == "pretrained":
        planned, why = _plan_new_head_rate(config, size)
        if planned > base:
            head, head_reason = planned, why
    return LearningRates(base, reason, head, head_reason)


def find_width(model_config: Any) -> int | None:
    """Return the hidden size of a transformers config, the last one where blocks differ."""
    if model_config is None:
        return None
    text = model_config.get_text_config()
    for each in (text, model_config):
        for name in ("hidden_size", "d_model", "dim", "n_embd"):
            if isinstance(width := getattr(each, name, None), int) and width > 0:
                return width
        if sizes := getattr(each, "hidden_sizes", None):
            return int(sizes[-1])
    return None


def _plan_base_rate(config: RunConfig, parts: Parts, size: PhaseSize) -> tuple[float, str]:
    strategy, name = parts.strategy, config.phases[parts.phase].name
    rate, reason = strategy.learning_rate, f"default of {name}"
    below_head = parts.task.learning_rate_below_new_head
    has_usual_rate = size.trains_new_head and strategy.scales_learning_rate
    if has_usual_rate and below_head is not None and below_head > rate:
        rate, reason = below_head, f"usual below a new head of {config.task.name}"
    factors = [_optimizer_factor(config)]
    if strategy.scales_learning_rate:
        factors += [_width_factor(size.width), _steps_factor(size.steps)]
    return _multiply(rate, reason, factors)


def _plan_new_head_rate(config: RunConfig, size: PhaseSize) -> tuple[float, str]:
    factors = [_optimizer_factor(config), _width_factor(size.width, is_head=True)]
    return _multiply(NEW_HEAD_RATE, "default of a new head", factors)


def _multiply(rate: float, reason: str, factors: list[tuple[float, str]]) -> tuple[float, str]:
    """Return the product, rounded to two digits where it was scaled, and its formula."""
    used = [(factor, why) for factor, why in factors if factor != 1]
    formula = f"{reason} {rate:g}" if used else reason
    for factor, why in used:
        formula += f", times {factor:.2g} for {why}"
    value = rate * math.prod(factor for factor, _ in used)
    return (float(f"{value:.2g}") if used else value), formula


def _optimizer_factor(config: RunConfig) -> tuple[float, str]:
    name = config.optim.name
    return OPTIMIZERS[name].learning_rate_factor, name


def _width_factor(width: int | None, *, is_head: bool = False) -> tuple[float, str]:
    """Return the factor of a narrow base: Adam's rate of a matrix goes with 1 / width
    (arXiv:2203.03466). That of a head falls also above the usual width."""
    if width is None or (width > WIDTH and not is_head):
        return 1.0, ""
    return min(MAX_WIDTH_FACTOR, WIDTH / width), f"a width of {width}"


def _steps_factor(steps: int) -> tuple[float, str]:
    """Return the factor of a short run, whose weights move less at the same rate."""
    if steps >= SHORT_RUN:
        return 1.0, ""
    return min(MAX_STEPS_FACTOR, math.sqrt(SHORT_RUN / steps)), f"{steps} steps"
