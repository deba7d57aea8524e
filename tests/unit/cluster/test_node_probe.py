"""What a node is checked for besides its disks and files."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from dtl.cluster import node_probe
from dtl.config.schema import RunConfig
from dtl.plan.records import Layout

OFFLOADED = Layout(1, 1, 2, "optimizer", 1, 1, False, "bf16", "cuda")


@pytest.mark.parametrize(
    ("offload", "has_compiler", "faults"),
    [("optimizer", False, 1), ("optimizer", True, 0), ("none", False, 0)],
)
def test_node_without_a_compiler_cannot_offload_the_optimizer(
    monkeypatch, offload, has_compiler, faults
):
    monkeypatch.setattr(node_probe, "has_compiler", lambda: has_compiler)
    problems = list(node_probe._check_compiler(replace(OFFLOADED, offload=offload)))
    assert len(problems) == faults
    assert all("C++ compiler" in problem for problem, _ in problems)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(("attention", "faults"), [("flash_attention_2", 1), ("sdpa", 0)])
def test_node_that_lacks_the_planned_attention_is_named(decoder, attention, faults):
    config = RunConfig.model_validate(
        {
            "model": {"path": str(decoder), "attention": attention},
            "task": "causal_lm",
            "strategy": "full",
            "data": {"train": "rows.jsonl"},
            "train": {"steps": 1},
        }
    )
    folder = SimpleNamespace(config=config, dataset_stats={})
    problems = list(node_probe._check_attention(folder))
    assert len(problems) == faults
    assert all("flash_attention_2 cannot run here" in problem for problem, _ in problems)
