"""The bytes that one rank holds for weights, gradients and optimizer."""

from __future__ import annotations

from math import ceil

from dtl.plan.records import Parameters

WIDTH = {"fp32": 4, "bf16": 2, "fp16": 2}
MASTER = 4  # an fp32 number


def model_state(
    counts: Parameters,
    *,
    zero: int,
    ranks: int,
    dtype: str,
    offload: str,
) -> dict[str, int]:
    """Bytes on one device, by the ZeRO paper (arXiv:1910.02054): stage 1 shares out the optimizer,
    2 the gradients too, 3 the weights too. Without ZeRO, learning weights are fp32. The scales of
    quantized weights are no parameters: every rank has them all."""
    width, quantized = WIDTH[dtype], counts.quantized
    whole = counts.frozen - quantized.numbers
    if zero == 0:
        return {
            "weights": whole * width
            + quantized.levels
            + quantized.scales
            + counts.learning * MASTER,
            "gradients": counts.learning * MASTER,
            "optimizer": counts.moments + counts.starts * MASTER,
        }

    def part(numbers: int, stage: int) -> int:
        return -(-numbers // ranks) if zero >= stage else numbers

    kept = MASTER + (counts.moments + counts.starts * MASTER) / max(1, counts.learning)
    held = ceil(part(counts.learning, 1) * kept)
    return {
        "weights": part(whole + counts.learning, 3) * width
        + part(quantized.levels, 3)
        + quantized.scales,
        "gradients": part(counts.learning, 2) * width,
        "optimizer": 0 if offload == "optimizer" else held,
    }


def disk_bytes(counts: Parameters, *, dtype: str, kept: int, whole_export: bool) -> int:
    """Most that a run writes: its checkpoints, one more while it is written, and the export, which
    is there twice while it takes its name."""
    exported = counts.total * WIDTH[dtype] if whole_export else counts.learning * MASTER
    return checkpoint_bytes(counts) * (kept + 1) + 2 * exported


def checkpoint_bytes(counts: Parameters) -> int:
    """On disk: of each learning parameter the fp32 master and its moments."""
    return counts.learning * MASTER + counts.moments
