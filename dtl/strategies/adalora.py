"""AdaLoRA: LoRA that moves its ranks to the most important layers during training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from dtl.config.schema.base import ConfigFault, raise_config_faults
from dtl.models.peft.adalora import RankBudget
from dtl.strategies.base import Adapter, ExcludeModules, LayersToTransform

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


class Options(LayersToTransform, ExcludeModules):
    """Options of `strategy: adalora` (Zhang et al. 2023, arXiv:2303.10512)."""

    target_rank: int = Field(8, ge=1, description="Mean rank of a layer at the end (target_r).")
    init_rank: int = Field(12, ge=2, description="Rank of every layer at the start (init_r).")
    alpha: float = Field(
        32.0, gt=0, description="Scale: the update is multiplied by alpha / init_rank."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the adapter.")
    warmup_share: float = Field(
        0.1, ge=0, lt=1, description="Share of the steps before the first ranks are pruned (tinit)."
    )
    final_share: float = Field(
        0.3, ge=0, lt=1, description="Share of the steps after the last ranks are pruned (tfinal)."
    )
    allocation_interval: int = Field(
        1, ge=1, description="Optimizer steps between two rank allocations (deltaT)."
    )
    orth_reg_weight: float = Field(
        0.5,
        ge=0,
        description="Weight of the penalty on ranks of a layer that are not orthogonal. Its "
        "gradient is added after clipping, and the logged loss does not contain it.",
    )

    @model_validator(mode="after")
    def _check_rank_schedule(self) -> Self:
        if self.target_rank >= self.init_rank:
            raise_config_faults(
                [
                    ConfigFault(
                        "target_rank",
                        problem=f"must be below init_rank (expected < {self.init_rank}, got "
                        f"{self.target_rank})",
                        fix=f"lower it, or set init_rank to {self.target_rank * 3 // 2 + 1}",
                    )
                ]
            )
        if self.warmup_share + self.final_share >= 1:
            raise_config_faults(
                [
                    ConfigFault(
                        "final_share",
                        problem="with warmup_share it leaves no steps in which ranks are pruned "
                        f"(expected a sum < 1, got {self.warmup_share + self.final_share:g})",
                        fix="lower final_share or warmup_share",
                    )
                ]
            )
        return self


class Plugin(Adapter):
    """Trains the factors, their singular values and a new head."""

    learning_rate = 5e-4
    method = "adalora"
    extra_optimizer_bytes = 8  # importance and uncertainty of each number, fp32
    options: Options

    def peft_config_kwargs(self, model: nn.Module) -> dict[str, Any]:
        options = self.options
        return {
            "init_r": options.init_rank,
            "target_r": options.target_rank,
            "lora_alpha": options.alpha,
            "lora_dropout": options.dropout,
            "deltaT": options.allocation_interval,
            "orth_reg_weight": options.orth_reg_weight,
            "total_step": 1,  # `RankBudget` sets it, when the plan is known
        }

    def register_optimizer_hooks(
        self, model: nn.Module, optimizer: Optimizer, *, total_steps: int, completed_steps: int
    ) -> None:
        options = self.options
        RankBudget(
            model,
            total_steps=total_steps,
            warmup_steps=int(options.warmup_share * total_steps),
            final_steps=int(options.final_share * total_steps),
            completed_steps=completed_steps,
        ).register_hooks(optimizer)
