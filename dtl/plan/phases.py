"""Plan which strategy trains at which steps."""

from __future__ import annotations

from collections.abc import Sequence

from dtl.config.schema import RunConfig
from dtl.config.schema.plugins import Phase
from dtl.core.errors import DtlError
from dtl.core.units import format_count
from dtl.plan.learning_rate import PhaseSize, find_width, plan_learning_rates
from dtl.plan.records import DecisionLog, PhasePlan
from dtl.plan.request import PlanRequest
from dtl.plan.trainable_parameters import PhaseParameters
from dtl.strategies.base import Strategy


def plan_phases(
    request: PlanRequest, parameters: Sequence[PhaseParameters], *, steps: int, log: DecisionLog
) -> tuple[PhasePlan, ...]:
    """Return the steps and the learning rate of each phase. `parameters`: of each phase."""
    config, width = request.config, find_width(request.model_config)
    ends, has_new_head = compute_last_steps(config.phases, steps=steps), True
    phases: list[PhasePlan] = []
    for number, (phase, trained, last) in enumerate(
        zip(config.phases, parameters, ends, strict=True)
    ):
        start = phases[-1].last_step if phases else 0
        trains_new_head = trained.trains_new_head and has_new_head
        has_new_head = has_new_head and not trained.trains_new_head
        rates = plan_learning_rates(
            config,
            request.parts.for_phase(number),
            PhaseSize(last - start, width, trains_new_head),
        )
        if len(ends) > 1:
            count = format_count(trained.counts.trainable)
            log.add(f"phase {number + 1}", phase.name, f"to step {last}, {count} trainable")
        if (adapter := request.parts.strategies[number].continue_from) is not None:
            reason = f"training continues from it, with its rank, scale and layers: {phase.name}"
            log.add("adapter", adapter, reason)
        schedule = f"{rates.reason}; {config.optim.schedule} schedule"
        schedule += _check_warmup(config, steps=last - start)
        log.add("learning rate", f"{rates.value:g}", schedule)
        if rates.head is not None:
            log.add("head learning rate", f"{rates.head:g}", rates.head_reason)
        phases.append(
            PhasePlan(
                phase.name,
                start,
                last,
                rates.value,
                trained.counts,
                head_learning_rate=rates.head,
            )
        )
    return tuple(phases)


def compute_last_steps(phases: Sequence[Phase], *, steps: int) -> list[int]:
    """Return the last step of each phase, in order, of a run of so many steps.

    Phases without a length share the remaining steps equally. Raises DtlError where a phase would
    have no step, or the lengths do not add up to the run.
    """
    lengths = [_length_in_steps(phase.length, steps) for phase in phases]
    open_ended = lengths.count(None)
    remaining = steps - sum(length or 0 for length in lengths)
    are_shares = all(phase.length is not None and phase.length < 1 for phase in phases)
    if open_ended == 0 and abs(remaining) < len(lengths) and are_shares:
        lengths[-1] = (lengths[-1] or 0) + remaining  # of rounding
        remaining = 0
    if remaining < open_ended or (open_ended == 0 and remaining > 0) or 0 in lengths:
        raise DtlError.of(
            "strategy",
            f"the lengths of its phases take {steps - remaining} of the {steps} steps of the run"
            + (f", and {open_ended} phases share the rest" if open_ended else ""),
            "remove the length of the last phase, or change train.steps",
        )
    ends, end, filled = [], 0, 0
    for length in lengths:
        if length is None:
            filled += 1
            length = remaining * filled // open_ended - remaining * (filled - 1) // open_ended
        end += length
        ends.append(end)
    return ends


def check_adapter_fits_base(
    strategies: Sequence[Strategy], parameters: Sequence[PhaseParameters]
) -> None:
    """Raise DtlError where the run would export an adapter to a base that nobody has.

    That is so where the last phase exports only an adapter, and an earlier one has changed weights
    that are not in it.
    """
    *before, last = strategies
    if last.export_kind == "model" or not before:
        return
    exported = {_strip_peft_prefix(name) for name in parameters[-1].names}
    changed = {name for phase in parameters[:-1] for name in phase.names}
    if any(strategy.export_kind == "adapter" for strategy in before) or changed - exported:
        raise DtlError.of(
            f"strategy.{len(before)}",
            "the run would export an adapter to a base that its earlier phases have changed, and "
            "that is not exported",
            "move the adapter to the first phase, and end with full or partial",
        )


def _check_warmup(config: RunConfig, *, steps: int) -> str:
    """Return a warning if the warm-up is as long as the phase; raise DtlError where the config
    itself sets the number of steps."""
    warmup = config.optim.to_steps(config.optim.warmup, total_steps=steps)
    if config.optim.warmup < 1 or warmup < steps:
        return ""
    problem = f"the warm-up takes {warmup} steps, and the phase has {steps}"
    if config.train.steps is None:
        return f"; warning: {problem}"
    raise DtlError.of("optim.warmup", problem, "write fewer steps, or a share below 1, such as 0.1")


def _length_in_steps(length: float | None, steps: int) -> int | None:
    if length is None:
        return None
    return round(length * steps) if length < 1 else int(length)


def _strip_peft_prefix(name: str) -> str:
    """Return the name that a parameter has before PEFT wraps its model."""
    return name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
