"""The task and the strategies of a config, and how they are applied to a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dtl.assembly.compatibility import check_compatibility
from dtl.config import registry
from dtl.config.schema import RunConfig
from dtl.core.errors import DtlError
from dtl.models.load import LoadedModel
from dtl.models.structure.module_kinds import batch_norms
from dtl.strategies.base import Strategy
from dtl.tasks.base import Task

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Parts:
    """The task, and the strategy of each phase of the run. `phase`: index of the current phase."""

    task: Task
    strategies: tuple[Strategy, ...]
    phase: int = 0

    @property
    def strategy(self) -> Strategy:
        """The strategy of the current phase."""
        return self.strategies[self.phase]

    @property
    def is_from_random(self) -> bool:
        """Whether the run starts from random weights, not from those of the base."""
        return self.strategies[0].starts_from == "random"

    def for_phase(self, number: int) -> Parts:
        """Return the same parts in another phase; phases count from 0."""
        return replace(self, phase=number)

    def apply_strategy(self, loaded: LoadedModel) -> nn.Module:
        """Return the model with the strategy applied. The task's frozen parameters are frozen, and
        those that the model's class freezes, unless the strategy names them.

        Raises DtlError if no parameter is trainable.
        """
        frozen = list(self.task.always_frozen(loaded.model, random_init=self.is_from_random))
        ids = {id(parameter) for parameter in frozen}
        ids |= {
            id(value)
            for name, value in loaded.model.named_parameters()
            if name in loaded.frozen_by_class and not self.strategy.trains_by_name(name)
        }
        frozen = [value for value in loaded.model.parameters() if id(value) in ids]
        names = {name for name, value in loaded.model.named_parameters() if id(value) in ids}
        model = self.strategy.apply(loaded.model, new_parameters=loaded.new_parameters - names)
        for parameter in frozen:
            parameter.requires_grad_(False)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise DtlError.of(
                "strategy",
                "no parameter is trainable: the task always freezes those that it would train in "
                f"{type(model).__name__}",
                "train other parts of the model as well",
            )
        return model

    def set_training_mode(self, model: nn.Module) -> None:
        """Set each module to training mode, or to evaluation mode where it must not change.

        Batch normalization uses the running statistics of a pretrained base: those of small batches
        would be worse, and different on each layout.
        """
        self.strategy.set_training_mode(model)
        if not self.is_from_random:
            for module in batch_norms(model):
                module.eval()


def assemble(config: RunConfig) -> Parts:
    """Return the plugins that the config names, with their typed options.

    Raises DtlError if they cannot be combined.
    """
    task = registry.load("tasks", config.task.name).Plugin(config.task.options)
    strategies = tuple(
        registry.load("strategies", phase.name).Plugin(phase.options) for phase in config.phases
    )
    check_compatibility(config, task, strategies)
    return Parts(task, strategies)
