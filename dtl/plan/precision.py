"""Choose the dtype of the forward and backward pass."""

from __future__ import annotations

from dtl.core.errors import DtlError
from dtl.plan.records import DecisionLog
from dtl.plan.request import PlanRequest


def choose_dtype(request: PlanRequest, log: DecisionLog) -> str:
    """Return `model.dtype`, else fp32 on a CPU, bf16 on a GPU that supports it, else fp16.

    Raises DtlError where the hardware cannot train in `model.dtype`.
    """
    requested, hardware = request.config.model.dtype, request.hardware
    if requested == "fp16" and hardware.device == "cpu":
        raise DtlError.of(
            "model.dtype", "fp16 does not train on a CPU", "set model.dtype to bf16 or fp32"
        )
    if requested == "bf16" and not hardware.supports_bf16:
        raise DtlError.of(
            "model.dtype",
            f"{hardware.name} has no bf16 arithmetic",
            "set model.dtype to fp16 or fp32",
        )
    if requested:
        log.add("dtype", requested, "model.dtype")
        return requested
    if hardware.device == "cpu":
        log.add("dtype", "fp32", "no GPU")
        return "fp32"
    dtype = "bf16" if hardware.supports_bf16 else "fp16"
    log.add("dtype", dtype, f"the half precision that {hardware.name} supports")
    return dtype
