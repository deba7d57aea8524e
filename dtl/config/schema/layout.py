"""The section `layout`: how a run is distributed over machines, processes and devices."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from dtl.config.schema.base import ConfigFault, Record, raise_config_faults


class Layout(Record):
    """How the run is distributed over the hardware; every key that is not set is planned."""

    nodes: int = Field(default=1, ge=1, description="number of machines")
    processes_per_node: int | None = Field(
        default=None,
        ge=1,
        description="processes on each machine, one for each device; default: planned",
    )
    zero_stage: int | None = Field(
        default=None, ge=0, le=3, description="DeepSpeed ZeRO stage; 0 is plain data parallel"
    )
    offload: Literal["none", "optimizer"] | None = Field(
        default=None, description="what is stored in main memory instead of device memory"
    )
    micro_batch: int | None = Field(
        default=None,
        ge=1,
        description="examples in one forward and backward pass of a process; where the global "
        "batch counts tokens or seconds, examples of the greatest length: of shorter ones more",
    )
    grad_accum_dtype: Literal["fp32", "bf16"] = Field(
        default="fp32",
        description="number format in which ZeRO adds up gradients over micro-batches and ranks; "
        "bf16 takes half the memory, and rounds each sum",
    )
    collective_timeout_seconds: float = Field(
        default=1800.0,
        ge=1,
        description="timeout in seconds of one collective operation between processes (NCCL, gloo)",
    )
    activation_checkpointing: bool | None = Field(
        default=None, description="recompute activations in the backward pass to save memory"
    )

    @model_validator(mode="after")
    def _check_offload(self) -> Self:
        if self.offload == "optimizer" and self.zero_stage == 0:
            raise_config_faults(
                [
                    ConfigFault(
                        "offload",
                        problem="ZeRO 0 cannot offload the optimizer",
                        fix="set layout.zero_stage to 1, 2 or 3, or layout.offload to none",
                    )
                ]
            )
        return self
