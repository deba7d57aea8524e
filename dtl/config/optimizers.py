"""What must be known of an optimizer before anything runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Optimizer:
    """`cut`: why ZeRO may not cut its moments anywhere, or None where it may; `nearest`: what to
    take there. `betas`: where optim.betas is left out; None: it has none. `rate`: its usual
    learning rate, as a share of AdamW's. `offloads`: whether it can work in main memory. `library`:
    the package that it comes from, where that is no part of every installation."""

    betas: tuple[float, float] | None = (0.9, 0.999)
    cut: str | None = None
    nearest: str = "adamw"
    rate: float = 1.0
    offloads: bool = False
    library: str | None = None
    needs_gpu: bool = False


IN_BLOCKS = "8-bit moments lie in blocks, which ZeRO would cut"
OPTIMIZERS = {
    "adamw": Optimizer(offloads=True),
    "adamw_8bit": Optimizer(cut=IN_BLOCKS, library="bitsandbytes"),
    "paged_adamw_8bit": Optimizer(cut=IN_BLOCKS, library="bitsandbytes", needs_gpu=True),
    "adafactor": Optimizer(
        betas=None, cut="adafactor sums over rows and columns of whole matrices, which ZeRO cuts"
    ),
    "lion": Optimizer(betas=(0.9, 0.99), rate=0.1, library="bitsandbytes"),
    "lion_8bit": Optimizer(
        betas=(0.9, 0.99), rate=0.1, cut=IN_BLOCKS, nearest="lion", library="bitsandbytes"
    ),
    "muon": Optimizer(cut="muon orthogonalises whole matrices, which ZeRO cuts"),
}
