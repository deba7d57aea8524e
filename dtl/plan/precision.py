"""Choose the dtypes of the forward and backward pass, and of the sums of gradients."""

from __future__ import annotations

from dtl.config.schema.layout import Layout
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


def choose_grad_accum_dtype(
    layout: Layout, *, dtype: str, zero_stage: int, log: DecisionLog
) -> str:
    """Return the dtype in which gradients are accumulated and reduced: `layout.grad_accum_dtype`.

    At ZeRO 0 the trainable weights are fp32, and so are their gradients. Raises DtlError where
    bf16 is requested for other weights.
    """
    requested = layout.grad_accum_dtype
    if requested == "bf16" and dtype != "bf16":
        raise DtlError.of(
            "layout.grad_accum_dtype",
            f"bf16 needs weights in bf16 (model.dtype is {dtype})",
            "remove it, or set model.dtype to bf16",
        )
    if zero_stage == 0:
        if requested == "bf16":
            log.add("gradients", "fp32", "ZeRO 0 has fp32 weights where they are trained")
        return "fp32"
    if dtype != "fp32":
        reason = "half the memory; each sum is rounded to bf16"
        if requested == "fp32":
            reason = "accumulated and reduced without rounding"
            reason += "; layout.grad_accum_dtype=bf16 takes less memory" * (dtype == "bf16")
        log.add("gradients", requested, reason)
    return requested
