"""Check that the task, the strategies and the options of a config can be combined."""

from __future__ import annotations

from pathlib import Path

from dtl.config.schema import RunConfig
from dtl.core.errors import DtlError
from dtl.models.base_adapters import read_base_adapters
from dtl.strategies.base import Strategy
from dtl.tasks.base import Task


def check_compatibility(config: RunConfig, task: Task, strategies: tuple[Strategy, ...]) -> None:
    """Raise DtlError if the task, the strategies and the options cannot be combined."""
    _check_quantization(config, strategies)
    _check_base_is_available(config, task, strategies)
    _check_phases(config, strategies)
    for phase, strategy in enumerate(strategies):
        if strategy.needs_base_weights:
            _check_loftq(config, phase)
        if strategy.continue_from is not None:
            _check_continue_from(config, phase, strategy.continue_from)
    if config.optim.l2_sp is not None:
        _check_l2_sp(config, strategies[0])
    _check_batches(config, task)


def _check_quantization(config: RunConfig, strategies: tuple[Strategy, ...]) -> None:
    """Raise DtlError if a strategy exports a full model over a quantized base."""
    for phase, strategy in zip(config.phases, strategies, strict=True):
        if config.model.quantize is not None and strategy.export_kind != "adapter":
            raise DtlError.of(
                "model.quantize",
                f"strategy {phase.name} exports a full model, which cannot be in "
                f"{config.model.quantize}",
                "take strategy lora, which does not change the base, or remove model.quantize",
            )


def _check_base_is_available(
    config: RunConfig, task: Task, strategies: tuple[Strategy, ...]
) -> None:
    """Raise DtlError if the task compares the model with its base, and a strategy changes it."""
    if not task.compares_with_base:
        return
    if not all(strategy.preserves_base for strategy in strategies):
        raise DtlError.of(
            "strategy",
            f"task {config.task.name} compares the model with its base, which strategy "
            f"{' and '.join(phase.name for phase in config.phases)} changes",
            "take strategy lora with bias none, and an init that does not change the base",
        )
    if len(strategies) > 1:
        raise DtlError.of(
            "strategy",
            f"task {config.task.name} compares the model with its base, and each phase would have "
            "another base",
            "take one strategy",
        )


def _check_phases(config: RunConfig, strategies: tuple[Strategy, ...]) -> None:
    """Raise DtlError if a phase cannot follow the one before it."""
    for number, strategy in enumerate(strategies[:-1]):
        if strategy.num_virtual_tokens:
            raise DtlError.of(
                f"strategy.{number}",
                f"{config.phases[number].name} trains virtual tokens, which cannot be merged into "
                "the model's weights for the next phase",
                "put it last, or take lora",
            )
    for number, strategy in enumerate(strategies[1:], start=1):
        if strategy.starts_from == "random":
            raise DtlError.of(
                f"strategy.{number}",
                f"{config.phases[number].name} starts from random weights, which would discard the "
                "phases before",
                "put it first, or take full",
            )


def _check_loftq(config: RunConfig, phase: int) -> None:
    """Raise DtlError if there is no quantization error, or if the base has changed since."""
    location = "strategy.init" if len(config.phases) == 1 else f"strategy.{phase}.init"
    if config.model.quantize != "nf4":
        precision = "not quantized" if config.model.quantize is None else "in 8 bits"
        alternative = "pissa" if config.model.quantize is None else "kaiming"
        raise DtlError.of(
            location,
            f"loftq compensates for the error of a base in 4 bits, and this base is {precision}",
            f"set model.quantize to nf4, or take init {alternative}",
        )
    if phase > 0:
        raise DtlError.of(
            location,
            "the phases before have changed the base, and loftq reads the weights of its files",
            "put it first, or take init kaiming",
        )


def _check_continue_from(config: RunConfig, phase: int, folder: Path) -> None:
    """Raise DtlError if an adapter would continue over other weights than it was trained over."""
    if phase > 0:
        raise DtlError.of(
            f"strategy.{phase}.continue_from",
            "the phases before have changed the base that the adapter was trained over",
            "put it first, or remove continue_from",
        )
    required = read_base_adapters(folder)
    named = [Path(path).expanduser().resolve() for path in config.model.adapters]
    if required and required != named:
        raise DtlError.of(
            "strategy.continue_from",
            f"{folder} was trained over other adapters",
            f"set model.adapters to [{', '.join(map(str, required))}]",
        )


def _check_l2_sp(config: RunConfig, strategy: Strategy) -> None:
    """Raise DtlError if no trainable weight has a pretrained value to stay near. Only the first
    phase has the penalty."""
    name, problem = config.phases[0].name, None
    if strategy.export_kind == "adapter":
        problem = f"strategy {name} does not change the base, so there is no weight to penalize"
    elif strategy.starts_from == "random":
        problem = f"strategy {name} starts from random weights, which training should not stay near"
    if problem is not None:
        raise DtlError.of("optim.l2_sp", problem, "remove optim.l2_sp, or take strategy full")


def _check_batches(config: RunConfig, task: Task) -> None:
    """Raise DtlError if the task's examples do not have the unit or lengths that batches need."""
    task_unit, options = task.batch_unit, config.train
    if options.global_batch.unit not in ("examples", task_unit):
        also = f"in {task_unit}, or " if task_unit else ""
        raise DtlError.of(
            "train.global_batch",
            f"examples of task {config.task.name} have no {options.global_batch.unit}",
            f"write it {also}as a number of examples, such as 16",
        )
    if options.group_by_length and task_unit is None:
        raise DtlError.of(
            "train.group_by_length",
            f"examples of task {config.task.name} all have the same length",
            "remove it",
        )
