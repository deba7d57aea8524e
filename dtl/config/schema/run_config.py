"""The config of one run: its sections, and the checks over them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from dtl.config.schema import cross_checks
from dtl.config.schema.base import Record, raise_config_faults
from dtl.config.schema.compare import Compare
from dtl.config.schema.data import Data
from dtl.config.schema.layout import Layout
from dtl.config.schema.model import Model
from dtl.config.schema.optim import Optim
from dtl.config.schema.plugins import Phase, Strategies, TaskConfig
from dtl.config.schema.run import Run
from dtl.config.schema.train import Train

Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]


class RunConfig(Record):
    """The config of one run, as its file writes it."""

    run: Run = Field(default_factory=Run, description="where the results are written")
    model: Model = Field(description="the pretrained model")
    task: TaskConfig = Field(
        description="what the model learns to do: a name, or a mapping with name and options"
    )
    data: Data = Field(description="the examples")
    strategy: Strategies = Field(
        description="which parameters are trained: a name, a mapping with name and options, or a "
        "list of these: phases, one after the other"
    )
    optim: Optim = Field(default_factory=Optim, description="how parameters are updated")
    train: Train = Field(description="how long to train, and when to evaluate, save and stop")
    layout: Layout = Field(
        default_factory=Layout, description="how the run is distributed over the hardware"
    )
    compare: Compare = Field(
        default_factory=Compare, description="what `dtl compare` runs; no effect on a single run"
    )

    tracking: tuple[Tracker, ...] = Field(
        default=(), description="experiment trackers that get the lines of metrics.jsonl as well"
    )

    @model_validator(mode="after")
    def _check_sections(self) -> Self:
        raise_config_faults(
            [
                *cross_checks.phase_faults(self.phases, self.optim, self.train),
                *cross_checks.batch_faults(self.data, self.train, self.layout),
                *cross_checks.evaluation_faults(self.task, self.data, self.train),
                *cross_checks.optimizer_faults(self.optim, self.train, self.layout),
                *cross_checks.quantization_faults(self.model, self.layout),
                *cross_checks.average_faults(self.data, self.train),
            ]
        )
        return self

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The strategies, one after the other; usually there is one."""
        if isinstance(self.strategy, tuple):
            return self.strategy
        return (Phase(name=self.strategy.name, options=self.strategy.options),)

    @property
    def offload_blocker(self) -> str | None:
        """The optimizer or key that prevents offloading the optimizer, or None."""
        return cross_checks.offload_blocker(self.optim, self.train)
