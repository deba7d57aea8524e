"""Names in the config become a task and a strategy, and these a model that learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dtl import registry
from dtl.config.schema import RunConfig
from dtl.errors import DtlError
from dtl.models.anatomy import batch_norms
from dtl.models.load import Loaded
from dtl.strategies import Strategy
from dtl.tasks import Task

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Parts:
    """What is learnt, and what learns it."""

    task: Task
    strategy: Strategy

    def adapt(self, loaded: Loaded) -> nn.Module:
        """The model with the strategy applied; what the task keeps fixed does not learn."""
        random = self.strategy.starts_from == "random"
        fixed = list(self.task.fixed(loaded.model, random=random))
        kept = {id(parameter) for parameter in fixed}
        names = {name for name, value in loaded.model.named_parameters() if id(value) in kept}
        model = self.strategy.apply(loaded.model, new=loaded.new - names)
        for parameter in fixed:
            parameter.requires_grad_(False)
        return model

    def training_mode(self, model: nn.Module) -> None:
        """Every module in the mode that it trains in.

        Batch normalisation keeps the statistics of a pretrained base: those of small batches would
        be worse, and other ones on each layout.
        """
        self.strategy.training_mode(model)
        if self.strategy.starts_from == "pretrained":
            for module in batch_norms(model):
                module.eval()


def assemble(config: RunConfig) -> Parts:
    """The plugins that the config names, holding their typed options. Raises DtlError where they do
    not go together."""
    task = registry.load("tasks", config.task.name).Plugin(config.task.options)
    strategy = registry.load("strategies", config.strategy.name).Plugin(config.strategy.options)
    if task.needs_base and not strategy.keeps_base:
        raise DtlError.of(
            "strategy",
            f"task {config.task.name} compares the model with its base, which strategy "
            f"{config.strategy.name} changes",
            "take strategy lora with bias none: set aside, it leaves the base",
        )
    if config.optim.l2_sp is not None:
        _refuse_pull(strategy, name=config.strategy.name)
    return Parts(task, strategy)


def _refuse_pull(strategy: Strategy, *, name: str) -> None:
    """Where no learning weight has a start that is worth staying near."""
    problem = None
    if strategy.exports == "adapter":
        problem = f"strategy {name} leaves the base as it is: there is nothing to pull back"
    elif strategy.starts_from == "random":
        problem = f"strategy {name} starts from random weights, to which nothing should be pulled"
    if problem is not None:
        raise DtlError.of("optim.l2_sp", problem, "remove optim.l2_sp, or take strategy full")
