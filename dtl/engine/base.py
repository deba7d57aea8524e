"""The interface of an engine: one process of a run, its collectives, and its optimizer steps."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.distributed_c10d import _get_default_store

from dtl.core.parallel_dims import ParallelDims
from dtl.models.structure.module_kinds import BATCH_NORM_STATISTICS, batch_norms
from dtl.models.structure.wrappers import unwrap

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.optim import Optimizer


LOSS_SCALE_GROWTH_STEPS = 2000  # as in torch.amp.GradScaler
FIRST_POLL_SECONDS = 0.001  # between questions of how many ranks have reached a barrier
LAST_POLL_SECONDS = 0.25


@dataclass(frozen=True)
class EngineSettings:
    """What the plan decided for the engine.

    `parallel_dims`: as planned, of rank 0. `dtype`: fp32, bf16 or fp16. `gradient_clip`: largest
    gradient norm, or None. `deepspeed`: the complete DeepSpeed config, or None for plain data
    parallelism. `timeout_seconds`: of a collective. `deterministic`: only algorithms that give the
    same bits in every run.
    """

    device: str
    parallel_dims: ParallelDims
    dtype: str
    accumulation_steps: int
    gradient_clip: float | None
    deepspeed: dict[str, Any] | None
    timeout_seconds: float = 1800.0
    deterministic: bool = False


@dataclass(frozen=True)
class Step:
    """The result of an optimizer step: the gradient norm before clipping, and whether the update
    was applied. Where the norm is not finite it is not applied, on any rank."""

    gradient_norm: float
    was_applied: bool


@dataclass(frozen=True)
class LossScalerState:
    """What fp16's loss scaler knows: the factor on the loss, and the steps without overflow since
    it last changed. After `LOSS_SCALE_GROWTH_STEPS` of them it is doubled; an overflow halves it.
    """

    scale: float
    steps_since_change: int


class Engine(ABC):
    """Training backend of one process (Accelerate or DeepSpeed).

    Every rank makes the same calls in the same order.
    """

    model: nn.Module  # as prepared: call this one
    optimizer: Optimizer
    previously_trained: frozenset[str] = frozenset()  # frozen now, and different from the base

    def __init__(self, settings: EngineSettings, accelerator: Accelerator) -> None:
        self.settings = settings
        self.accelerator = accelerator
        self.device: torch.device = accelerator.device
        self.parallel_dims = replace(
            settings.parallel_dims,
            world_size=accelerator.num_processes,
            rank=accelerator.process_index,
        )

    @property
    def rank(self) -> int:
        """This process, from 0."""
        return self.parallel_dims.rank

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.parallel_dims.world_size

    @property
    def is_main_process(self) -> bool:
        """Whether this is rank 0, which writes."""
        return self.rank == 0

    @property
    def unwrapped_model(self) -> nn.Module:
        """The model without the engine's wrapper."""
        return unwrap(self.model)

    def to_device(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors on this rank's device; floating-point ones in the engine's dtype."""
        # Converted on the device: a copy that also converts would wait for the host.
        return {
            name: tensor.to(self.device, non_blocking=True).to(self._input_dtype(tensor))
            for name, tensor in tensors.items()
        }

    def all_reduce_sum(self, *values: float | Tensor) -> list[float]:
        """Return the sum of each value over all ranks, computed in float64."""
        return [float(value) for value in self._sum_over_ranks(*values).tolist()]

    def _sum_over_ranks(self, *values: float | Tensor) -> Tensor:
        """Return the same on the device, shape (N,), float64; the host does not wait for it."""
        total = torch.stack([self._to_float64(value) for value in values])
        if self.world_size > 1:
            torch.distributed.all_reduce(total)
        return total

    def all_reduce_tensor(self, tensor: Tensor) -> None:
        """Replace a tensor on this rank's device by its sum over all ranks."""
        if self.world_size > 1:
            torch.distributed.all_reduce(tensor)

    def _to_float64(self, value: float | Tensor) -> Tensor:
        """Return the value on the device, shape (), without waiting for the device."""
        if isinstance(value, Tensor):
            return value.to(self.device, torch.float64)
        return torch.full((), value, dtype=torch.float64, device=self.device)

    def all_gather_object(self, values: list[Any]) -> list[Any]:
        """Return the lists of all ranks, concatenated in rank order, on every rank.

        The ranks wait for the last one outside of the collective, so that what one of them does
        before, such as hashing a checkpoint, may take longer than the timeout of a collective.
        """
        if self.world_size == 1:
            return values
        self.barrier()
        return list(gather_object(values))

    def broadcast_object(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        return self.all_gather_object([value])[0] if self.world_size > 1 else value

    def barrier(self) -> None:
        """Wait until all ranks have called this, however long that takes.

        They wait by counting in the store of the process group: in a collective they would fail
        after its timeout. A short collective then keeps the first rank from closing the store.
        """
        if self.world_size == 1:
            return
        store, key = _get_default_store(), f"dtl/barrier/{self.world_size}"
        # The count of all barriers so far; that of this one is complete at the next multiple.
        arrived = store.add(key, 1)
        complete = -(-arrived // self.world_size) * self.world_size
        pause = FIRST_POLL_SECONDS
        while store.add(key, 0) < complete:
            time.sleep(pause)
            pause = min(2 * pause, LAST_POLL_SECONDS)
        self.accelerator.wait_for_everyone()

    def close(self) -> None:
        """Leave the process group."""
        self.accelerator.state.destroy_process_group()

    def set_learning_rate(self, factor: float) -> None:
        """Set the learning rate of every parameter group to its peak times `factor`."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_learning_rate"] * factor

    def record_base_buffers(self, base: nn.Module | None) -> None:
        """Copy the buffers of the base, so that `changed_buffers` can compare with them.

        None: no buffer counts as unchanged.
        """
        buffers = _persistent_buffers(base) if base is not None else {}  # may be on the device
        self._base_buffers = {name: value.to("cpu", copy=True) for name, value in buffers.items()}

    def changed_buffers(self) -> dict[str, Tensor]:
        """Return the buffers that differ from the base, such as BatchNorm's, on the CPU."""
        current = {
            name: value.cpu() for name, value in _persistent_buffers(self.unwrapped_model).items()
        }
        base = self._base_buffers
        return {
            name: value.clone()
            for name, value in current.items()
            if name not in base or not torch.equal(value, base[name].to(value.dtype))
        }

    def sync_batch_norm_statistics(self) -> None:
        """Set the running statistics of all ranks to their mean. Every rank must call."""
        modules = [module for module in batch_norms(self.unwrapped_model) if module.training]
        if self.world_size == 1 or not modules:
            return
        statistics = [getattr(module, name) for module in modules for name in BATCH_NORM_STATISTICS]
        flat = torch.cat([statistic.flatten() for statistic in statistics])
        torch.distributed.all_reduce(flat)
        sizes = [statistic.numel() for statistic in statistics]
        means = (flat / self.world_size).split(sizes)
        for statistic, mean in zip(statistics, means, strict=True):
            statistic.copy_(mean.view_as(statistic))

    def trainable_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return the trainable parameters with their names, in the model's order."""
        return [pair for pair in self.unwrapped_model.named_parameters() if pair[1].requires_grad]

    def parameters_to_save(self) -> list[tuple[str, nn.Parameter]]:
        """Return the trainable parameters and those that an earlier phase has trained."""
        return [
            (name, parameter)
            for name, parameter in self.unwrapped_model.named_parameters()
            if parameter.requires_grad or name in self.previously_trained
        ]

    def free_memory(self) -> None:
        """Drop the model and its optimizer, so that others can be prepared."""
        self.accelerator.free_memory()
        del self.model, self.optimizer

    @property
    @abstractmethod
    def needs_optimizer_state_init(self) -> bool:
        """Whether the optimizer's state can be written only after a first step has created it."""

    @property
    @abstractmethod
    def uses_autocast(self) -> bool:
        """Whether half precision is autocast over fp32 weights."""

    @property
    @abstractmethod
    def trainable_dtype(self) -> torch.dtype:
        """The dtype that trainable parameters have once the model is prepared. Before, they are
        fp32, and the master weights start from those values."""

    @abstractmethod
    def is_partitioned(self, parameter: nn.Parameter) -> bool:
        """Whether each rank holds only a part of this parameter."""

    @abstractmethod
    def _input_dtype(self, tensor: Tensor) -> torch.dtype | None: ...

    @abstractmethod
    def init_context(
        self, is_sharded: bool, *, in_fp32: bool = False
    ) -> AbstractContextManager[None]:
        """Return the context in which weights are created.

        `is_sharded`: each rank keeps only its part, where the engine partitions weights. `in_fp32`:
        partitioned weights are created in fp32, and get the engine's dtype in `prepare`.
        """

    @abstractmethod
    def write_full_tensor(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Write a full tensor into a parameter, partitioned or not."""

    @abstractmethod
    def gather_for_read(self, parameters: list[nn.Parameter]) -> AbstractContextManager[Any]:
        """Return the context in which every rank has the full parameters, read-only."""

    @abstractmethod
    def gather_for_update(self, parameters: list[nn.Parameter]) -> AbstractContextManager[Any]:
        """Return the context in which every rank has the full parameters; rank 0's changes are
        retained."""

    @abstractmethod
    def prepare(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Wrap and shard; then use `engine.model` and `engine.optimizer`.

        Trainable parameters are fp32 until then, and the master weights have their exact values.
        """

    @abstractmethod
    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of a forward pass, which sets the dtype of its operations."""

    @abstractmethod
    def accumulate(self, *, is_last: bool) -> AbstractContextManager[Any]:
        """Return the context of one micro-batch; gradients are reduced over ranks in the last."""

    @abstractmethod
    def backward(self, loss_sum: Tensor, *, targets: int) -> None:
        """Add the gradient of loss_sum / targets. `targets`: number in the global batch."""

    def step(self) -> Step:
        """Clip the gradients, update the weights, clear the gradients."""
        return self.step_and_sum(0.0)[0]

    @abstractmethod
    def step_and_sum(self, *values: float | Tensor) -> tuple[Step, list[float]]:
        """Do the same, and return the sum of each value over all ranks as well.

        The host reads both at once, and so waits for the device once in a step.
        """

    @abstractmethod
    def fp32_master_weights(self) -> list[tuple[dict[str, Any], Tensor]]:
        """Return the fp32 tensors that this rank's optimizer updates, each with its group."""

    @property
    def inner_optimizer(self) -> Optimizer:
        """The optimizer that updates the master weights and holds the state of each."""
        inner: Optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return inner

    @abstractmethod
    def loss_scaler_state(self) -> LossScalerState | None:
        """Return the state of fp16's loss scaler; None in another dtype."""

    @abstractmethod
    def set_loss_scaler_state(self, state: LossScalerState) -> None:
        """Continue with the state of another engine's loss scaler, in fp16."""

    @abstractmethod
    def parameters_without_gradient(self) -> list[str]:
        """Return the names of trainable parameters whose moments are all zero, which means that no
        step has had a gradient for them. Every rank must call."""

    @abstractmethod
    def full_tensor(self, parameter: nn.Parameter) -> Tensor:
        """Return the full value on the CPU; trainable ones in fp32. Every rank must call."""

    @abstractmethod
    def set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Write a full trainable weight into a prepared engine. Every rank must call.

        Under ZeRO only the fp32 master weight is written; the model has it after the next step.
        """

    @abstractmethod
    def optimizer_state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Return the full optimizer state of a parameter on the CPU. Every rank must call."""

    @abstractmethod
    def set_optimizer_state(
        self, parameter: nn.Parameter, state: dict[str, Tensor], *, step: int
    ) -> None:
        """Write the full optimizer state of a parameter. Every rank must call."""


def _persistent_buffers(model: nn.Module) -> dict[str, Tensor]:
    names = set(model.state_dict())
    return {name: buffer.detach() for name, buffer in model.named_buffers() if name in names}
