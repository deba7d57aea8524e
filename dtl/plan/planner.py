"""The decision: a pure function of the config, of what learns, and of the machine."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any

import numpy as np

from dtl.assembly.parts import Parts
from dtl.config.optimizers import OPTIMIZERS, Optimizer
from dtl.config.schema import RunConfig
from dtl.core.errors import DtlError
from dtl.core.units import format_bytes, format_count
from dtl.data.batching import Batching
from dtl.data.order import accumulation, micro_batches, padding, room_for
from dtl.models.head_input import why_inseparable
from dtl.models.load import weightless
from dtl.models.quantization import quantize
from dtl.plan.deepspeed_config import deepspeed_config
from dtl.plan.feature_cache import Reading, plan_features
from dtl.plan.memory import MASTER, WIDTH, disk_bytes, model_state
from dtl.plan.parameter_groups import moment_bytes, updates
from dtl.plan.phases import Learning, last_steps, refuse_lost
from dtl.plan.records import Decision, Hardware, Layout, OuterLaunch, Parameters, PhasePlan, Plan
from dtl.tasks.base import DatasetStats

ROOM = 0.9  # share of a device's memory that may be planned for
MICRO_BATCH_CPU = 8
MICRO_BATCH_MOST = 64
BATCHES_LOOKED_AT = 200  # for what is padded
PADDING_TOLD = 0.1  # share of what is read, above which it is told


@dataclass
class _Log:
    chosen: list[Decision] = field(default_factory=list)

    def note(self, key: str, value: object, reason: str) -> None:
        self.chosen.append(Decision(key, str(value), reason))


@dataclass(frozen=True)
class _Work:
    """What is to be laid out."""

    counts: Parameters
    batching: Batching
    lengths: np.ndarray  # of the examples, in the unit
    unit: str
    settings: Any  # the model's config

    @property
    def longest(self) -> int:
        return int(self.lengths.max())


@dataclass(frozen=True)
class _Reach:
    """How far the strategies of a run go together: the highest ZeRO stage, and whose it is; which
    one cannot recompute activations."""

    zero: int
    zero_of: str
    keeps_activations: str | None


def _reach(config: RunConfig, parts: Parts) -> _Reach:
    named = list(zip(parts.strategies, (phase.name for phase in config.phases), strict=True))
    lowest, name = min(named, key=lambda pair: pair[0].max_zero_stage)
    keeping = [name for strategy, name in named if not strategy.supports_checkpointing]
    highest = (
        min(lowest.max_zero_stage, 2) if config.model.quantize == "int8" else lowest.max_zero_stage
    )
    return _Reach(highest, name, next(iter(keeping), None))


def what_learns(config: RunConfig, parts: Parts, facts: DatasetStats) -> Learning:
    """Apply the strategy to the weightless model, and look."""
    import torch

    loaded = weightless(
        config.model, head=parts.task.auto_class, changes=parts.task.head_config(facts)
    )
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run gives them again, into its log
        model = parts.adapt(loaded)
    rate, _ = _learning_rate(config, parts)
    how = updates(model, config.optim, learning_rate=rate, new=loaded.new)
    learning = {name: model.get_parameter(name) for name in how}
    count = sum(parameter.numel() for parameter in learning.values())
    moments = sum(moment_bytes(config.optim.name, learning[name], how[name]) for name in how)
    averaged = config.train.ema is not None
    parameters = Parameters(
        learning=count,
        frozen=sum(parameter.numel() for parameter in model.parameters()) - count,
        quantized=quantize.footprint(model, config.model),
        kept=moments + count * (MASTER * averaged + parts.strategy.extra_state_bytes),
        starts=sum(learning[name].numel() for name in how if how[name].pull),
    )
    return Learning(frozenset(learning), parameters, why_inseparable(model))


def _learning_rate(config: RunConfig, parts: Parts) -> tuple[float, str]:
    """The highest of the phase, and whose it is."""
    phase, name = config.phases[parts.phase], config.optim.name
    if phase.learning_rate is not None:
        return phase.learning_rate, "of the phase"
    if config.optim.learning_rate is not None:
        return config.optim.learning_rate, "optim.learning_rate"
    share = OPTIMIZERS[name].rate
    whose = f"usual for {phase.name}"
    if share != 1:
        whose += f", times {share:g} for {name}"
    return parts.strategy.learning_rate * share, whose


def make_plan(
    config: RunConfig,
    parts: Parts,
    *,
    facts: DatasetStats,
    settings: Any,
    batching: Batching,
    lengths: np.ndarray,
    hardware: Hardware,
    outer: OuterLaunch | None = None,
    disk_free: int | None = None,
    reading: Reading | None = None,
) -> Plan:
    """Layout, ZeRO stage and estimate, with one reason for each choice.

    `disk_free`: bytes left where the run folder will be; None: not looked at. `reading`: what the
    data say of features that are kept; left out: nothing is in their way.
    """
    log = _Log()
    if config.model.quantize is not None:
        quantize.refuse_unavailable(hardware.device)
    learning = [
        what_learns(config, parts.in_phase(number), facts)
        for number in range(len(parts.strategies))
    ]
    refuse_lost(parts.strategies, learning)
    most = max((phase.parameters for phase in learning), key=lambda counts: counts.learning)
    work = _Work(most, batching, lengths, parts.task.length_unit, settings)
    nodes, processes = _processes(config, batching, hardware, outer, log)
    dtype = _dtype(config, hardware, log)
    reach = _reach(config, parts)
    zero, offload = _zero(config, work, hardware, nodes * processes, dtype, outer, reach, log)
    state = model_state(
        work.counts,
        zero=zero,
        ranks=nodes * processes,
        dtype=dtype,
        offload=offload,
    )
    room = int(hardware.memory * ROOM) - sum(state.values())
    checkpointing = _checkpointing(config, work, room, dtype, reach, log)
    micro = _micro_batch(config, work, room, hardware, nodes * processes, checkpointing, dtype, log)
    turns = accumulation_steps(config, work, nodes * processes, micro, log)
    layout = Layout(
        nodes, processes, zero, offload, micro, turns, checkpointing, dtype, hardware.device
    )
    per_epoch = batching.steps_of(0)
    steps = config.train.steps or batching.steps_in(config.train.epochs or 0)
    which = "an epoch" if batching.sizes is None else "in the first epoch"
    log.note("steps", steps, f"{per_epoch} {which} of {batching.examples} examples")
    phases = _phases(config, parts, learning, steps, log)
    width = getattr(settings, "hidden_size", None)
    kept, told = plan_features(
        config,
        parts,
        reading or Reading(None, lengths, None),
        inseparable=learning[0].inseparable,
        width=width if isinstance(width, int) else 0,
        steps=phases[0].last,
        per_epoch=per_epoch,
    )
    if told is not None:
        log.chosen.append(told)
    if disk_free is not None:
        _disk(config, parts, work.counts, dtype, disk_free, log)
    return Plan(
        layout=layout,
        parameters=work.counts,
        model_state=state,
        phases=(replace(phases[0], caches_features=kept), *phases[1:]),
        steps=steps,
        steps_per_epoch=per_epoch,
        deepspeed=deepspeed_config(layout, gradient_clip=config.optim.gradient_clip),
        choices=tuple(log.chosen),
    )


def _phases(
    config: RunConfig, parts: Parts, learning: list[Learning], steps: int, log: _Log
) -> tuple[PhasePlan, ...]:
    """Steps and learning rate of each phase."""
    ends = last_steps(config.phases, steps=steps)
    made: list[PhasePlan] = []
    for number, (phase, learns, last) in enumerate(zip(config.phases, learning, ends, strict=True)):
        before = made[-1].last if made else 0
        rate, whose = _learning_rate(config, parts.in_phase(number))
        reason = f"{whose}; {config.optim.schedule} schedule"
        if len(ends) > 1:
            count = format_count(learns.parameters.learning)
            log.note(f"phase {len(made) + 1}", phase.name, f"to step {last}, {count} learning")
        if (former := parts.strategies[number].continues) is not None:
            log.note(
                "adapter", former, f"goes on learning, with the form that it has: {phase.name}"
            )
        log.note("learning rate", f"{rate:g}", reason)
        made.append(PhasePlan(phase.name, before, last, rate, learns.parameters))
    return tuple(made)


def _disk(
    config: RunConfig, parts: Parts, counts: Parameters, dtype: str, free: int, log: _Log
) -> None:
    """What the run will write, and a warning where that is more than there is."""
    options = config.train
    best = options.keep_best and options.evaluate_every is not None
    kept = options.keep + best
    if options.spike is not None:  # those that the run may have to go back to
        kept += -(-options.spike.back // (options.save_every or options.spike.back)) + 1
    whole = parts.strategies[-1].exports == "model"
    wanted = disk_bytes(counts, dtype=dtype, kept=kept, whole_export=whole)
    has = f"{kept} checkpoints, one being written, the export; {format_bytes(free)} are free"
    if wanted > free:
        has = f"warning: more than the {format_bytes(free)} that are free in {config.run.dir}"
    log.note("disk", format_bytes(wanted), has)


def _processes(
    config: RunConfig,
    batching: Batching,
    hardware: Hardware,
    outer: OuterLaunch | None,
    log: _Log,
) -> tuple[int, int]:
    asked, examples = config.layout, batching.examples_a_step
    if outer is not None:
        nodes, uneven = divmod(outer.ranks, outer.ranks_a_node)
        if uneven:
            raise DtlError.of(
                outer.launcher,
                f"{outer.ranks} processes do not divide over nodes of {outer.ranks_a_node}",
                "start the same number on each node",
            )
        log.note("processes", outer.ranks, f"fixed by {outer.launcher}")
        _check_batch_size(config, examples, outer.ranks)
        return nodes, outer.ranks_a_node
    if asked.processes is not None:
        if hardware.device == "cuda" and asked.nodes == 1 and asked.processes > hardware.devices:
            raise DtlError.of(
                "layout.processes",
                f"{asked.processes} processes want a GPU each; this machine has {hardware.devices}",
                f"set layout.processes to {hardware.devices} or less",
            )
        _check_batch_size(config, examples, asked.nodes * asked.processes)
        log.note("processes", asked.nodes * asked.processes, "layout.processes")
        return asked.nodes, asked.processes
    found = hardware.devices if hardware.device == "cuda" else 1
    processes = max(1, min(found, examples // asked.nodes))
    reason = f"one a GPU ({hardware.name})" if hardware.device == "cuda" else "no GPU was found"
    log.note("processes", asked.nodes * processes, reason)
    return asked.nodes, processes


def _check_batch_size(config: RunConfig, examples: int, ranks: int) -> None:
    """A process without examples in most steps is a mistake, not a layout."""
    if ranks <= examples:
        return
    size = config.train.global_batch
    if size.unit == "examples":
        problem, fix = f"{size} cannot feed {ranks} processes", f"to {ranks} or more"
    else:
        problem = f"{size} are {examples} examples on average, and cannot feed {ranks} processes"
        fix = "higher, or use fewer processes"
    raise DtlError.of("train.global_batch", problem, f"set train.global_batch {fix}")


def _dtype(config: RunConfig, hardware: Hardware, log: _Log) -> str:
    asked = config.model.dtype
    if asked == "fp16" and hardware.device == "cpu":
        raise DtlError.of(
            "model.dtype", "fp16 does not train on a CPU", "set model.dtype to bf16 or fp32"
        )
    if asked == "bf16" and not hardware.bf16:
        raise DtlError.of(
            "model.dtype",
            f"{hardware.name} has no bf16 arithmetic",
            "set model.dtype to fp16 or fp32",
        )
    if asked:
        log.note("dtype", asked, "model.dtype")
        return asked
    if hardware.device == "cpu":
        log.note("dtype", "fp32", "no GPU")
        return "fp32"
    dtype = "bf16" if hardware.bf16 else "fp16"
    log.note("dtype", dtype, f"the half precision that {hardware.name} computes in")
    return dtype


def _zero(
    config: RunConfig,
    work: _Work,
    hardware: Hardware,
    ranks: int,
    dtype: str,
    outer: OuterLaunch | None,
    reach: _Reach,
    log: _Log,
) -> tuple[int, str]:
    optimizer = OPTIMIZERS[config.optim.name]
    _refuse_optimizer(config, optimizer, hardware, outer)
    if optimizer.cut is not None:
        log.note("ZeRO stage", 0, optimizer.cut)
        return 0, "none"
    highest = reach.zero
    stage, offload, reason = _wanted_zero(config, work, hardware, ranks, dtype, outer, highest)
    if config.model.quantize == "int8" and stage == 3:
        raise DtlError.of(
            quantize.PLACE,
            f"weights of 8 bits cannot be shared out by ZeRO 3 ({reason})",
            "set layout.zero to 2, or model.quantize to nf4",
        )
    if stage > highest:
        raise DtlError.of(
            outer.launcher if outer is not None and outer.zero is not None else "layout.zero",
            f"{reach.zero_of}, as it is set, is right up to ZeRO {highest}, not at {stage}",
            f"set layout.zero to {highest}",
        )
    if stage > 0 and hardware.device == "cpu" and not hardware.compiler:
        stage, offload = 0, "none"
        reason = (
            f"ZeRO {_asked(config, outer)} was asked for, but DeepSpeed builds its CPU part with a "
            "C++ compiler and ninja, and there is none; the loss is the same (apt install g++, "
            "pip install ninja)"
        )
    log.note("ZeRO stage", stage, reason)
    if offload != "none":
        log.note("offload", offload, "optimizer in main memory")
    return stage, offload


def _refuse_optimizer(
    config: RunConfig, optimizer: Optimizer, hardware: Hardware, outer: OuterLaunch | None
) -> None:
    name = config.optim.name
    if optimizer.library is not None and find_spec(optimizer.library) is None:
        raise DtlError.of(
            "optim.name",
            f"{name} needs {optimizer.library}, which is not installed",
            "pip install 'dtl[quantize]', or take adamw",
        )
    if optimizer.needs_gpu and hardware.device == "cpu":
        raise DtlError.of(
            "optim.name",
            f"{name} moves its moments between a GPU and main memory, and there is no GPU",
            f"take {name.removeprefix('paged_')}, which keeps the same numbers",
        )
    if outer is None:
        return
    if optimizer.cut is not None and outer.zero:
        raise DtlError.of(
            "optim.name",
            f"{name} does not go with ZeRO {outer.zero}, which {outer.launcher} fixes: "
            f"{optimizer.cut}",
            f"start it without DeepSpeed, or take {optimizer.nearest}",
        )
    if outer.offload == "optimizer" and config.keeps_on_device is not None:
        raise DtlError.of(
            outer.launcher,
            f"it offloads the optimizer, and {config.keeps_on_device} does not work in main memory",
            "start it without offload",
        )


def _asked(config: RunConfig, outer: OuterLaunch | None) -> object:
    return outer.zero if outer and outer.zero is not None else config.layout.zero


def _wanted_zero(
    config: RunConfig,
    work: _Work,
    hardware: Hardware,
    ranks: int,
    dtype: str,
    outer: OuterLaunch | None,
    highest: int,
) -> tuple[int, str, str]:
    if outer is not None and outer.zero is not None:
        return outer.zero, outer.offload or "none", f"fixed by {outer.launcher}"
    asked = config.layout
    if asked.zero is not None:
        return asked.zero, asked.offload or "none", "layout.zero"
    if asked.offload == "optimizer":
        return 2, "optimizer", "layout.offload needs ZeRO; 2 is the quickest that has it"
    if hardware.device == "cpu":
        return 0, "none", "plain data parallelism: main memory is shared anyway"
    room = hardware.memory * ROOM * 0.7  # the rest is for activations
    stages = [(0, "none")] if ranks == 1 else [(0, "none"), (2, "none"), (3, "none")]
    offloads = config.keeps_on_device is None
    stages = [*stages, *([(3, "optimizer")] * offloads)]
    if highest < 3:
        stages = [(stage, offload) for stage, offload in stages if stage <= highest]
        stages += [(highest, "optimizer")] * offloads
    for stage, offload in stages:
        held = sum(
            model_state(work.counts, zero=stage, ranks=ranks, dtype=dtype, offload=offload).values()
        )
        if held <= room:
            return stage, offload, f"the least sharding that fits: {format_bytes(held)} a rank"
    raise DtlError.of(
        "layout",
        f"the model state alone takes {format_bytes(held)} a rank at ZeRO {stage}"
        f"{' with offload' if offload != 'none' else ''}, of {format_bytes(hardware.memory)} on "
        f"{hardware.name}",
        "use more processes or nodes, strategy lora (with model.quantize nf4), or a smaller model",
    )


def _activation_bytes(work: _Work, examples: int, dtype: str, *, checkpointing: bool) -> int:
    """What a forward pass keeps: in half precision about 34 bytes a token, width and layer
    (arXiv:2205.05198), 2 when checkpointed, and the logits with their gradient in fp32."""
    settings = work.settings
    width = getattr(settings, "hidden_size", None) or 0
    layers = getattr(settings, "num_hidden_layers", None) or 0
    vocabulary = getattr(settings, "vocab_size", None) or 0
    tokens = examples * work.longest
    a_layer = 2 if checkpointing else 34
    inner = tokens * width * layers * a_layer * WIDTH[dtype] // 2
    return int(inner + tokens * vocabulary * (8 + WIDTH[dtype]))


def _checkpointing(
    config: RunConfig, work: _Work, room: int, dtype: str, reach: _Reach, log: _Log
) -> bool:
    asked, name = config.layout.activation_checkpointing, reach.keeps_activations
    if asked and name is not None:
        raise DtlError.of(
            "layout.activation_checkpointing",
            f"strategy {name} does not go with recomputed activations",
            "leave it out and take a smaller layout.micro_batch, or take strategy lora",
        )
    if name is not None:
        log.note("activation checkpointing", "off", f"strategy {name} does not go with it")
        return False
    if asked is not None:
        log.note(
            "activation checkpointing", "on" if asked else "off", "layout.activation_checkpointing"
        )
        return asked
    if _activation_bytes(work, 1, dtype, checkpointing=False) <= room:
        log.note("activation checkpointing", "off", "one example's activations fit without it")
        return False
    log.note("activation checkpointing", "on", "one example's activations would not fit otherwise")
    return True


def _micro_batch(
    config: RunConfig,
    work: _Work,
    room: int,
    hardware: Hardware,
    ranks: int,
    checkpointing: bool,
    dtype: str,
    log: _Log,
) -> int:
    share = _share(work.batching, ranks)
    if config.layout.micro_batch is not None:
        micro = min(config.layout.micro_batch, share)
        log.note("micro batch", micro, "layout.micro_batch")
        return micro
    most = MICRO_BATCH_CPU if hardware.device == "cpu" else MICRO_BATCH_MOST
    micro = min(share, most)
    while micro > 1 and _activation_bytes(work, micro, dtype, checkpointing=checkpointing) > room:
        micro = -(-micro // 2)
    if work.batching.sizes is None:  # none of them smaller than it must be
        micro = math.ceil(share / math.ceil(share / micro))
    log.note("micro batch", micro, f"examples of up to {work.longest} {work.unit} that fit at once")
    return micro


def _share(batching: Batching, ranks: int) -> int:
    """Examples that a rank gets of a global batch at most; of one that counts tokens, all."""
    return math.ceil(batching.most / ranks) if batching.sizes is None else batching.examples


def accumulation_steps(config: RunConfig, work: _Work, ranks: int, micro: int, log: _Log) -> int:
    """Micro-batches that a rank runs in a step, and what they pad, seen in the first batches."""
    batching, size = work.batching, config.train.global_batch
    room = None if batching.sizes is None else room_for(micro, work.lengths)
    dealt = [
        micro_batches(batch, work.lengths, ranks=ranks, micro_batch=micro, room=room)
        for batch in batching.epoch(0)[:BATCHES_LOOKED_AT]
    ]
    if room is None:
        turns = accumulation(batching.most, ranks=ranks, micro_batch=micro)
        log.note(
            "accumulation", turns, f"{size} a step = {ranks} ranks x {turns} x at most {micro}"
        )
    else:
        turns = max(map(len, dealt))
        held = f"{ranks} ranks x up to {turns} x at most {room} {work.unit}, padded"
        log.note("accumulation", turns, f"{size} a step = {held}")
    positions, empty = padding([turn for batch in dealt for turn in batch], work.lengths)
    if empty > PADDING_TOLD * positions:
        told = "" if batching.lengths is not None else "; train.group_by_length=true makes it less"
        log.note("padding", f"{empty / positions:.0%}", f"of the {work.unit} that are read{told}")
    return turns
