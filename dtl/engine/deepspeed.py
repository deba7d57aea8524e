"""The engine on DeepSpeed: ZeRO stages 1 to 3."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
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
from dtl.engine.optimizer_state import MOMENTS, OPTIMIZER_STATE_NAMES, has_had_gradient
from dtl.engine.patches import (
    init_with_gathered_weights,
    keep_batch_norm_statistics,
    tie_gathered_weights,
)
from dtl.models.dtypes import torch_dtype
from dtl.models.full_shape import register_shape_reader
from dtl.models.structure.module_kinds import has_expert_lists

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.optim import Optimizer


class DeepSpeedEngine(Engine):
    """Optimizer state, gradients and weights are partitioned over the ranks, by ZeRO stage."""

    def __init__(self, settings: EngineSettings, accelerator: Accelerator) -> None:
        super().__init__(settings, accelerator)
        assert settings.deepspeed is not None
        self.stage: int = settings.deepspeed["zero_optimization"]["stage"]
        register_shape_reader(read_full_shape)
        self._steps_since_scale_change = 0

    @property
    def needs_optimizer_state_init(self) -> bool:
        return True

    @property
    def uses_autocast(self) -> bool:
        return False

    @property
    def trainable_dtype(self) -> torch.dtype:
        # ZeRO keeps fp32 master weights, and needs one dtype for all parameters, also where PEFT
        # adds an fp32 adapter to a model in bf16.
        return torch_dtype(self.settings.dtype)

    def is_partitioned(self, parameter: nn.Parameter) -> bool:
        return hasattr(parameter, "ds_id")

    def _input_dtype(self, tensor: Tensor) -> torch.dtype | None:
        return torch_dtype(self.settings.dtype) if tensor.is_floating_point() else None

    @contextmanager
    def init_context(self, is_sharded: bool, *, in_fp32: bool = False) -> Iterator[None]:
        if self.stage < 3:
            yield
            return
        from transformers.integrations import deepspeed as bridge

        with ExitStack() as contexts:
            contexts.callback(
                bridge.set_hf_deepspeed_config, self.accelerator.state.deepspeed_plugin.dschf
            )
            if not is_sharded:
                bridge.unset_hf_deepspeed_config()
            else:
                contexts.enter_context(tie_gathered_weights())
                contexts.enter_context(init_with_gathered_weights())
                contexts.enter_context(keep_batch_norm_statistics())
                if in_fp32:
                    half = {"bf16": {"enabled": False}, "fp16": {"enabled": False}}
                    settings = bridge.HfDeepSpeedConfig({**self.settings.deepspeed, **half})  # type: ignore[dict-item]
                    contexts.callback(lambda: settings)  # transformers has a weak reference to it
            yield

    def gather_for_read(self, parameters: list[nn.Parameter]) -> AbstractContextManager[Any]:
        return self._gather_parameters(parameters, modifier_rank=None)

    def gather_for_update(self, parameters: list[nn.Parameter]) -> AbstractContextManager[Any]:
        return self._gather_parameters(parameters, modifier_rank=0)

    def _gather_parameters(
        self, parameters: list[nn.Parameter], *, modifier_rank: int | None
    ) -> AbstractContextManager[Any]:
        from deepspeed.runtime.zero import GatheredParameters

        partitioned = [parameter for parameter in parameters if self.is_partitioned(parameter)]
        return GatheredParameters(partitioned, modifier_rank) if partitioned else nullcontext()

    def write_full_tensor(self, parameter: nn.Parameter, value: Tensor) -> None:
        from deepspeed.runtime.zero import GatheredParameters

        with torch.no_grad(), GatheredParameters([parameter], modifier_rank=0):
            if not self.is_partitioned(parameter) or self.rank == 0:
                parameter.copy_(value)

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> None:
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        start_values = [self._start_value(parameter) for parameter in trainable]
        for parameter in model.parameters():
            self._cast(parameter)
        self._reduces_at_end = self.stage < 3 and has_expert_lists(model)
        self._reduction = ExitStack()
        self.model, wrapped = self.accelerator.prepare(model, optimizer)
        self.optimizer = self.model.optimizer  # type: ignore[assignment]
        assert wrapped is not None
        if self._loss_scaler is not None:
            self._loss_scaler.raise_error_at_min_scale = False  # the run's own check ends it
            self._steps_since_scale_change = 0
        for parameter, value in zip(trainable, start_values, strict=True):
            if value is not None:  # DeepSpeed has made the master weight from the rounded one
                self._set_master_weight(parameter, value)
        self._gradients = GradientRecord(trainable)
        self._gradients.watch()
        keep_unchanged(
            self.inner_optimizer, lambda: self._master_fragments(list(self._gradients.waiting))
        )
        self._in_pass: set[nn.Parameter] = set()
        self._is_first_pass = True
        if self.stage == 3:
            for parameter in trainable:
                parameter.register_post_accumulate_grad_hook(self._in_pass.add)

    def _master_fragments(self, parameters: list[nn.Parameter]) -> list[Tensor]:
        """Return this rank's parts of the fp32 master weights, as views."""
        if self.stage < 3:
            mappings = [parameter._hp_mapping for parameter in parameters]  # type: ignore[attr-defined]
            return [each.hp_fragment.detach() for each in mappings if each is not None]
        optimizer: Any = self.optimizer
        places = [optimizer.grad_position[optimizer.get_param_id(each)] for each in parameters]
        partitions = optimizer.fp32_partitioned_groups_flat
        return [partitions[i].detach().narrow(0, start, size) for i, start, size in places]

    def _set_master_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Write an fp32 value into a master weight: of this rank's part at stage 3, else full."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        if self.stage == 3:
            safe_set_local_fp32_param(parameter, value)
        else:
            safe_set_full_fp32_param(parameter, value.to(self.device))

    def _start_value(self, parameter: nn.Parameter) -> Tensor | None:
        """Return the fp32 value that the master weight starts from, at stage 3 of this rank's part;
        None where training is in fp32 anyway."""
        if self.trainable_dtype == torch.float32:
            return None
        if self.is_partitioned(parameter):
            partition: Tensor = parameter.ds_tensor  # type: ignore[attr-defined]
            return partition.detach().to("cpu", torch.float32, copy=True)
        value = parameter.detach().float()
        return self._local_partition(value) if self.stage == 3 else value

    def _cast(self, parameter: nn.Parameter) -> None:
        """Cast an fp32 parameter to the engine's dtype, in place: DeepSpeed needs one dtype."""
        if parameter.dtype == torch.float32:
            parameter.data = parameter.data.to(self.trainable_dtype)
            if self.is_partitioned(parameter):
                partition: Tensor = parameter.ds_tensor  # type: ignore[attr-defined]
                partition.data = partition.data.to(self.trainable_dtype)

    def fp32_master_weights(self) -> list[tuple[dict[str, Any], Tensor]]:
        groups = self.inner_optimizer.param_groups
        if self.stage < 3:
            return [(group, each) for group in groups for each in group["params"]]
        group_index = self.optimizer.sub_group_to_group_id  # type: ignore[attr-defined]
        partitions = self.optimizer.fp32_partitioned_groups_flat  # type: ignore[attr-defined]
        return [(groups[group_index[i]], partition) for i, partition in enumerate(partitions)]

    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def accumulate(self, *, is_last: bool) -> AbstractContextManager[Any]:
        self.model.set_gradient_accumulation_boundary(is_boundary=is_last)  # type: ignore[operator]
        return self._reduce_at_end(is_last=is_last) if self._reduces_at_end else nullcontext()

    @contextmanager
    def _reduce_at_end(self, *, is_last: bool) -> Iterator[None]:
        """Reduce the gradients of a step after its last backward pass, in the model's order. The
        ranks use different experts, so that their gradients come in different orders, and some
        not at all."""
        if self._is_first_pass:
            self._reduction.enter_context(self.model.coalesce_grad_reduction())  # type: ignore[operator]
        yield
        if is_last:
            self._fill_missing_gradients()
            self._reduction.close()
            self.model.set_gradient_accumulation_boundary(is_boundary=True)  # type: ignore[operator]

    def _fill_missing_gradients(self) -> None:
        optimizer: Any = self.optimizer
        name = "grad_accum" if optimizer.use_grad_accum_attribute else "grad"
        for _, parameter in self.trainable_parameters():
            if getattr(parameter, name, None) is None:
                dtype = optimizer._gradient_reduction_buffer_dtype()
                setattr(parameter, name, torch.zeros_like(parameter, dtype=dtype))

    def backward(self, loss_sum: Tensor, *, targets: int) -> None:
        # DeepSpeed takes the mean over ranks; we need the sum.
        self._in_pass.clear()
        self.model.backward(loss_sum * (self.world_size / targets), scale_wrt_gas=False)  # type: ignore[operator]
        if self.stage == 3 and self._is_first_pass:
            self._clear_old_gradients()
        self._is_first_pass = False

    def _clear_old_gradients(self) -> None:
        """Clear the gradients that stage 3 keeps from the step before where the first micro-batch
        has none: DeepSpeed overwrites only the others, and would use those again (0.19.8)."""
        optimizer: Any = self.optimizer
        by_id = optimizer._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition
        for _, parameter in self.trainable_parameters():
            if parameter not in self._in_pass:
                by_id[parameter.ds_id].zero_()  # type: ignore[attr-defined]

    def step_and_sum(self, *values: float | Tensor) -> tuple[Step, list[float]]:
        if self._gradients.waiting:  # until each parameter has had a gradient, mostly in one step
            self._gradients.update(self.all_reduce_sum(*self._gradients.local_flags()))
        self.model.step()  # type: ignore[operator]
        self._is_first_pass = True
        norm = float(self.model.get_global_grad_norm())  # type: ignore[operator]
        # DeepSpeed itself skips a step whose norm is not finite, at every stage.
        was_applied = not self.optimizer.overflow  # type: ignore[attr-defined]
        if self._loss_scaler is not None:
            self._grow_loss_scale(was_applied=was_applied)
        return Step(norm, was_applied=was_applied), self.all_reduce_sum(*values)

    @property
    def _loss_scaler(self) -> Any:
        """DeepSpeed's loss scaler in fp16, else None."""
        return self.optimizer.loss_scaler if self.settings.dtype == "fp16" else None  # type: ignore[attr-defined]

    def _grow_loss_scale(self, *, was_applied: bool) -> None:
        """Double the loss scale after enough steps without overflow. DeepSpeed 0.19.8 does it at
        stage 3 before it divides the gradients by the scale, which would halve one update."""
        self._steps_since_scale_change = self._steps_since_scale_change + 1 if was_applied else 0
        if self._steps_since_scale_change == LOSS_SCALE_GROWTH_STEPS:
            self._loss_scaler.cur_scale *= 2.0
            self._steps_since_scale_change = 0

    def loss_scaler_state(self) -> LossScalerState | None:
        scaler = self._loss_scaler
        if scaler is None:
            return None
        return LossScalerState(float(scaler.cur_scale), self._steps_since_scale_change)

    def set_loss_scaler_state(self, state: LossScalerState) -> None:
        self._loss_scaler.cur_scale = state.scale
        self._steps_since_scale_change = state.steps_since_change

    def parameters_without_gradient(self) -> list[str]:
        self._link_optimizer_states()
        trainable = self.trainable_parameters()
        local = [float(self._has_local_gradient(parameter)) for _, parameter in trainable]
        return [
            name
            for (name, _), ranks in zip(trainable, self.all_reduce_sum(*local), strict=True)
            if not ranks
        ]

    def _has_local_gradient(self, parameter: nn.Parameter) -> bool:
        """Return whether this rank's part of the parameter has had a gradient."""
        moments = [name for name in self._state_names() if name in MOMENTS]
        if self.stage == 3:
            from deepspeed.utils import safe_get_local_optimizer_state

            return any(
                bool(safe_get_local_optimizer_state(parameter, name).any()) for name in moments
            )
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        return mapping is not None and any(
            bool(mapping.get_optim_state_fragment(name).any()) for name in moments
        )

    def _state_names(self) -> list[str]:
        """Return what the optimizer keeps for every parameter; the same on every rank."""
        states = self.inner_optimizer.state.values()
        return [name for name in OPTIMIZER_STATE_NAMES if any(name in state for state in states)]

    def full_tensor(self, parameter: nn.Parameter) -> Tensor:
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_get_full_fp32_param

        if parameter.requires_grad:
            value: Tensor = safe_get_full_fp32_param(parameter)
            return value.detach().to("cpu", copy=True)
        with GatheredParameters([parameter]):
            return parameter.detach().to("cpu", copy=True)

    def set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        self._set_master_weight(
            parameter, self._local_partition(value) if self.stage == 3 else value
        )

    def optimizer_state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_optimizer_state

        self._link_optimizer_states()
        return {
            name: safe_get_full_optimizer_state(parameter, name).detach().to("cpu", copy=True)
            for name in self._state_names()
        }

    def set_optimizer_state(
        self, parameter: nn.Parameter, state: dict[str, Tensor], *, step: int
    ) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        self._gradients.set(parameter, had_gradient=has_had_gradient(state))
        self._link_optimizer_states()
        for name, value in state.items():
            if self.stage == 3:
                safe_set_local_optimizer_state(parameter, self._local_partition(value), name)
            else:
                safe_set_full_optimizer_state(parameter, value.to(self.device), name)
        for current in self.inner_optimizer.state.values():
            if isinstance(current.get("step"), Tensor):
                current["step"].fill_(float(step))
            else:
                current["step"] = step

    def _local_partition(self, value: Tensor) -> Tensor:
        """Return the part of a full tensor that stage 3 keeps on this rank, flat, with zeros at the
        end. DeepSpeed's setters of full tensors fail where the number of ranks does not divide the
        number of elements (0.19.8)."""
        flat = value.flatten()
        size = -(-flat.numel() // self.world_size)
        partition = flat[self.rank * size : (self.rank + 1) * size].to(self.device)
        return nn.functional.pad(partition, (0, size - partition.numel()))

    def _link_optimizer_states(self) -> None:
        """Link optimizer states to parameters again. Stages 1 and 2 link them after the step of the
        first parameter group, when the other groups have none yet (DeepSpeed 0.19.8)."""
        if hasattr(self.optimizer, "_hp_optimizer_states_linked"):
            self.optimizer._hp_optimizer_states_linked = False
            self.optimizer._lazy_init_hp_params_optimizer_state()  # type: ignore[attr-defined]


def read_full_shape(parameter: Tensor) -> tuple[int, ...] | None:
    """Return the shape of a parameter that stage 3 has partitioned; None for other tensors."""
    shape = getattr(parameter, "ds_shape", None)
    return None if shape is None else tuple(shape)
