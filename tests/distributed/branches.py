"""Steps of a model whose layers are used by some micro-batches only, on the ranks of a launch.

Layer `experts.3` is first used in the second step and `experts.2` not in the last ones; `never` is
used by none, and `table` is one that nothing reads.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dtl.core.parallel_dims import ParallelDims
from dtl.engine.base import EngineSettings
from dtl.engine.start import start
from dtl.plan.deepspeed_config import build_deepspeed_config
from dtl.plan.records import Layout

STEPS, MICRO_BATCHES, ROWS, SIZE = 5, 4, 2, 8
RATE, DECAY = 1e-2, 0.1


class Branches(nn.Module):
    """A network that adds the outputs of the experts in `used`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, 1)
        self.experts = nn.ModuleList(nn.Linear(SIZE, SIZE) for _ in range(4))
        self.never = nn.Linear(SIZE, SIZE)
        self.table = nn.Parameter(torch.randn(3, SIZE))
        self.config = type("Config", (), {"hidden_size": SIZE})()

    def forward(self, inputs_BD: torch.Tensor, used: list[int]) -> torch.Tensor:
        hidden_BD = self.first(inputs_BD).relu()
        for index in used:
            hidden_BD = hidden_BD + self.experts[index](hidden_BD).relu()
        output: torch.Tensor = self.last(hidden_BD)
        return output


def make_model() -> Branches:
    torch.manual_seed(0)
    return Branches()


def make_inputs() -> torch.Tensor:
    """Return the inputs of all steps, shape (steps, micro-batches, rows, size)."""
    generator = torch.Generator().manual_seed(5)
    return torch.randn(STEPS, MICRO_BATCHES, ROWS, SIZE, generator=generator)


def used_experts(step: int, *, differ: bool) -> list[list[int]]:
    """Return the experts that each micro-batch uses; ranks run every other one. `differ`: between
    the ranks, else only between the micro-batches and steps of each."""
    late = [3] if step > 0 else []
    if differ:
        first = [0] if step != 2 else []
        return [first, [1], [2] if step < 3 else [0], [*late, 0]]
    second = [1, 2] if step < 3 else [1]
    return [[0], [0], [*second, *late], [*second, *late]]


def run(job: dict[str, Any]) -> None:
    """Take the steps on this rank, and write losses and weights to the job's file."""
    world_size, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    stage, differ = int(job["stage"]), bool(job["differ"])
    passes = MICRO_BATCHES // world_size
    layout = Layout(1, world_size, stage, "none", ROWS, passes, False, "fp32", "cpu")
    settings = EngineSettings(
        device="cpu",
        parallel_dims=ParallelDims(world_size=world_size, rank=0),
        dtype="fp32",
        accumulation_steps=passes,
        gradient_clip=None,
        deepspeed=build_deepspeed_config(layout, gradient_clip=None),
    )
    engine, model = start(settings), make_model()
    group = {"params": list(model.parameters()), "lr": RATE, "peak_learning_rate": RATE}
    engine.prepare(model, torch.optim.AdamW([{**group, "weight_decay": DECAY}]))
    losses = []
    for step, inputs in enumerate(make_inputs()):
        used, total = used_experts(step, differ=differ), torch.zeros((), dtype=torch.float64)
        for micro_step in range(passes):
            index = micro_step * world_size + rank
            with engine.accumulate(is_last=micro_step == passes - 1):
                loss = (engine.model(inputs[index], used[index]) ** 2).sum()
                engine.backward(loss, targets=MICRO_BATCHES * ROWS)
            total += loss.detach().double()
        losses += engine.step_and_sum(total)[1]
    weights = {name: engine.full_tensor(value) for name, value in engine.trainable_parameters()}
    if rank == 0:
        values = {name: value.tolist() for name, value in weights.items()}
        Path(job["file"]).write_text(json.dumps({"losses": losses, "weights": values}))
    engine.free_memory()
