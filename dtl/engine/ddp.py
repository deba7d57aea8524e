"""The engine without DeepSpeed: one process, or DistributedDataParallel (ZeRO stage 0)."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dtl.engine.base import (
    LOSS_SCALE_GROWTH_STEPS,
    Engine,
    EngineSettings,
    LossScalerState,
    Step,
)
from dtl.engine.gradient_record import GradientRecord, keep_unchanged
from dtl.engine.optimizer_state import (
    INTEGER_STEP_MODULES,
    OPTIMIZER_STATE_NAMES,
    has_had_gradient,
)
from dtl.models.dtypes import torch_dtype

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.optim import Optimizer


class DdpEngine(Engine):
    """Full weights on every rank. Half precision is autocast over fp32 trainable weights."""

    def __init__(self, settings: EngineSettings, accelerator: Accelerator) -> None:
        super().__init__(settings, accelerator)
        self.scaler = torch.amp.GradScaler(
            self.device.type,
            growth_interval=LOSS_SCALE_GROWTH_STEPS,
            enabled=settings.dtype == "fp16",
        )

    @property
    def needs_optimizer_state_init(self) -> bool:
        return hasattr(self.optimizer, "init_state")  # bitsandbytes has state beyond the moments

    @property
    def uses_autocast(self) -> bool:
        return self.settings.dtype != "fp32"

    @property
    def trainable_dtype(self) -> torch.dtype:
        return torch.float32  # the optimizer updates the weights themselves

    def is_partitioned(self, parameter: nn.Parameter) -> bool:
        return False

    def _input_dtype(self, tensor: Tensor) -> torch.dtype | None:
        return None

    def init_context(
        self, is_sharded: bool, *, in_fp32: bool = False
    ) -> AbstractContextManager[None]:
        return nullcontext()

    def write_full_tensor(self, parameter: nn.Parameter, value: Tensor) -> None:
        with torch.no_grad():
            parameter.copy_(value)

    def gather_for_read(self, parameters: list[nn.Parameter]) -> AbstractContextManager[Any]:
        return nullcontext()

    def gather_for_update(self, parameters: list[nn.Parameter]) -> AbstractContextManager[Any]:
        return nullcontext()

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> None:
        model.to(self.device)
        self.model = self.accelerator.prepare_model(model)
        self.optimizer = optimizer
        self._parameters = [parameter for _, parameter in self.trainable_parameters()]
        self._gradients = GradientRecord(self._parameters)
        keep_unchanged(optimizer, lambda: [each.detach() for each in self._gradients.waiting])
        self._in_pass: set[nn.Parameter] = set()
        # Accelerate wraps the model of a launched process, also where it is the only one.
        self._reduces = isinstance(self.model, nn.parallel.DistributedDataParallel)
        self._must_reduce = self._reduces
        if self._reduces:
            for parameter in self._parameters:
                parameter.register_post_accumulate_grad_hook(self._in_pass.add)

    def fp32_master_weights(self) -> list[tuple[dict[str, Any], Tensor]]:
        return [(group, each) for group in self.optimizer.param_groups for each in group["params"]]

    def autocast(self) -> AbstractContextManager[Any]:
        dtype = torch_dtype(self.settings.dtype)
        return torch.autocast(self.device.type, dtype, enabled=self.uses_autocast)

    def accumulate(self, *, is_last: bool) -> AbstractContextManager[Any]:
        self._must_reduce = is_last and self._reduces
        skips_reduction = not is_last and hasattr(self.model, "no_sync")
        return self.model.no_sync() if skips_reduction else nullcontext()  # type: ignore[operator]

    def backward(self, loss_sum: Tensor, *, targets: int) -> None:
        # DistributedDataParallel takes the mean over ranks; we need the sum.
        self._in_pass.clear()
        self.scaler.scale(loss_sum * (self.world_size / targets)).backward()
        if self._must_reduce:
            self._note_gradients()
            self._finish_reduction()

    def _note_gradients(self) -> None:
        for parameter in self._gradients.waiting:
            if parameter.grad is not None:
                self._gradients.note(parameter)

    def _finish_reduction(self) -> None:
        """Give the parameters that this backward pass has not reached on this rank a gradient of
        zero: DistributedDataParallel waits for each of them before it ends the reduction."""
        missing = [each for each in self._parameters if each not in self._in_pass]
        if missing:
            torch.autograd.backward(missing, [torch.zeros_like(each) for each in missing])

    def step_and_sum(self, *values: float | Tensor) -> tuple[Step, list[float]]:
        self.scaler.unscale_(self.optimizer)
        limit = self.settings.gradient_clip
        clipped = nn.utils.clip_grad_norm_(
            self._parameters, float("inf") if limit is None else limit
        )
        if not self._reduces:
            self._note_gradients()
        flags = self._gradients.local_flags()
        # The norm is that of the reduced gradient, so that all ranks decide alike.
        total = self._sum_over_ranks(*values, *flags)
        norm, *sums = map(float, torch.cat([clipped.double().reshape(1), total]).tolist())
        self._gradients.update(sums[len(values) :])
        self._set_missing_gradients()
        if math.isfinite(norm):
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return Step(norm, was_applied=math.isfinite(norm)), sums[: len(values)]

    def _set_missing_gradients(self) -> None:
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def loss_scaler_state(self) -> LossScalerState | None:
        state = self.scaler.state_dict()
        return LossScalerState(state["scale"], state["_growth_tracker"]) if state else None

    def set_loss_scaler_state(self, state: LossScalerState) -> None:
        changed = {"scale": state.scale, "_growth_tracker": state.steps_since_change}
        self.scaler.load_state_dict(self.scaler.state_dict() | changed)

    def parameters_without_gradient(self) -> list[str]:
        return [
            name
            for name, parameter in self.trainable_parameters()
            if not has_had_gradient(self.optimizer.state[parameter])
        ]

    def full_tensor(self, parameter: nn.Parameter) -> Tensor:
        return parameter.detach().to("cpu", copy=True)

    def set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        self.write_full_tensor(parameter, value)

    def optimizer_state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        state = self.optimizer.state[parameter]
        return {
            name: state[name].detach().to("cpu", copy=True)
            for name in OPTIMIZER_STATE_NAMES
            if name in state
        }

    def set_optimizer_state(
        self, parameter: nn.Parameter, state: dict[str, Tensor], *, step: int
    ) -> None:
        self._gradients.set(parameter, had_gradient=has_had_gradient(state))
        if not state:  # it never had a gradient
            return
        current = self.optimizer.state[parameter]
        for name, value in state.items():
            if name in current:  # in place: bitsandbytes keeps pointers to its paged memory
                current[name].copy_(value)
            else:
                current[name] = value.to(parameter.device)
        if type(self.optimizer).__module__.startswith(INTEGER_STEP_MODULES):
            current["step"] = step
            return
        is_fused = any(group.get("fused") for group in self.optimizer.param_groups)
        device = parameter.device if is_fused else "cpu"
        current["step"] = torch.tensor(float(step), device=device)
