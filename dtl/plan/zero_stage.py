"""Choose the ZeRO stage and whether the optimizer is offloaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec

from dtl.config.optimizers import OPTIMIZERS, Optimizer
from dtl.core.errors import DtlError
from dtl.core.units import format_bytes
from dtl.models.quantization import quantize
from dtl.plan.memory import USABLE_MEMORY, estimate_model_state
from dtl.plan.memory_estimate import (
    DeviceWork,
    estimate_export_bytes,
    estimate_offload_bytes,
)
from dtl.plan.records import DecisionLog, ExternalLaunch, ParameterCounts
from dtl.plan.request import PlanRequest

NO_COMPILER = (
    "DeepSpeed builds its CPU optimizer with a C++ compiler and ninja, and there is none here"
)
MODEL_STATE_SHARE = 0.7  # of the usable memory; the rest is for activations


@dataclass(frozen=True)
class Sharding:
    """A ZeRO stage, with the optimizer on the device ("none") or in main memory ("optimizer")."""

    stage: int
    offload: str


@dataclass(frozen=True)
class RunSize:
    """The processes of a run. `smallest_work`: what one example takes of a device besides the model
    state, at a ZeRO stage."""

    nodes: int
    data_parallel_size: int
    smallest_work: Callable[[int], DeviceWork]


@dataclass(frozen=True)
class _Limit:
    """The highest ZeRO stage at which the strategies of a run work, and whose limit it is."""

    stage: int
    strategy: str


def choose_sharding(
    request: PlanRequest,
    counts: ParameterCounts,
    *,
    run: RunSize,
    dtype: str,
    log: DecisionLog,
) -> Sharding:
    """Return what the external launcher or the config fixes, else the least sharding that fits.

    Raises DtlError where the optimizer, the strategy or the memory does not allow it.
    """
    optimizer = OPTIMIZERS[request.config.optim.name]
    _check_optimizer(request, optimizer)
    if optimizer.unshardable_reason is not None:
        log.add("ZeRO stage", 0, optimizer.unshardable_reason)
        return Sharding(0, "none")
    limit = _strategy_limit(request)
    chosen, reason = _fixed_sharding(request) or _least_sharding(
        request, counts, limit, run=run, dtype=dtype
    )
    _check_stage(request, chosen.stage, limit, reason)
    if chosen.offload != "none":
        _check_compiler(request)
    if chosen.stage > 0 and request.hardware.device == "cpu" and not request.hardware.has_compiler:
        chosen = Sharding(0, "none")
        reason = (
            f"ZeRO {_requested_stage(request)} was requested, but DeepSpeed builds its CPU "
            "operators with a C++ compiler and ninja, and there is none; the loss is the same "
            "(apt install g++, pip install ninja)"
        )
    log.add("ZeRO stage", chosen.stage, reason)
    if chosen.offload != "none":
        size = format_bytes(estimate_offload_bytes(counts, nodes=run.nodes))
        log.add("offload", chosen.offload, f"the optimizer takes {size} of a node's main memory")
    return chosen


def _strategy_limit(request: PlanRequest) -> _Limit:
    config = request.config
    names = (phase.name for phase in config.phases)
    lowest, name = min(
        zip(request.parts.strategies, names, strict=True), key=lambda pair: pair[0].max_zero_stage
    )
    stage = lowest.max_zero_stage
    return _Limit(min(stage, 2) if config.model.quantize == "int8" else stage, name)


def _fixed_sharding(request: PlanRequest) -> tuple[Sharding, str] | None:
    """Return what needs no estimate, with its reason; None on GPUs with nothing set."""
    external, layout = request.external, request.config.layout
    if external is not None and external.zero_stage is not None:
        return Sharding(
            external.zero_stage, external.offload or "none"
        ), f"fixed by {external.launcher}"
    if layout.zero_stage is not None:
        return Sharding(layout.zero_stage, layout.offload or "none"), "layout.zero_stage"
    if layout.offload == "optimizer":
        reason = "layout.offload needs ZeRO; stage 2 is the fastest that supports it"
        return Sharding(2, "optimizer"), reason
    if request.hardware.device == "cpu":
        return Sharding(0, "none"), "plain data parallelism: all processes share the main memory"
    return None


def _least_sharding(
    request: PlanRequest,
    counts: ParameterCounts,
    limit: _Limit,
    *,
    run: RunSize,
    dtype: str,
) -> tuple[Sharding, str]:
    hardware, data_parallel_size = request.hardware, run.data_parallel_size
    usable = hardware.memory_bytes * USABLE_MEMORY
    obstacle = _find_offload_obstacle(request, counts, run)
    for chosen in _candidates(limit.stage, data_parallel_size, can_offload=obstacle is None):
        state = estimate_model_state(
            counts,
            zero_stage=chosen.stage,
            data_parallel_size=data_parallel_size,
            dtype=dtype,
            grad_accum_dtype=request.config.layout.grad_accum_dtype,
            offload=chosen.offload,
        )
        needed = sum(state.values())
        export = estimate_export_bytes(counts, zero_stage=chosen.stage)
        work = run.smallest_work(chosen.stage)
        working = max(work.training, work.evaluation, export)
        if needed <= usable * MODEL_STATE_SHARE and needed + working <= usable:
            return chosen, f"the least sharding that fits: {format_bytes(needed)} per rank"
    raise DtlError.of(
        "layout",
        f"the model state takes {format_bytes(needed)} per rank at ZeRO {chosen.stage}"
        f"{' with offload' if chosen.offload != 'none' else ''}, and one example "
        f"{format_bytes(working)}, of {format_bytes(hardware.memory_bytes)} on {hardware.name}"
        + (f"; the optimizer cannot be offloaded: {obstacle}" if obstacle else ""),
        "use more processes or nodes, strategy lora (with model.quantize nf4), a smaller model or "
        "shorter examples",
    )


def _find_offload_obstacle(
    request: PlanRequest, counts: ParameterCounts, run: RunSize
) -> str | None:
    """Return why the optimizer cannot be offloaded; None where it can."""
    if (key := request.config.offload_blocker) is not None:
        return f"{key} does not work in main memory"
    if not request.hardware.has_compiler:
        return NO_COMPILER
    needed, free = estimate_offload_bytes(counts, nodes=run.nodes), request.hardware
    if free.host_memory_bytes is not None and needed > free.host_memory_bytes:
        available = format_bytes(free.host_memory_bytes)
        return f"it would take {format_bytes(needed)} of a node's {available} of main memory"
    return None


def _check_compiler(request: PlanRequest) -> None:
    """Raise DtlError where DeepSpeed could not build the optimizer that runs in main memory."""
    if request.hardware.device == "cuda" and not request.hardware.has_compiler:
        raise DtlError.of(
            "layout.offload",
            NO_COMPILER,
            "apt install g++ and pip install ninja, or set layout.offload to none",
        )


def _candidates(
    max_stage: int, data_parallel_size: int, *, can_offload: bool
) -> Iterator[Sharding]:
    """Yield from the fastest to the one that takes the least memory."""
    yield Sharding(0, "none")
    if data_parallel_size > 1:
        yield from (Sharding(stage, "none") for stage in (2, 3) if stage <= max_stage)
    if can_offload:
        yield Sharding(max_stage, "optimizer")


def _check_stage(request: PlanRequest, stage: int, limit: _Limit, reason: str) -> None:
    external = request.external
    if request.config.model.quantize == "int8" and stage == 3:
        raise DtlError.of(
            quantize.LOCATION,
            f"8-bit weights cannot be sharded by ZeRO 3 ({reason})",
            "set layout.zero_stage to 2, or model.quantize to nf4",
        )
    if stage > limit.stage:
        is_fixed = external is not None and external.zero_stage is not None
        raise DtlError.of(
            external.launcher if external is not None and is_fixed else "layout.zero_stage",
            f"{limit.strategy} with these options works up to ZeRO {limit.stage}, not at {stage}",
            f"set layout.zero_stage to {limit.stage}",
        )


def _check_optimizer(request: PlanRequest, optimizer: Optimizer) -> None:
    name = request.config.optim.name
    if optimizer.package is not None and find_spec(optimizer.package) is None:
        raise DtlError.of(
            "optim.name",
            f"{name} needs {optimizer.package}, which is not installed",
            "pip install 'dtl[quantize]', or use adamw",
        )
    if optimizer.needs_gpu and request.hardware.device == "cpu":
        raise DtlError.of(
            "optim.name",
            f"{name} moves its moments between a GPU and main memory, and there is no GPU",
            f"use {name.removeprefix('paged_')}, which computes the same updates",
        )
    if request.external is not None:
        _check_optimizer_under_launcher(request, optimizer, request.external)


def _check_optimizer_under_launcher(
    request: PlanRequest, optimizer: Optimizer, external: ExternalLaunch
) -> None:
    config = request.config
    if optimizer.unshardable_reason is not None and external.zero_stage:
        raise DtlError.of(
            "optim.name",
            f"{config.optim.name} does not work with ZeRO {external.zero_stage}, which "
            f"{external.launcher} fixes: {optimizer.unshardable_reason}",
            f"start it without DeepSpeed, or use {optimizer.shardable_alternative}",
        )
    if external.offload == "optimizer" and config.offload_blocker is not None:
        raise DtlError.of(
            external.launcher,
            f"it offloads the optimizer, and {config.offload_blocker} does not work in main memory",
            "start it without offload",
        )


def _requested_stage(request: PlanRequest) -> int | None:
    external = request.external
    if external is not None and external.zero_stage is not None:
        return external.zero_stage
    return request.config.layout.zero_stage
