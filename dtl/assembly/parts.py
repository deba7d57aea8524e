"""Names in the config become a task and a strategy, and these a model that learns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dtl.config import registry
from dtl.config.schema import RunConfig
from dtl.core.errors import DtlError
from dtl.models.base_adapters import read_base_adapters
from dtl.models.load import LoadedModel
from dtl.models.module_kinds import batch_norms
from dtl.strategies.base import Strategy
from dtl.tasks.base import Task

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Parts:
    """What is learnt, and what learns it: one strategy, or one in each phase of the run."""

    task: Task
    strategies: tuple[Strategy, ...]
    phase: int = 0

    @property
    def strategy(self) -> Strategy:
        """Of the present phase."""
        return self.strategies[self.phase]

    @property
    def is_from_random(self) -> bool:
        """Whether the run begins without the weights of the base."""
        return self.strategies[0].starts_from == "random"

    def for_phase(self, number: int) -> Parts:
        """The same in another phase; they count from 0."""
        return replace(self, phase=number)

    def apply_strategy(self, loaded: LoadedModel) -> nn.Module:
        """The model with the strategy applied; what the task keeps fixed does not learn."""
        fixed = list(self.task.always_frozen(loaded.model, random_init=self.is_from_random))
        kept = {id(parameter) for parameter in fixed}
        names = {name for name, value in loaded.model.named_parameters() if id(value) in kept}
        model = self.strategy.apply(loaded.model, new_parameters=loaded.new_parameters - names)
        for parameter in fixed:
            parameter.requires_grad_(False)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise DtlError.of(
                "strategy",
                "nothing learns: the task keeps fixed what it would move in "
                f"{type(model).__name__}",
                "let other parts of the model learn as well",
            )
        return model

    def set_training_mode(self, model: nn.Module) -> None:
        """Every module in the mode that it trains in.

        Batch normalisation keeps the statistics of a pretrained base: those of small batches would
        be worse, and other ones on each layout.
        """
        self.strategy.set_training_mode(model)
        if not self.is_from_random:
            for module in batch_norms(model):
                module.eval()


def assemble(config: RunConfig) -> Parts:
    """The plugins that the config names, holding their typed options. Raises DtlError where they do
    not go together."""
    task = registry.load("tasks", config.task.name).Plugin(config.task.options)
    strategies = tuple(
        registry.load("strategies", phase.name).Plugin(phase.options) for phase in config.phases
    )
    for phase, strategy in zip(config.phases, strategies, strict=True):
        if config.model.quantize is not None and strategy.export_kind != "adapter":
            raise DtlError.of(
                "model.quantize",
                f"strategy {phase.name} keeps a whole model, which is not to be left in "
                f"{config.model.quantize}",
                "take strategy lora, which leaves the base as it is, or leave model.quantize out",
            )
    if task.compares_with_base and not all(strategy.preserves_base for strategy in strategies):
        raise DtlError.of(
            "strategy",
            f"task {config.task.name} compares the model with its base, which strategy "
            f"{' and '.join(phase.name for phase in config.phases)} changes",
            "take strategy lora with bias none, and an init that leaves the base as it is",
        )
    if task.compares_with_base and len(strategies) > 1:
        raise DtlError.of(
            "strategy",
            f"task {config.task.name} compares the model with its base, and each phase would have "
            "another one",
            "take one strategy",
        )
    for number, strategy in enumerate(strategies[:-1]):
        if strategy.num_virtual_tokens:
            raise DtlError.of(
                f"strategy.{number}",
                f"{config.phases[number].name} learns tokens, which no weight of the model can "
                "take in for the phase after it",
                "put it last, or take lora",
            )
    for number, strategy in enumerate(strategies[1:], start=1):
        if strategy.starts_from == "random":
            raise DtlError.of(
                f"strategy.{number}",
                f"{config.phases[number].name} begins with random weights, which would undo the "
                "phases before",
                "put it first, or take full",
            )
    for number, strategy in enumerate(strategies):
        if strategy.needs_base_weights:
            _refuse_nothing_lost(config, number)
        if strategy.continue_from is not None:
            _refuse_misplaced(config, number, strategy.continue_from)
    if config.optim.l2_sp is not None:
        _refuse_pull(config, strategies[0])
    _refuse_batches(config, task)
    return Parts(task, strategies)


def _refuse_nothing_lost(config: RunConfig, phase: int) -> None:
    """Raise DtlError where an adapter has nothing to make good, or not what the base's files
    tell."""
    place = "strategy.init" if len(config.phases) == 1 else f"strategy.{phase}.init"
    if config.model.quantize != "nf4":
        held = "whole" if config.model.quantize is None else "in 8 bits"
        nearest = "pissa" if config.model.quantize is None else "kaiming"
        raise DtlError.of(
            place,
            f"loftq makes good what a base loses in 4 bits, and this one is {held}",
            f"set model.quantize to nf4, or take init {nearest}",
        )
    if phase > 0:
        raise DtlError.of(
            place,
            "the phases before have changed the base, and loftq would bring back its files'",
            "put it first, or take init kaiming",
        )


def _refuse_misplaced(config: RunConfig, phase: int, folder: Path) -> None:
    """Raise DtlError where an adapter is to go on over other weights than those it was learnt
    over."""
    if phase > 0:
        raise DtlError.of(
            f"strategy.{phase}.continue_from",
            "the phases before have changed the base that the adapter was learnt over",
            "put it first, or leave it out",
        )
    over = read_base_adapters(folder)
    if over and over != [Path(each).expanduser().resolve() for each in config.model.adapters]:
        raise DtlError.of(
            "strategy.continue_from",
            f"{folder} was learnt over other adapters",
            f"set model.adapters to [{', '.join(map(str, over))}]",
        )


def _refuse_pull(config: RunConfig, strategy: Strategy) -> None:
    """Where no learning weight has a start that is worth staying near. Phases have no pull."""
    name, problem = config.phases[0].name, None
    if strategy.export_kind == "adapter":
        problem = f"strategy {name} leaves the base as it is: there is nothing to pull"
    elif strategy.starts_from == "random":
        problem = f"strategy {name} starts from random weights, which nothing should pull to"
    if problem is not None:
        raise DtlError.of("optim.l2_sp", problem, "remove optim.l2_sp, or take strategy full")


def _refuse_batches(config: RunConfig, task: Task) -> None:
    """Raise DtlError for batches that the task's examples cannot be put into."""
    asked, options = task.batch_unit, config.train
    if options.global_batch.unit not in ("examples", asked):
        also = f"in {asked}, or " if asked else ""
        raise DtlError.of(
            "train.global_batch",
            f"examples of task {config.task.name} have no {options.global_batch.unit}",
            f"write it {also}as a number of examples, such as 16",
        )
    if options.group_by_length and asked is None:
        raise DtlError.of(
            "train.group_by_length",
            f"examples of task {config.task.name} are all of one length",
            "remove it",
        )
