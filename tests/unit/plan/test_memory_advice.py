"""The smallest change when memory did not suffice."""

from dataclasses import replace

import pytest
import torch

from dtl.plan.memory_advice import is_out_of_memory, suggest_memory_reduction
from dtl.plan.records import Layout, ParameterCounts, Plan

LAYOUT = Layout(1, 4, 0, "none", 8, 2, False, "bf16", "cuda")
STEP = "step 3, micro-batch 1"


def said(doing=STEP, learning=100, **layout):
    counts = ParameterCounts(learning, 100 - learning)
    plan = Plan(replace(LAYOUT, **layout), counts, {}, (), 5, 5, None)
    return suggest_memory_reduction(plan, doing=doing)


@pytest.mark.parametrize(
    ("layout", "change"),
    [
        ({}, "layout.micro_batch=4"),
        ({"micro_batch": 1}, "layout.activation_checkpointing=true"),
        ({"micro_batch": 1, "activation_checkpointing": True}, "layout.zero_stage=2"),
        ({"micro_batch": 1, "activation_checkpointing": True, "zero": 2}, "layout.zero_stage=3"),
        (
            {"micro_batch": 1, "activation_checkpointing": True, "zero": 3},
            "layout.zero_stage=3 layout.offload=optimizer",
        ),
        (
            {"micro_batch": 1, "activation_checkpointing": True, "zero": 3, "offload": "optimizer"},
            "strategy lora",
        ),
    ],
)
def test_in_a_step_activations_go_first(layout, change):
    assert change in said(**layout)


def test_before_the_first_step_weights_and_optimizer_are_shared_out():
    assert "layout.zero_stage=2" in said("laying out the model")
    assert "layout.zero_stage=3" in said("loading the model", zero=2)
    assert "a smaller model" in said("loading the model", 1, zero=3, offload="optimizer")


def test_in_a_scoring_its_batch_is_halved():
    assert "train.evaluation_batch" in said("evaluation, batch 3")


def test_what_wants_memory():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as cpu:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(cpu.value), "what torch says on a CPU"
    assert not is_out_of_memory(RuntimeError("Connection closed by peer"))
