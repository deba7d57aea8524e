"""Suggest the smallest change that frees memory."""

from __future__ import annotations

from dtl.plan.evaluation import KEY as EVALUATION_KEY
from dtl.plan.records import Plan

SAME_RESULT = "the result stays the same"
SMALL_SHARE = 0.1  # of the parameters: where fewer are trained, an adapter would save little


def suggest_memory_reduction(plan: Plan, *, activity: str) -> str:
    """Return the change with the least cost that frees memory on a process.

    `activity`: what the process was doing, as its heartbeat says. In a step or an evaluation it is
    activations that fill the memory; before and after that, weights and optimizer.
    """
    layout = plan.layout
    examples = _examples_of_evaluation(plan)
    if activity.startswith("evaluation") and examples > 1:
        return f"resume with train.evaluation_batch={examples // 2}; {SAME_RESULT}"
    in_step = activity.startswith("step")
    if in_step and layout.micro_batch > 1:
        return f"resume with layout.micro_batch={layout.micro_batch // 2}; {SAME_RESULT}"
    if in_step and not layout.activation_checkpointing:
        return f"resume with layout.activation_checkpointing=true; {SAME_RESULT}"
    for stage in (2, 3):
        if layout.world_size > 1 and layout.zero_stage < stage:
            return f"resume with layout.zero_stage={stage}; {SAME_RESULT}"
    if layout.offload == "none" and layout.device == "cuda":
        stage = max(layout.zero_stage, 2)
        return f"resume with layout.zero_stage={stage} layout.offload=optimizer; {SAME_RESULT}"
    if plan.parameters.trainable > SMALL_SHARE * plan.parameters.total:
        return "use more processes or nodes, or strategy lora"
    if plan.parameters.quantized.weights == 0:
        return "use more processes or nodes, model.quantize nf4, or a smaller model"
    return "use more processes or nodes, or a smaller model"


def _examples_of_evaluation(plan: Plan) -> int:
    """Return the longest examples that a batch of an evaluation holds."""
    values = [each.value for each in plan.decisions if each.key == EVALUATION_KEY]
    return int(values[0]) if values else plan.layout.evaluation_batch.examples
