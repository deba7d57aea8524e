"""Check that the attention implementation of a config runs on the hardware and in the dtype."""

from __future__ import annotations

from dtl.core.errors import DtlError
from dtl.models.attention import LOCATION, needs_gpu
from dtl.plan.records import DecisionLog
from dtl.plan.request import PlanRequest

GPU_ONLY_BACKWARD = "flex_attention"  # it runs on a CPU, but has no backward pass there


def check_attention(request: PlanRequest, *, dtype: str, log: DecisionLog) -> None:
    """Raise DtlError where `model.attention` cannot train on this device or in this dtype.

    Whether its library is installed is checked on the nodes, before the weights are read.
    """
    attention = request.config.model.attention
    if attention is None:
        return
    if request.hardware.device == "cpu" and (
        needs_gpu(attention) or attention == GPU_ONLY_BACKWARD
    ):
        raise DtlError.of(
            LOCATION, f"{attention} does not train on a CPU", "set it to sdpa or eager"
        )
    if needs_gpu(attention) and dtype == "fp32":
        raise DtlError.of(
            LOCATION,
            f"{attention} computes in bf16 or fp16 only, and the dtype is fp32",
            "set model.dtype to bf16, or model.attention to sdpa",
        )
    log.add("attention", attention, LOCATION)
