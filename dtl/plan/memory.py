"""Estimate the bytes of model state on one rank."""

from __future__ import annotations

from math import ceil

from dtl.plan.records import ParameterCounts

BYTES_PER_NUMBER = {"fp32": 4, "bf16": 2, "fp16": 2}
FP32_BYTES = 4
USABLE_MEMORY = 0.9  # share of a device's memory that is planned for


def estimate_model_state(
    counts: ParameterCounts,
    *,
    zero_stage: int,
    data_parallel_size: int,
    dtype: str,
    grad_accum_dtype: str,
    offload: str,
) -> dict[str, int]:
    """Return the bytes of weights, gradients and optimizer on one device.

    By the ZeRO paper (arXiv:1910.02054): stage 1 shards the optimizer state, 2 the gradients too,
    3 the weights too. Without ZeRO, trainable weights are fp32. Stages 2 and 3 store gradients in
    `grad_accum_dtype` only; stage 1 has those of the last micro-batch as well, in `dtype`. The
    scales of quantized weights are no parameters: every rank has all of them.
    """
    width, quantized = BYTES_PER_NUMBER[dtype], counts.quantized
    unquantized = counts.frozen - quantized.weights
    optimizer = counts.optimizer_state_bytes + counts.l2_sp_numbers * FP32_BYTES
    if zero_stage == 0:
        return {
            "weights": unquantized * width
            + quantized.level_bytes
            + quantized.scale_bytes
            + counts.trainable * FP32_BYTES,
            "gradients": counts.trainable * FP32_BYTES,
            "optimizer": optimizer,
        }

    def shard(numbers: int, first_stage: int) -> int:
        return -(-numbers // data_parallel_size) if zero_stage >= first_stage else numbers

    gradient_width = BYTES_PER_NUMBER[grad_accum_dtype]
    if zero_stage == 1 and grad_accum_dtype != dtype:
        gradient_width += width
    per_parameter = FP32_BYTES + optimizer / max(1, counts.trainable)  # with the fp32 master weight
    sharded_optimizer = ceil(shard(counts.trainable, 1) * per_parameter)
    return {
        "weights": shard(unquantized + counts.trainable, 3) * width
        + shard(quantized.level_bytes, 3)
        + quantized.scale_bytes,
        "gradients": shard(counts.trainable, 2) * gradient_width,
        "optimizer": 0 if offload == "optimizer" else sharded_optimizer,
    }
