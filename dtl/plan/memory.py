"""The bytes that one rank holds for weights, gradients and optimizer."""

from __future__ import annotations

from dtl.plan import Parameters

WIDTH = {"fp32": 4, "bf16": 2, "fp16": 2}
MASTER = 4  # an fp32 number
MOMENTS = 8  # bytes: AdamW keeps two fp32 numbers for each learning parameter
MOMENTS_8BIT = 2 + 2 * 4 / 256  # two bytes, and for each block of 256 two fp32 scales


def moment_bytes(optimizer: str) -> float:
    """Of one learning parameter."""
    return MOMENTS_8BIT if optimizer == "adamw_8bit" else MOMENTS


def model_state(
    counts: Parameters,
    *,
    zero: int,
    ranks: int,
    dtype: str,
    offload: str,
    optimizer: str = "adamw",
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
            "optimizer": int(counts.learning * moment_bytes(optimizer)),
        }

    def part(numbers: int, stage: int) -> int:
        return -(-numbers // ranks) if zero >= stage else numbers

    held = part(counts.learning, 1) * (MOMENTS + MASTER)
    return {
        "weights": part(whole + counts.learning, 3) * width
        + part(quantized.levels, 3)
        + quantized.scales,
        "gradients": part(counts.learning, 2) * width,
        "optimizer": 0 if offload == "optimizer" else held,
    }


def disk_bytes(
    counts: Parameters, *, dtype: str, kept: int, whole_export: bool, optimizer: str
) -> int:
    """Most that a run writes: its checkpoints, one more while it is written, and the export, which
    is there twice while it takes its name."""
    exported = counts.total * WIDTH[dtype] if whole_export else counts.learning * MASTER
    return checkpoint_bytes(counts, optimizer) * (kept + 1) + 2 * exported


def checkpoint_bytes(counts: Parameters, optimizer: str) -> int:
    """On disk: of each learning parameter the fp32 master and its moments."""
    return int(counts.learning * (MASTER + moment_bytes(optimizer)))
