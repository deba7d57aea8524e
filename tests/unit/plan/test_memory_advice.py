"""The smallest change that frees memory."""

from dataclasses import replace

import pytest

from dtl.plan.memory_advice import suggest_memory_reduction
from dtl.plan.records import Layout, ParameterCounts, Plan

LAYOUT = Layout(1, 4, 0, "none", 8, 2, False, "bf16", "cuda")
CHECKPOINTED = {"micro_batch": 1, "activation_checkpointing": True}
STEP = "step 3, micro-batch 1"


def advice(activity=STEP, trainable=100, **layout):
    counts = ParameterCounts(trainable, 100 - trainable)
    plan = Plan(replace(LAYOUT, **layout), counts, {}, (), 5, 5, None)
    return suggest_memory_reduction(plan, activity=activity)


@pytest.mark.parametrize(
    ("layout", "change"),
    [
        ({}, "layout.micro_batch=4"),
        ({"micro_batch": 1}, "layout.activation_checkpointing=true"),
        ({"micro_batch": 1, "activation_checkpointing": True}, "layout.zero_stage=2"),
        (
            {"micro_batch": 1, "activation_checkpointing": True, "zero_stage": 2},
            "layout.zero_stage=3",
        ),
        (
            {**CHECKPOINTED, "zero_stage": 3},
            "layout.zero_stage=3 layout.offload=optimizer",
        ),
        (
            {
                "micro_batch": 1,
                "activation_checkpointing": True,
                "zero_stage": 3,
                "offload": "optimizer",
            },
            "strategy lora",
        ),
    ],
)
def test_in_a_step_activations_are_reduced_first(layout, change):
    assert change in advice(**layout)


def test_before_the_first_step_weights_and_optimizer_are_sharded():
    assert "layout.zero_stage=2" in advice("laying out the model")
    assert "layout.zero_stage=3" in advice("loading the model", zero_stage=2)
    assert "a smaller model" in advice("loading the model", 1, zero_stage=3, offload="optimizer")


def test_in_an_evaluation_its_batch_is_halved():
    assert "train.evaluation_batch" in advice("evaluation, batch 3")
