"""What must be known of each optimizer before a run starts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Optimizer:
    """The properties of an optimizer.

    betas: defaults of optim.betas; None: it has none.
    unshardable_reason: why ZeRO may not shard its moments; None: it may.
    shardable_alternative: the optimizer to use with ZeRO instead.
    learning_rate_factor: its usual learning rate as a multiple of AdamW's.
    supports_offload: whether it can update in main memory.
    package: the package that provides it, if that is not part of every installation.
    """

    betas: tuple[float, float] | None = (0.9, 0.999)
    unshardable_reason: str | None = None
    shardable_alternative: str = "adamw"
    learning_rate_factor: float = 1.0
    supports_offload: bool = False
    package: str | None = None
    needs_gpu: bool = False


BLOCKWISE = "8-bit moments are quantized in blocks, which ZeRO would split"
OPTIMIZERS = {
    "adamw": Optimizer(supports_offload=True),
    "adamw_8bit": Optimizer(unshardable_reason=BLOCKWISE, package="bitsandbytes"),
    "paged_adamw_8bit": Optimizer(
        unshardable_reason=BLOCKWISE, package="bitsandbytes", needs_gpu=True
    ),
    "adafactor": Optimizer(
        betas=None,
        unshardable_reason="adafactor sums over rows and columns of full matrices, which ZeRO "
        "shards",
    ),
    "lion": Optimizer(betas=(0.9, 0.99), learning_rate_factor=0.1, package="bitsandbytes"),
    "lion_8bit": Optimizer(
        betas=(0.9, 0.99),
        learning_rate_factor=0.1,
        unshardable_reason=BLOCKWISE,
        shardable_alternative="lion",
        package="bitsandbytes",
    ),
    "muon": Optimizer(unshardable_reason="muon orthogonalizes full matrices, which ZeRO shards"),
}
