"""Names in the config become a task and a strategy."""

from __future__ import annotations

from dataclasses import dataclass

from dtl import registry
from dtl.config.schema import RunConfig
from dtl.errors import DtlError
from dtl.strategies import Strategy
from dtl.tasks import Task


@dataclass(frozen=True)
class Parts:
    """What is learnt, and what learns it."""

    task: Task
    strategy: Strategy


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
    return Parts(task, strategy)
