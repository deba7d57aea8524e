"""What to change when memory did not suffice, the smallest change first; and a full disk."""

from __future__ import annotations

import errno

from dtl.plan.records import Plan

SAME_RESULT = "the result stays the same"
SMALL_SHARE = 0.1  # of the parameters: where so few learn, an adapter would save little


def wants_memory(fault: BaseException) -> bool:
    """Whether this is a device or a machine that has no memory left."""
    if isinstance(fault, MemoryError) or type(fault).__name__ == "OutOfMemoryError":
        return True
    text = str(fault).lower()
    return "can't allocate memory" in text or "out of memory" in text


def wants_disk(fault: BaseException) -> bool:
    """Whether a disk, or this user's share of it, is full; safetensors tells that in words only."""
    full = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(fault, OSError) and fault.errno in full:
        return True
    return any(f"(os error {number})" in str(fault) for number in full)


def relief(plan: Plan, *, doing: str) -> str:
    """The change with the least cost that takes memory off a process.

    `doing`: where it failed, as the heartbeat says. In a step or a scoring it is activations that
    are in the way; before and after that, weights and optimizer.
    """
    layout = plan.layout
    if doing.startswith("evaluation"):
        return f"set train.evaluation_batch to half of what it is; {SAME_RESULT}"
    in_step = doing.startswith("step")
    if in_step and layout.micro_batch > 1:
        return f"resume with layout.micro_batch={layout.micro_batch // 2}; {SAME_RESULT}"
    if in_step and not layout.activation_checkpointing:
        return f"resume with layout.activation_checkpointing=true; {SAME_RESULT}"
    if layout.ranks > 1 and layout.zero < 2:
        return f"resume with layout.zero=2; {SAME_RESULT}"
    if layout.ranks > 1 and layout.zero < 3:
        return f"resume with layout.zero=3; {SAME_RESULT}"
    if layout.offload == "none" and layout.device == "cuda":
        stage = max(layout.zero, 2)
        return f"resume with layout.zero={stage} layout.offload=optimizer; {SAME_RESULT}"
    if plan.parameters.learning > SMALL_SHARE * plan.parameters.total:
        return "take more processes or nodes, or strategy lora"
    if plan.parameters.quantized.numbers == 0:
        return "take more processes or nodes, model.quantize nf4, or a smaller model"
    return "take more processes or nodes, or a smaller model"
