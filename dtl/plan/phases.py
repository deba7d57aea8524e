"""Which strategy learns at which steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dtl.config.choices import Phase
from dtl.core.errors import DtlError
from dtl.plan.records import Parameters
from dtl.strategies.base import Strategy


@dataclass(frozen=True)
class Learning:
    """Names of the parameters that learn in a phase, and how many numbers these hold.

    `inseparable`: why what the base makes cannot be kept apart from the head; None: it can.
    """

    names: frozenset[str]
    parameters: Parameters
    inseparable: str | None


def last_steps(phases: Sequence[Phase], *, steps: int) -> list[int]:
    """The last step of each phase of a run of so many steps, in order.

    Lengths that are left out make equal parts of what is left. Raises DtlError where a phase would
    have no step, or the lengths do not make the run.
    """
    given = [_steps(phase.length, steps) for phase in phases]
    open_ended = given.count(None)
    left = steps - sum(length or 0 for length in given)
    if open_ended == 0 and abs(left) < len(given) and all(_is_share(phase) for phase in phases):
        given[-1] = (given[-1] or 0) + left  # what rounding has left
        left = 0
    if left < open_ended or (open_ended == 0 and left > 0) or 0 in given:
        raise DtlError.of(
            "strategy",
            f"the lengths of its phases take {steps - left} of the {steps} steps of the run"
            + (f", and {open_ended} are to share what is left" if open_ended else ""),
            "leave the length of the last phase out, or change train.steps",
        )
    ends, end, places = [], 0, 0
    for length in given:
        if length is None:
            places += 1
            length = left * places // open_ended - left * (places - 1) // open_ended
        end += length
        ends.append(end)
    return ends


def _is_share(phase: Phase) -> bool:
    return phase.length is not None and phase.length < 1


def _steps(length: float | None, steps: int) -> int | None:
    if length is None:
        return None
    return round(length * steps) if length < 1 else int(length)


def refuse_lost(strategies: Sequence[Strategy], learning: Sequence[Learning]) -> None:
    """An adapter holds nothing of a base that earlier phases have moved. Raises DtlError where the
    last phase would leave an adapter alone, and others have learnt more than is in it."""
    *before, last = strategies
    if last.exports == "model" or not before:
        return
    held = {_plain(name) for name in learning[-1].names}
    moved = {name for phase in learning[:-1] for name in phase.names}
    if any(strategy.exports == "adapter" for strategy in before) or moved - held:
        raise DtlError.of(
            f"strategy.{len(before)}",
            "the run would leave an adapter to a base that its earlier phases have changed, and "
            "that nobody has",
            "put the adapter first, and end with full or partial",
        )


def _plain(name: str) -> str:
    """The name of a parameter before PEFT wrapped its model."""
    return name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
