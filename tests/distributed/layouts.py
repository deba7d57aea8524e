"""The layouts and strategies of the distributed tests, and the runs that several files compare
with."""

from __future__ import annotations

from typing import Any

from tests.distributed.runs import Run

STAGES = (0, 1, 2, 3)
RATE, CLIP, BATCH, STEPS = 0.01, 0.15, 12, 12  # 53 rows: the last batch of an epoch has 5
HELD_OUT = 101
CHUNK_LOGITS = 1500  # several chunks in each micro-batch
LORA = ("strategy=lora", "strategy.rank=4", "strategy.alpha=8")
PADDED = "train.packing=false"
STRATEGIES = {"full": ("strategy=full",), "lora": LORA, "frozen": ("strategy=frozen",)}
# Processes and ZeRO stage.
LAYOUTS = ((1, 0), (2, 0), (2, 2), (2, 3))


def zero(stage: int) -> str:
    """Return the override that sets the ZeRO stage."""
    return f"layout.zero_stage={stage}"


def matrix_run(strategy: str, processes: int, stage: int, accumulation: int) -> Run:
    """Return the run of a strategy on a layout; with accumulation, its logits are in chunks.

    Its examples are padded, so that their micro-batches are as many as the test says.
    """
    micro_batch = -(-BATCH // processes // accumulation)
    return Run(
        f"{strategy}-{processes}-{stage}-{accumulation}",
        processes,
        (*STRATEGIES[strategy], zero(stage), f"layout.micro_batch={micro_batch}", PADDED),
        chunk_logits=CHUNK_LOGITS if accumulation > 1 else None,
    )


def single(strategy: str) -> Run:
    """Return the run of a strategy on one process, in one micro-batch a step: others are compared
    with it."""
    return matrix_run(strategy, 1, 0, 1)


def lora_run(name: str, processes: int, *overrides: str, **how: Any) -> Run:
    """Return a run of LoRA with a name of its own."""
    return Run(name, processes, (*LORA, *overrides), **how)
