"""Plan a run: layout, ZeRO stage, micro-batch, phases and estimates, each with its reason.

Every decision is a pure function of the request in a module of its own: `processes`, `precision`,
`zero_stage`, `activation_memory`, `micro_batch`, `phases`, `feature_cache` and `disk`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dtl.core.errors import DtlError
from dtl.models.quantization import quantize
from dtl.plan.activation_memory import (
    ActivationBudget,
    ModelSizes,
    choose_activation_checkpointing,
    log_logits,
)
from dtl.plan.activation_trace import open_tracer
from dtl.plan.attention import check_attention
from dtl.plan.deepspeed_config import build_deepspeed_config
from dtl.plan.device_work import WorkEstimates
from dtl.plan.disk import estimate_disk
from dtl.plan.evaluation import (
    EvaluationMemory,
    choose_evaluation_batch,
    estimate_evaluation_bytes,
)
from dtl.plan.feature_cache import FirstPhase, decide_feature_cache
from dtl.plan.memory import estimate_model_state
from dtl.plan.memory_estimate import (
    DeviceWork,
    check_model_state_fits,
    estimate_memory,
    log_memory,
    usable_bytes,
)
from dtl.plan.micro_batch import choose_micro_batch, count_accumulation_steps
from dtl.plan.phases import check_adapter_fits_base, plan_phases
from dtl.plan.precision import choose_dtype, choose_grad_accum_dtype
from dtl.plan.processes import choose_processes
from dtl.plan.records import DecisionLog, Layout, MemoryEstimate, ParameterCounts, Plan
from dtl.plan.request import PlanRequest
from dtl.plan.router_losses import log_router_losses
from dtl.plan.trainable_parameters import PhaseParameters, count_trainable_parameters
from dtl.plan.zero_stage import RunSize, Sharding, choose_sharding


def make_plan(request: PlanRequest) -> Plan:
    """Return the plan of a run, with one reason for each decision.

    Raises DtlError where the config, the strategies or the hardware do not allow one.
    """
    log = DecisionLog()
    config, batching = request.config, request.batching

    # 1. What is trained, and which phase trains most: memory is planned for that one.
    trained = _count_parameters_of_phases(request)
    counts = max((phase.counts for phase in trained), key=lambda counts: counts.trainable)

    # 2. Where it runs, how it is sharded, and what a step and an evaluation hold.
    reason = next((each.all_logits_reason for each in trained if each.all_logits_reason), None)
    sizes = ModelSizes.from_config(request.model_config, computes_all_logits=reason is not None)
    phase = next(number for number, each in enumerate(trained) if each.counts is counts)
    model = TrainedModel(counts, sizes, phase)
    layout, model_state, memory = _choose_layout(request, model, log)

    # 3. How long it trains.
    steps = config.train.steps or batching.count_steps(config.train.epochs or 0)
    per_epoch = batching.count_steps_in_epoch(0)
    which = "per epoch" if batching.sizes is None else "in the first epoch"
    log.add("steps", steps, f"{per_epoch} {which} of {batching.examples} examples")
    phases = plan_phases(request, trained, steps=steps, log=log)

    # 4. How it computes the loss of the task, and what it adds to it.
    log_logits(request, sizes, reason, log)
    log_router_losses(request, log)

    # 5. Whether the first phase trains its head on cached features.
    first = FirstPhase(phases[0].last_step, per_epoch, trained[0].inseparable_reason)
    caches_features = decide_feature_cache(request, first, log)

    # 6. What it writes.
    estimate_disk(request, counts, dtype=layout.dtype, log=log)

    return Plan(
        layout=layout,
        parameters=counts,
        model_state=model_state,
        phases=(replace(phases[0], caches_features=caches_features), *phases[1:]),
        steps=steps,
        steps_per_epoch=per_epoch,
        deepspeed=build_deepspeed_config(layout, gradient_clip=config.optim.gradient_clip),
        decisions=tuple(log.decisions),
        memory=memory,
    )


def _count_parameters_of_phases(request: PlanRequest) -> Sequence[PhaseParameters]:
    config, parts = request.config, request.parts
    if config.model.quantize is not None:
        quantize.check_bitsandbytes(request.hardware.device)
    trained = [
        count_trainable_parameters(config, parts.for_phase(number), request.dataset_stats)
        for number in range(len(parts.strategies))
    ]
    check_adapter_fits_base(parts.strategies, trained)
    if not any(phase.trains_new_rows for phase in trained):
        raise DtlError.of(
            "strategy",
            f"{' and '.join(phase.name for phase in config.phases)} does not train the rows of "
            "added tokens",
            "take strategy lora or full, or partial with embeddings=true",
        )
    return trained


@dataclass(frozen=True)
class TrainedModel:
    """The model in the phase that trains most. `phase`: its index."""

    counts: ParameterCounts
    sizes: ModelSizes
    phase: int


def _choose_layout(
    request: PlanRequest, model: TrainedModel, log: DecisionLog
) -> tuple[Layout, dict[str, int], MemoryEstimate]:
    """Return the layout, the bytes of model state on one rank, and the memory of all parts."""
    config, counts = request.config.layout, model.counts

    # a. Processes, one per device.
    processes = choose_processes(request, log)

    # b. Dtype.
    dtype = choose_dtype(request, log)
    check_attention(request, dtype=dtype, log=log)

    # c. ZeRO stage and offload, by the memory of the model state and of one example.
    tracer = open_tracer(request, model.phase, model.sizes, dtype=dtype, log=log)
    work = WorkEstimates(request, model.sizes, dtype, tracer)
    size = processes.parallel_dims.data_parallel_size
    run = RunSize(processes.nodes, size, work.of_one_example)
    sharding, model_state = _shard_model(request, counts, run, dtype=dtype, log=log)
    check_model_state_fits(
        sum(model_state.values()), processes=processes.per_node, hardware=request.hardware
    )
    grad_accum_dtype = choose_grad_accum_dtype(
        config, dtype=dtype, zero_stage=sharding.stage, log=log
    )

    # d. Activation checkpointing and micro-batch, by the memory that is left.
    free = usable_bytes(request.hardware) - sum(model_state.values())
    budget, evaluation = work.open_budgets(sharding.stage, free_bytes=free)
    checkpointing = choose_activation_checkpointing(request, budget, log)
    micro_batch = choose_micro_batch(
        request, budget, data_parallel_size=size, checkpointing=checkpointing, log=log
    )

    # e. Gradient accumulation steps: the global batch in micro-batches.
    accumulation_steps = count_accumulation_steps(
        request, micro_batch, data_parallel_size=size, log=log
    )

    # f. Evaluation batch, by the same memory.
    batch = choose_evaluation_batch(request, evaluation, free_bytes=free, log=log)
    layout = Layout(
        nodes=processes.nodes,
        processes_per_node=processes.per_node,
        zero_stage=sharding.stage,
        offload=sharding.offload,
        micro_batch=micro_batch.examples,
        packed_positions=micro_batch.packed_positions,
        accumulation_steps=accumulation_steps,
        activation_checkpointing=checkpointing,
        dtype=dtype,
        device=request.hardware.device,
        grad_accum_dtype=grad_accum_dtype,
        evaluation_batch=batch,
    )

    # g. What each part of the run takes.
    memory = _estimate_parts(request, counts, layout, budget, evaluation)
    log_memory(memory, log)
    return layout, model_state, memory


def _shard_model(
    request: PlanRequest, counts: ParameterCounts, run: RunSize, *, dtype: str, log: DecisionLog
) -> tuple[Sharding, dict[str, int]]:
    """Return the sharding, and the bytes of model state on one rank."""
    sharding = choose_sharding(request, counts, run=run, dtype=dtype, log=log)
    model_state = estimate_model_state(
        counts,
        zero_stage=sharding.stage,
        data_parallel_size=run.data_parallel_size,
        dtype=dtype,
        grad_accum_dtype=request.config.layout.grad_accum_dtype,
        offload=sharding.offload,
    )
    return sharding, model_state


def _estimate_parts(
    request: PlanRequest,
    counts: ParameterCounts,
    layout: Layout,
    budget: ActivationBudget,
    evaluation: EvaluationMemory,
) -> MemoryEstimate:
    """Return the memory of every part of the run."""
    training = budget.estimate_bytes(
        layout.micro_batch, checkpointing=layout.activation_checkpointing
    )
    batch = layout.evaluation_batch
    return estimate_memory(
        counts,
        layout,
        DeviceWork(training, estimate_evaluation_bytes(request, evaluation, batch)),
        model_state=usable_bytes(request.hardware) - budget.free_bytes,
        exports_full_model=request.parts.strategies[-1].export_kind == "model",
        hardware=request.hardware,
    )
