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
    _refuse_batches(config, task)
    return Parts(task, strategy)


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
