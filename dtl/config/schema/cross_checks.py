"""Checks over several sections of a config: what does not work together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil

from dtl.config.optimizers import OPTIMIZERS
from dtl.config.schema.base import ConfigFault
from dtl.config.schema.data import Data
from dtl.config.schema.layout import Layout
from dtl.config.schema.model import Model
from dtl.config.schema.optim import Optim
from dtl.config.schema.plugins import Phase, TaskConfig
from dtl.config.schema.train import Train


def phase_faults(phases: Sequence[Phase], optim: Optim, train: Train) -> Iterator[ConfigFault]:
    """Yield faults of a list of phases, and of keys that allow a single strategy only."""
    if not phases:
        yield ConfigFault(
            "strategy", problem="the list is empty", fix="set the strategy of each phase"
        )
    shares = sum(phase.length for phase in phases if phase.length and phase.length < 1)
    if shares > 1:
        yield ConfigFault(
            "strategy",
            problem=f"the lengths of the phases sum to {shares:g} of the run",
            fix="give shares whose sum is 1, or leave lengths out",
        )
    for section, key, value in (
        ("optim", "l2_sp", optim.l2_sp),
        ("train", "ema_decay", train.ema_decay),
        ("train", "average_checkpoints", train.average_checkpoints),
    ):
        if len(phases) > 1 and value is not None:
            yield ConfigFault(
                section,
                key,
                problem="it works with one strategy only: each phase starts from other weights",
                fix=f"remove {section}.{key}, or use one strategy",
            )


def batch_faults(data: Data, train: Train, layout: Layout) -> Iterator[ConfigFault]:
    """Yield faults of the batch size: every process needs an example in every step."""
    if data.train.streaming:
        yield from _streaming_faults(train)
    if train.global_batch.unit != "examples":
        return  # the number of examples in a step depends on the data
    examples = train.global_batch.limit
    processes = layout.nodes * (layout.processes_per_node or 1)
    per_process = ceil(examples / processes)
    if processes > examples:
        yield ConfigFault(
            "train",
            "global_batch",
            problem=f"{examples} examples per step are too few for {processes} processes",
            fix=f"set train.global_batch to {processes} or more, or use fewer processes",
        )
    elif layout.micro_batch is not None and layout.micro_batch > per_process:
        yield ConfigFault(
            "layout",
            "micro_batch",
            problem=f"{layout.micro_batch} is more than the {per_process} examples that a process "
            f"gets of a global batch of {examples}",
            fix=f"set layout.micro_batch to {per_process} or less, or raise train.global_batch",
        )


def _streaming_faults(train: Train) -> Iterator[ConfigFault]:
    """Yield keys that need the length of a row before it is read."""
    if (unit := train.global_batch.unit) != "examples":
        yield ConfigFault(
            "train",
            "global_batch",
            problem=f"the number of {unit} of a row is unknown while data.train is streamed",
            fix="write it as a number of examples, such as 16, or remove streaming",
        )
    if train.group_by_length:
        yield ConfigFault(
            "train",
            "group_by_length",
            problem="the length of a row is unknown while data.train is streamed",
            fix="remove it, or remove streaming",
        )


def optimizer_faults(optim: Optim, train: Train, layout: Layout) -> Iterator[ConfigFault]:
    """Yield faults of an optimizer that ZeRO cannot shard or offload."""
    optimizer = OPTIMIZERS[optim.name]
    offloads = layout.offload == "optimizer"
    if optimizer.unshardable_reason is not None and (layout.zero_stage or offloads):
        yield ConfigFault(
            "optim",
            "name",
            problem=f"{optim.name} does not work with ZeRO: {optimizer.unshardable_reason}",
            fix="set layout.zero_stage to 0 and layout.offload to none, or optim.name to "
            f"{optimizer.shardable_alternative}",
        )
    elif offloads and (key := offload_blocker(optim, train)) is not None:
        yield ConfigFault(
            "layout",
            "offload",
            problem=f"{key} does not work in main memory",
            fix="set layout.offload to none and layout.zero_stage to 3",
        )


def offload_blocker(optim: Optim, train: Train) -> str | None:
    """Return the optimizer or key that prevents offloading the optimizer, or None."""
    if not OPTIMIZERS[optim.name].supports_offload:
        return optim.name
    if optim.l2_sp is not None:
        return "optim.l2_sp"
    return "train.ema_decay" if train.ema_decay is not None else None


def quantization_faults(model: Model, layout: Layout) -> Iterator[ConfigFault]:
    """Yield int8 with ZeRO 3: bitsandbytes has two copies of the weights, and one would stay."""
    if model.quantize == "int8" and layout.zero_stage == 3:
        yield ConfigFault(
            "model",
            "quantize",
            problem="ZeRO 3 cannot shard 8-bit weights",
            fix="set layout.zero_stage to 2, or model.quantize to nf4",
        )


def average_faults(data: Data, train: Train) -> Iterator[ConfigFault]:
    """Yield averages of weights that have no checkpoints, or no score to choose them by."""
    settings = {
        "ema": ("ema_decay", train.ema_decay),
        "average": ("average_checkpoints", train.average_checkpoints),
    }
    if train.export in settings and settings[train.export][1] is None:
        key = settings[train.export][0]
        yield ConfigFault(
            "train",
            "export",
            problem=f"train.{key} is not set",
            fix=f"set train.{key}, or train.export to last",
        )
    for export, (key, value) in settings.items():
        if value is not None and not _has_held_out_rows(data) and train.export != export:
            yield ConfigFault(
                "train",
                key,
                problem="there are no held-out examples to show whether the average is better",
                fix=f"add data.eval or data.eval_fraction, or set train.export to {export}",
            )
    number = train.average_checkpoints
    if number is not None and number > train.keep_last:
        yield ConfigFault(
            "train",
            "average_checkpoints",
            problem=f"{number} checkpoints are averaged, but train.keep_last is {train.keep_last}",
            fix=f"set train.keep_last to {number}",
        )
    if number is not None and train.save_every is None:
        yield ConfigFault(
            "train",
            "average_checkpoints",
            problem="there is only one checkpoint, at the end",
            fix="set train.save_every",
        )


def evaluation_faults(task: TaskConfig, data: Data, train: Train) -> Iterator[ConfigFault]:
    """Yield keys that need held-out examples or evaluations that the config does not have."""
    if task.group_by and not _has_held_out_rows(data):
        yield ConfigFault(
            "task",
            "group_by",
            problem="there are no held-out examples to score",
            fix="add data.eval or data.eval_fraction, or remove task.group_by",
        )
    if train.export == "best" and train.evaluate_every is None:
        yield ConfigFault(
            "train",
            "export",
            problem="the best step is unknown: only the last step is evaluated",
            fix="set train.evaluate_every, or train.export to last",
        )
    if train.export == "best" and not train.keep_best:
        yield ConfigFault(
            "train",
            "keep_best",
            problem="the best checkpoint is to be exported, but it is not saved",
            fix="set train.keep_best to true, or train.export to last",
        )
    if train.evaluate_every is not None and not _has_held_out_rows(data):
        yield ConfigFault(
            "train",
            "evaluate_every",
            problem="there are no held-out examples to evaluate on",
            fix="add data.eval or data.eval_fraction, or remove train.evaluate_every",
        )


def _has_held_out_rows(data: Data) -> bool:
    return data.eval is not None or data.eval_fraction is not None
