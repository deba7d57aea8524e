"""Starting an engine on one process."""

import os

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from torch import nn

from dtl.core.parallel_dims import ParallelDims
from dtl.engine.base import EngineSettings
from dtl.engine.ddp import DdpEngine
from dtl.engine.start import start


@pytest.fixture
def start_on_cpu():
    def start_engine(world_size=1, dtype="fp32"):
        return start(
            EngineSettings(
                device="cpu",
                parallel_dims=ParallelDims(world_size),
                dtype=dtype,
                accumulation_steps=1,
                gradient_clip=None,
                deepspeed=None,
            )
        )

    yield start_engine
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def test_engine_without_deepspeed_config_is_the_ddp_engine(start_on_cpu):
    engine = start_on_cpu()
    assert isinstance(engine, DdpEngine)
    assert (engine.rank, engine.world_size, engine.is_main_process) == (0, 1, True)


def test_settings_of_an_external_launcher_are_removed(start_on_cpu, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    engine = start_on_cpu()
    assert engine.accelerator.mixed_precision == "no"
    assert not [name for name in os.environ if name.startswith("ACCELERATE_DEEPSPEED")]


def test_trainable_weights_are_fp32_and_half_precision_is_autocast(start_on_cpu):
    engine = start_on_cpu(dtype="bf16")
    assert engine.trainable_dtype == torch.float32
    model = nn.Linear(2, 2)
    engine.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with engine.autocast():
        assert engine.model(torch.ones(1, 2)).dtype == torch.bfloat16


def test_step_with_a_gradient_that_is_not_finite_is_not_applied(start_on_cpu):
    engine = start_on_cpu()
    model = nn.Linear(2, 1, bias=False)
    engine.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    before = model.weight.detach().clone()
    engine.backward(model(torch.full((1, 2), float("inf"))).sum(), targets=1)
    step = engine.step()
    assert not step.was_applied
    assert torch.equal(model.weight, before)
