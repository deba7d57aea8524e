"""Starting an engine on one process."""

import math
import os

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from torch import nn

from dtl.core.parallel_dims import ParallelDims
from dtl.engine.base import LOSS_SCALE_GROWTH_STEPS, EngineSettings, LossScalerState
from dtl.engine.ddp import DdpEngine
from dtl.engine.start import start


@pytest.fixture
def start_on_cpu():
    def start_engine(world_size=1, dtype="fp32", *, deterministic=False):
        return start(
            EngineSettings(
                device="cpu",
                parallel_dims=ParallelDims(world_size),
                dtype=dtype,
                accumulation_steps=1,
                gradient_clip=None,
                deepspeed=None,
                deterministic=deterministic,
            )
        )

    yield start_engine
    torch.use_deterministic_algorithms(False)
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


def test_deterministic_run_allows_no_other_algorithms_and_the_next_run_does(start_on_cpu):
    start_on_cpu(deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert os.environ["FLASH_ATTENTION_DETERMINISTIC"] == "1"
    # The padding that DeepSpeed leaves uninitialized must not become NaN.
    assert not torch.utils.deterministic.fill_uninitialized_memory
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    AcceleratorState._reset_state(reset_partial_state=True)
    start_on_cpu()
    assert not torch.are_deterministic_algorithms_enabled()


def test_loss_scaler_continues_where_another_one_was(start_on_cpu):
    engine = start_on_cpu(dtype="fp16")
    model = nn.Linear(2, 1, bias=False)
    engine.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert engine.loss_scaler_state() == LossScalerState(2.0**16, 0)
    engine.set_loss_scaler_state(LossScalerState(4.0, LOSS_SCALE_GROWTH_STEPS - 1))
    engine.backward(engine.model(torch.ones(1, 2)).sum(), targets=1)
    assert model.weight.grad.tolist() == [[4.0, 4.0]]
    assert engine.step().gradient_norm == pytest.approx(2**0.5)
    assert engine.loss_scaler_state() == LossScalerState(8.0, 0)


def test_step_waits_for_the_device_once(start_on_cpu, monkeypatch):
    """The gradient norm, the losses and the votes to stop are read together."""
    engine = start_on_cpu()
    model = nn.Linear(2, 1)
    engine.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    engine.backward(engine.model(torch.ones(1, 2)).sum(), targets=1)
    reads = []
    for name in ("tolist", "item", "__float__", "__bool__", "__int__", "cpu", "numpy"):
        read = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor,
            name,
            lambda tensor, read=read, name=name: reads.append(name) or read(tensor),
        )
    step, sums = engine.step_and_sum(torch.tensor(3.5), 1.0)
    monkeypatch.undo()
    assert reads == ["tolist"]
    assert sums == [3.5, 1.0]
    assert step.was_applied and step.gradient_norm == pytest.approx(math.sqrt(3))


def test_inputs_are_converted_after_the_copy_to_the_device(start_on_cpu):
    """A copy that converts on the host could not be asynchronous."""
    engine = start_on_cpu()
    calls = []

    class Pinned:
        def to(self, *arguments, **options):
            calls.append((arguments, options))
            return self

    engine.to_device({"labels": Pinned()})
    assert calls == [((engine.device,), {"non_blocking": True}), ((None,), {})]
