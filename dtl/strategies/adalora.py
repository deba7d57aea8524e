"""AdaLoRA: LoRA whose ranks move to the layers where they are worth most."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from dtl.config.record import ConfigFault, refuse
from dtl.models.peft.adalora import Budget
from dtl.strategies.base import Adapter, Excluding, OfBlocks

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


class Options(OfBlocks, Excluding):
    """Options of `strategy: adalora` (Zhang et al. 2023, arXiv:2303.10512)."""

    rank: int = Field(8, ge=1, description="Mean rank of a layer at the end (PEFT's target_r).")
    first_rank: int = Field(12, ge=2, description="Rank of every layer at the beginning (init_r).")
    alpha: float = Field(
        32.0, gt=0, description="Scale: the update is multiplied by alpha / first_rank."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the adapter.")
    warmup: float = Field(
        0.1, ge=0, lt=1, description="Share of the steps before ranks are let go of (tinit)."
    )
    settling: float = Field(
        0.3, ge=0, lt=1, description="Share of the steps after the last one is (tfinal)."
    )
    every: int = Field(1, ge=1, description="Steps between two allocations (deltaT).")
    orthogonality: float = Field(
        0.5,
        ge=0,
        description="Weight of the penalty on ranks of a layer that are not at right angles; its "
        "gradient is added after clipping, and it is no part of the loss that is told.",
    )

    @model_validator(mode="after")
    def _there_is_something_to_let_go_of_and_a_time_for_it(self) -> Self:
        if self.rank >= self.first_rank:
            refuse(
                [
                    ConfigFault(
                        "rank",
                        problem=f"the budget falls from first_rank, {self.first_rank}, to less",
                        fix=f"set rank below it, or first_rank to {self.rank * 3 // 2 + 1}",
                    )
                ]
            )
        if self.warmup + self.settling >= 1:
            refuse(
                [
                    ConfigFault(
                        "settling",
                        problem="with warmup it leaves no steps in which ranks are let go of",
                        fix="set both so that they make less than 1",
                    )
                ]
            )
        return self


class Plugin(Adapter):
    """The factors and singular values move, and a new head."""

    learning_rate = 5e-4
    method = "adalora"
    extra_state_bytes = 8  # importance and uncertainty of each number, in fp32
    options: Options

    def settings(self, model: nn.Module) -> dict[str, Any]:
        options = self.options
        return {
            "init_r": options.first_rank,
            "target_r": options.rank,
            "lora_alpha": options.alpha,
            "lora_dropout": options.dropout,
            "deltaT": options.every,
            "orth_reg_weight": options.orthogonality,
            "total_step": 1,  # a run tells, when it has its plan
        }

    def register_optimizer_hooks(
        self, model: nn.Module, optimizer: Optimizer, *, steps: int, done: int
    ) -> None:
        options = self.options
        Budget(
            model,
            steps=steps,
            warmup=int(options.warmup * steps),
            settling=int(options.settling * steps),
            done=done,
        ).tie_to(optimizer)
