"""The section `optim`: optimizer, learning rate schedule, regularization."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from dtl.config.optimizers import OPTIMIZERS
from dtl.config.schema.base import (
    ConfigFault,
    Record,
    check_share_or_steps,
    raise_config_faults,
)


class Optim(Record):
    """How the trainable parameters are updated."""

    name: Literal[
        "adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor", "lion", "lion_8bit", "muon"
    ] = Field(default="adamw", description="the optimizer; docs/optimizers.md compares them")
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        le=100,
        description="highest learning rate; default: planned, by the strategy, the width of the "
        "base and the number of steps",
    )
    head_learning_rate: float | None = Field(
        default=None,
        gt=0,
        le=100,
        description="the same for the head and all other parameters that are not in the base; "
        "default: learning_rate where it is set, else planned for a new head",
    )
    layer_decay: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="learning rate of a block as a share of that of the block above it, such as "
        "0.75; default: the same for all",
    )
    weight_decay: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description="decoupled weight decay per step; never of norms and biases",
    )
    l2_sp: float | None = Field(
        default=None,
        gt=0,
        description="L2-SP penalty: the base's weights decay towards their initial values instead "
        "of zero (alpha of arXiv:1802.01483)",
    )
    betas: tuple[float, float] | None = Field(
        default=None,
        description="decay of the first and of the second moment, each below 1; default: 0.9 and "
        "0.999, of lion 0.9 and 0.99",
    )
    epsilon: float = Field(
        default=1e-8, gt=0, description="added to the root of AdamW's second moment"
    )
    schedule: Literal["linear", "cosine", "constant", "wsd", "inverse_sqrt"] = Field(
        default="cosine",
        description="learning rate after the warm-up, over optimizer steps; wsd: constant, then "
        "decaying at the end",
    )
    warmup: float = Field(
        default=0.03, ge=0, description="warm-up: below 1 a share of all steps, else steps"
    )
    decay: float = Field(
        default=0.1,
        gt=0,
        description="length of the decay of schedule wsd: below 1 a share of all steps, else steps",
    )
    decay_type: Literal["linear", "cosine", "1-sqrt"] = Field(
        default="1-sqrt", description="shape of that decay (1-sqrt: arXiv:2405.18392)"
    )
    min_lr_ratio: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="lowest learning rate after the warm-up, as a share of the highest",
    )
    gradient_clip: float | None = Field(
        default=1.0, gt=0, description="highest gradient norm of a step; null: no clipping"
    )

    @field_validator("betas")
    @classmethod
    def _check_betas(cls, betas: tuple[float, float] | None) -> tuple[float, float] | None:
        if betas is not None and not all(0 <= beta < 1 for beta in betas):
            raise_config_faults(
                [
                    ConfigFault(
                        problem=f"{list(betas)} has a number outside 0 to 1",
                        fix="write two numbers from 0 to below 1, such as [0.9, 0.999]",
                    )
                ]
            )
        return betas

    _check_lengths = field_validator("warmup", "decay")(check_share_or_steps)

    @model_validator(mode="after")
    def _check_optimizer_has_betas(self) -> Self:
        if self.betas is not None and OPTIMIZERS[self.name].betas is None:
            raise_config_faults(
                [
                    ConfigFault(
                        "betas",
                        problem=f"{self.name} has no betas: the decay of its second moment depends "
                        "on the step",
                        fix="remove optim.betas",
                    )
                ]
            )
        return self

    def to_steps(self, length: float, *, total_steps: int) -> int:
        """Return a length, `warmup` or `decay`, in steps."""
        return round(length * total_steps) if length < 1 else int(length)
