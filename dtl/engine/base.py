"""The one door to Accelerate and DeepSpeed: start, prepare, backward, step, reduce, close."""

from __future__ import annotations

import json
import math
import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    gather_object,
)
from torch import Tensor, nn

from dtl.models.anatomy import batch_norms, unwrapped
from dtl.models.peft.adalora import IMPORTANCE, UNCERTAINTY

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from dtl.run.folder import RunFolder
    from dtl.train.trackers import Start

# What an outer launcher leaves for Accelerate; the plan has already taken it in.
OUTER_SETTINGS = (
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_USE_CPU",
    "ACCELERATE_MIXED_PRECISION",
    "ACCELERATE_CONFIG_DS_FIELDS",
)
# What optimizers keep of a parameter: AdamW; those of bitsandbytes, with their blocks' scales;
# Adafactor; Muon.
MOMENTS = (
    *("exp_avg", "exp_avg_sq", "state1", "state2", "absmax1", "absmax2"),
    *("exp_avg_sq_row", "exp_avg_sq_col", "momentum_buffer"),
)
OPTIMIZER_STATE_NAMES = (*MOMENTS, "average", IMPORTANCE, UNCERTAINTY)  # the average of the weights
COUNTING_IN_INTEGERS = ("bitsandbytes", "transformers")  # torch's count steps in tensors
STATISTICS = ("running_mean", "running_var")  # of batch normalisation
PROJECT = "dtl"  # at trackers
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class EngineSettings:
    """What the plan decided for the engine. `deepspeed`: its config, every number written out, or
    None for plain data parallelism. `gradient_clip`: the largest gradient norm, or None."""

    device: str
    ranks: int
    dtype: str
    accumulation: int
    gradient_clip: float | None
    deepspeed: dict[str, Any] | None
    timeout_seconds: float = 1800.0


@dataclass(frozen=True)
class Step:
    """Norm of the gradient before clipping, and whether the step was taken: with a norm that is not
    finite it is not, on any rank, and nothing has changed."""

    norm: float
    taken: bool


def start(settings: EngineSettings) -> Engine:
    """Join the process group. Comes before any weight is read: ZeRO-3 must be known first."""
    for name in OUTER_SETTINGS:
        os.environ.pop(name, None)
    for name in [name for name in os.environ if name.startswith("ACCELERATE_DEEPSPEED")]:
        del os.environ[name]
    on_cpu = settings.device == "cpu"
    group = InitProcessGroupKwargs(
        backend="gloo" if on_cpu else "nccl", timeout=timedelta(seconds=settings.timeout_seconds)
    )
    counting = GradientAccumulationPlugin(num_steps=settings.accumulation, adjust_scheduler=False)
    engine: Engine
    if settings.deepspeed is None:
        wrapping = DistributedDataParallelKwargs(
            gradient_as_bucket_view=True, broadcast_buffers=False
        )
        handlers = [wrapping, group] if settings.ranks > 1 else [wrapping]
        engine = PlainEngine(
            settings,
            Accelerator(
                cpu=on_cpu,
                mixed_precision="no",
                gradient_accumulation_plugin=counting,
                kwargs_handlers=handlers,
            ),
        )
    else:
        engine = _start_deepspeed(settings, group, counting, on_cpu=on_cpu)
    alive = engine.accelerator.num_processes
    if alive != settings.ranks:
        raise RuntimeError(f"{settings.ranks} ranks were planned, {alive} are alive")
    if len({int(rank) for rank in engine.all_gather_object([engine.rank])}) != settings.ranks:
        raise RuntimeError("two processes believe that they are the same rank")
    return engine


@dataclass(frozen=True)
class OpenTracker:
    """A run of one of Accelerate's trackers, begun. `identity`: its name there; None: its folder
    says it."""

    tracker: Any
    identity: str | None

    def configure(self, values: dict[str, Any]) -> None:
        plain = {
            key: value if isinstance(value, str | int | float) else json.dumps(value)
            for key, value in values.items()
        }
        if self.tracker.name == "tensorboard":  # of a config it would make a run beside this one
            text = "".join(f"    {key}: {value}\n" for key, value in plain.items())
            self.tracker.log({"config": text}, step=0)
        else:
            self.tracker.store_init_configuration(plain)

    def log(self, values: dict[str, float], step: int) -> None:
        self.tracker.log(values, step=step)

    def finish(self) -> None:
        self.tracker.finish()


def open_tracker(name: str, folder: RunFolder, start: Start) -> OpenTracker:
    """Begin a run at a tracker, or go on with one, under the run's name in the project `dtl`,
    unless the tracker's own environment names another. It is the first process's alone."""
    from accelerate import PartialState, tracking

    PartialState()  # Accelerate's log asks for it, also where no run is going on
    title, identity = folder.path.name, start.identity
    if name == "tensorboard":  # whose steps from `start.step` on are told anew
        tracker = tracking.TensorBoardTracker(name, folder.path, purge_step=start.step)
    elif name == "wandb":
        identity = identity or uuid.uuid4().hex
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        tracker = tracking.WandBTracker(
            project, name=title, id=identity, resume="allow", dir=str(folder.path)
        )
    elif name == "mlflow":
        tracker = tracking.MLflowTracker(PROJECT, run_id=identity, run_name=title)
    else:
        identity = identity or f"{title}-{uuid.uuid4().hex[:8]}"
        tracker = tracking.TrackioTracker(PROJECT, name=identity, resume="allow")
    tracker.start()
    if name == "mlflow":
        identity = tracker.tracker.info.run_id
    return OpenTracker(tracker, identity)


def _start_deepspeed(
    settings: EngineSettings, group: Any, counting: Any, *, on_cpu: bool
) -> ZeroEngine:
    from accelerate.utils import DeepSpeedPlugin

    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    if on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    plugin = DeepSpeedPlugin(hf_ds_config=settings.deepspeed)
    accelerator = Accelerator(
        mixed_precision="no",
        deepspeed_plugin=plugin,
        gradient_accumulation_plugin=counting,
        kwargs_handlers=[group],
    )
    return ZeroEngine(settings, accelerator)


class Engine(ABC):
    """One process among `ranks`. Every rank makes the same calls in the same order."""

    model: nn.Module  # as prepared: call this one
    optimizer: Optimizer
    previously_trained: frozenset[str] = (
        frozenset()
    )  # parameters that learn no more, and differ from the base

    def __init__(self, settings: EngineSettings, accelerator: Accelerator) -> None:
        self.settings = settings
        self.accelerator = accelerator
        self.device: torch.device = accelerator.device
        self.rank: int = accelerator.process_index
        self.ranks: int = accelerator.num_processes

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes."""
        return self.rank == 0

    @property
    def plain_model(self) -> nn.Module:
        """The model without the engine's wrapping."""
        return unwrapped(self.model)

    def to_device(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors on this rank's device; floating ones in the dtype of the weights."""
        return {
            name: tensor.to(self.device, non_blocking=True, dtype=self._input_dtype(tensor))
            for name, tensor in tensors.items()
        }

    def all_reduce_sum(self, *values: float | Tensor) -> list[float]:
        """Sums over all ranks, in float64."""
        total = torch.stack(
            [torch.as_tensor(value, dtype=torch.float64, device=self.device) for value in values]
        )
        if self.ranks > 1:
            torch.distributed.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def all_gather_object(self, values: list[Any]) -> list[Any]:
        """The lists of all ranks, joined in the order of the ranks, on every rank."""
        return list(gather_object(values)) if self.ranks > 1 else values

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        return self.all_gather_object([value])[0] if self.ranks > 1 else value

    def barrier(self) -> None:
        """Until all ranks are here."""
        self.accelerator.wait_for_everyone()

    def close(self) -> None:
        """Leave the process group."""
        self.accelerator.state.destroy_process_group()

    def set_learning_rate(self, factor: float) -> None:
        """Learning rate of every group: its own peak times `factor`."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_learning_rate"] * factor

    def watch_buffers(self, base: nn.Module | None) -> None:
        """Remember the buffers of the base, to know which ones training changes; None: any may have
        been changed already."""
        kept = _kept_buffers(base) if base is not None else {}  # perhaps on the device already
        self._buffers = {name: value.to("cpu", copy=True) for name, value in kept.items()}

    def changed_buffers(self) -> dict[str, Tensor]:
        """Buffers that are no longer what the base brought, such as BatchNorm's, on the CPU."""
        now = {name: value.cpu() for name, value in _kept_buffers(self.plain_model).items()}
        before = self._buffers
        return {
            name: value.clone()
            for name, value in now.items()
            if name not in before or not torch.equal(value, before[name].to(value.dtype))
        }

    def sync_batch_norm_statistics(self) -> None:
        """Give all ranks the mean of the running statistics that they have gathered."""
        gathering = [module for module in batch_norms(self.plain_model) if module.training]
        if self.ranks == 1 or not gathering:
            return
        kept = [getattr(module, name) for module in gathering for name in STATISTICS]
        flat = torch.cat([statistic.flatten() for statistic in kept])
        torch.distributed.all_reduce(flat)
        sizes = [statistic.numel() for statistic in kept]
        for statistic, mean in zip(kept, (flat / self.ranks).split(sizes), strict=True):
            statistic.copy_(mean.view_as(statistic))

    def trainable_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Names and learning parameters, in the model's order."""
        return [pair for pair in self.plain_model.named_parameters() if pair[1].requires_grad]

    def parameters_to_save(self) -> list[tuple[str, nn.Parameter]]:
        """The learning parameters, and those that have learnt before."""
        return [
            (name, parameter)
            for name, parameter in self.plain_model.named_parameters()
            if parameter.requires_grad or name in self.previously_trained
        ]

    def release(self) -> None:
        """Let go of the model and its optimizer, so that others can be prepared."""
        self.accelerator.free_memory()
        del self.model, self.optimizer

    @property
    @abstractmethod
    def needs_priming(self) -> bool:
        """Whether the optimizer's states can be written only after it has made them in a step."""

    @abstractmethod
    def _input_dtype(self, tensor: Tensor) -> torch.dtype | None: ...

    @abstractmethod
    def loading(self, sharded: bool) -> AbstractContextManager[None]:
        """The context in which weights are made; `sharded`: a rank keeps only its part (ZeRO-3)."""

    @abstractmethod
    def write_full_tensor(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Write a whole tensor into a parameter, partitioned or not."""

    @abstractmethod
    def gather_for_read(self, parameters: list[nn.Parameter]) -> AbstractContextManager[Any]:
        """The context in which these are whole on every rank, to be looked at."""

    @abstractmethod
    def gather_for_update(self, parameters: list[nn.Parameter]) -> AbstractContextManager[Any]:
        """The context in which these are whole on every rank, and what rank 0 writes stays."""

    @abstractmethod
    def prepare(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Shard and wrap; from here on use `engine.model` and `engine.optimizer`."""

    @abstractmethod
    def forward(self) -> AbstractContextManager[Any]:
        """The context of a forward pass: the arithmetic that the dtype asks for."""

    @abstractmethod
    def micro_batch(self, *, last: bool) -> AbstractContextManager[Any]:
        """The context of one forward and backward; gradients are exchanged at the last one."""

    @abstractmethod
    def backward(self, loss_sum: Tensor, *, targets: int) -> None:
        """Add the gradient of loss_sum / targets; `targets` is that of the whole global batch."""

    @abstractmethod
    def step(self) -> Step:
        """Clip, step, clear."""

    @abstractmethod
    def fp32_master_weights(self) -> list[tuple[dict[str, Any], Tensor]]:
        """The fp32 tensors that this rank's optimizer updates, each with its group."""

    @property
    def inner_optimizer(self) -> Optimizer:
        """What takes the step on the masters, and keeps the state of each."""
        inner: Optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return inner

    @abstractmethod
    def parameters_without_gradient(self) -> list[str]:
        """Learning tensors that no step has ever had a gradient for: their moments are zero.

        Every rank must call.
        """

    @abstractmethod
    def full_tensor(self, parameter: nn.Parameter) -> Tensor:
        """The whole value on the CPU, of learning parameters in fp32. Every rank must call."""

    @abstractmethod
    def set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Write a whole learning weight into a prepared engine; under ZeRO only its fp32 master,
        which the model takes over in the next step. Every rank must call."""

    @abstractmethod
    def moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Whole optimizer moments of a learning parameter, on the CPU. Every rank must call."""

    @abstractmethod
    def set_moments(
        self, parameter: nn.Parameter, moments: dict[str, Tensor], *, step: int
    ) -> None:
        """Write whole moments back. Every rank must call."""


def _kept_buffers(model: nn.Module) -> dict[str, Tensor]:
    kept = set(model.state_dict())
    return {name: buffer.detach() for name, buffer in model.named_buffers() if name in kept}


class PlainEngine(Engine):
    """One process, or data parallelism: whole weights on every rank (ZeRO stage 0).

    Half precision is autocast over fp32 learning weights.
    """

    def __init__(self, settings: EngineSettings, accelerator: Accelerator) -> None:
        super().__init__(settings, accelerator)
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=settings.dtype == "fp16" and self.device.type != "cpu"
        )

    @property
    def needs_priming(self) -> bool:
        return hasattr(self.optimizer, "init_state")  # bitsandbytes keeps more than moments there

    def _input_dtype(self, tensor: Tensor) -> torch.dtype | None:
        return None

    def loading(self, sharded: bool) -> AbstractContextManager[None]:
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

    def fp32_master_weights(self) -> list[tuple[dict[str, Any], Tensor]]:
        return [(group, each) for group in self.optimizer.param_groups for each in group["params"]]

    def forward(self) -> AbstractContextManager[Any]:
        half = self.settings.dtype != "fp32"
        return torch.autocast(self.device.type, DTYPES[self.settings.dtype], enabled=half)

    def micro_batch(self, *, last: bool) -> AbstractContextManager[Any]:
        exchange_later = not last and hasattr(self.model, "no_sync")
        return self.model.no_sync() if exchange_later else nullcontext()  # type: ignore[operator]

    def backward(self, loss_sum: Tensor, *, targets: int) -> None:
        # DistributedDataParallel takes the mean over ranks; the sum is wanted.
        self.scaler.scale(loss_sum * (self.ranks / targets)).backward()

    def step(self) -> Step:
        self.scaler.unscale_(self.optimizer)
        limit = self.settings.gradient_clip
        clipped = nn.utils.clip_grad_norm_(
            self._parameters, float("inf") if limit is None else limit
        )
        norm = float(clipped)  # of the exchanged gradient, so that all ranks decide alike
        if math.isfinite(norm):
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return Step(norm, taken=math.isfinite(norm))

    def parameters_without_gradient(self) -> list[str]:
        return [
            name for name, parameter in self.trainable_parameters() if not self._moved(parameter)
        ]

    def _moved(self, parameter: nn.Parameter) -> bool:
        state = self.optimizer.state[parameter]
        moments = [state[name] for name in MOMENTS if name in state]
        # In 8 bits, zero is not the number 0: there the blocks' scales tell.
        return any(bool(each.any()) for each in moments if each.is_floating_point())

    def full_tensor(self, parameter: nn.Parameter) -> Tensor:
        return parameter.detach().to("cpu", copy=True)

    def set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        self.write_full_tensor(parameter, value)

    def moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        state = self.optimizer.state[parameter]
        return {
            name: state[name].detach().to("cpu", copy=True)
            for name in OPTIMIZER_STATE_NAMES
            if name in state
        }

    def set_moments(
        self, parameter: nn.Parameter, moments: dict[str, Tensor], *, step: int
    ) -> None:
        if not moments:  # it never had a gradient
            return
        state = self.optimizer.state[parameter]
        for name, value in moments.items():
            if name in state:  # in place: bitsandbytes knows where it has put its pages
                state[name].copy_(value)
            else:
                state[name] = value.to(parameter.device)
        if type(self.optimizer).__module__.startswith(COUNTING_IN_INTEGERS):
            state["step"] = step
            return
        fused = any(group.get("fused") for group in self.optimizer.param_groups)
        state["step"] = torch.tensor(float(step), device=parameter.device if fused else "cpu")


class ZeroEngine(Engine):
    """DeepSpeed ZeRO stages 1 to 3: optimizer, gradients and weights shared out over the ranks."""

    def __init__(self, settings: EngineSettings, accelerator: Accelerator) -> None:
        super().__init__(settings, accelerator)
        assert settings.deepspeed is not None
        self.stage: int = settings.deepspeed["zero_optimization"]["stage"]

    @property
    def needs_priming(self) -> bool:
        return True

    def _input_dtype(self, tensor: Tensor) -> torch.dtype | None:
        return DTYPES[self.settings.dtype] if tensor.is_floating_point() else None

    @contextmanager
    def loading(self, sharded: bool) -> Iterator[None]:
        if sharded or self.stage < 3:
            with ExitStack() as whole:
                if self.stage == 3:
                    whole.enter_context(_tying_by_whole_weights())
                    whole.enter_context(_placing_by_whole_weights())
                yield
            return
        from transformers.integrations import deepspeed as bridge

        bridge.unset_hf_deepspeed_config()
        try:
            yield
        finally:
            bridge.set_hf_deepspeed_config(self.accelerator.state.deepspeed_plugin.dschf)

    def gather_for_read(self, parameters: list[nn.Parameter]) -> AbstractContextManager[Any]:
        return self._whole(parameters, modifier_rank=None)

    def gather_for_update(self, parameters: list[nn.Parameter]) -> AbstractContextManager[Any]:
        return self._whole(parameters, modifier_rank=0)

    def _whole(
        self, parameters: list[nn.Parameter], *, modifier_rank: int | None
    ) -> AbstractContextManager[Any]:
        from deepspeed.runtime.zero import GatheredParameters

        parted = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
        return GatheredParameters(parted, modifier_rank) if parted else nullcontext()

    def write_full_tensor(self, parameter: nn.Parameter, value: Tensor) -> None:
        from deepspeed.runtime.zero import GatheredParameters

        with torch.no_grad(), GatheredParameters([parameter], modifier_rank=0):
            if not hasattr(parameter, "ds_id") or self.rank == 0:
                parameter.copy_(value)

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.model, wrapped = self.accelerator.prepare(model, optimizer)
        self.optimizer = self.model.optimizer  # type: ignore[assignment]
        assert wrapped is not None

    def fp32_master_weights(self) -> list[tuple[dict[str, Any], Tensor]]:
        groups = self.inner_optimizer.param_groups
        if self.stage < 3:
            return [(group, each) for group in groups for each in group["params"]]
        whose = self.optimizer.sub_group_to_group_id  # type: ignore[attr-defined]
        shares = self.optimizer.fp32_partitioned_groups_flat  # type: ignore[attr-defined]
        return [(groups[whose[place]], share) for place, share in enumerate(shares)]

    def forward(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def micro_batch(self, *, last: bool) -> AbstractContextManager[Any]:
        self.model.set_gradient_accumulation_boundary(is_boundary=last)  # type: ignore[operator]
        return nullcontext()

    def backward(self, loss_sum: Tensor, *, targets: int) -> None:
        # DeepSpeed takes the mean over ranks; the sum is wanted.
        self.model.backward(loss_sum * (self.ranks / targets), scale_wrt_gas=False)  # type: ignore[operator]

    def step(self) -> Step:
        self.model.step()  # type: ignore[operator]
        norm = float(self.model.get_global_grad_norm())  # type: ignore[operator]
        # DeepSpeed itself leaves out a step whose norm is not finite, at every stage.
        return Step(norm, taken=not self.optimizer.overflow)  # type: ignore[attr-defined]

    def parameters_without_gradient(self) -> list[str]:
        self._link_all_moments()
        learning = self.trainable_parameters()
        mine = [float(self._my_part_moved(parameter)) for _, parameter in learning]
        return [
            name
            for (name, _), moved in zip(learning, self.all_reduce_sum(*mine), strict=True)
            if not moved
        ]

    def _my_part_moved(self, parameter: nn.Parameter) -> bool:
        moments = [name for name in self._kept() if name in MOMENTS]
        if self.stage == 3:
            from deepspeed.utils import safe_get_local_optimizer_state as part_of

            return any(bool(part_of(parameter, name).any()) for name in moments)
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        return mapping is not None and any(
            bool(mapping.get_optim_state_fragment(name).any()) for name in moments
        )

    def _kept(self) -> list[str]:
        """What the optimizer keeps of every parameter; the same on every rank."""
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
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        if self.stage == 3:
            safe_set_local_fp32_param(parameter, self._my_part_of(value))
        else:
            safe_set_full_fp32_param(parameter, value.to(self.device))

    def moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_optimizer_state

        self._link_all_moments()
        return {
            name: safe_get_full_optimizer_state(parameter, name).detach().to("cpu", copy=True)
            for name in self._kept()
        }

    def set_moments(
        self, parameter: nn.Parameter, moments: dict[str, Tensor], *, step: int
    ) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        self._link_all_moments()
        for name, value in moments.items():
            if self.stage == 3:
                safe_set_local_optimizer_state(parameter, self._my_part_of(value), name)
            else:
                safe_set_full_optimizer_state(parameter, value.to(self.device), name)
        for state in self.inner_optimizer.state.values():
            if isinstance(state.get("step"), Tensor):
                state["step"].fill_(float(step))
            else:
                state["step"] = step

    def _my_part_of(self, value: Tensor) -> Tensor:
        """What stage 3 keeps of a tensor on this rank, filled up with zeros at the end. DeepSpeed's
        setters of whole tensors fail where the ranks do not divide it (0.19.8)."""
        flat = value.flatten()
        size = -(-flat.numel() // self.ranks)
        part = flat[self.rank * size : (self.rank + 1) * size].to(self.device)
        return nn.functional.pad(part, (0, size - part.numel()))

    def _link_all_moments(self) -> None:
        """Stages 1 and 2 tie moments to parameters after the step of the first parameter group
        (DeepSpeed 0.19.8), when the other groups have none yet: tie them once more."""
        if hasattr(self.optimizer, "_hp_optimizer_states_linked"):
            self.optimizer._hp_optimizer_states_linked = False
            self.optimizer._lazy_init_hp_params_optimizer_state()  # type: ignore[attr-defined]


@contextmanager
def _tying_by_whole_weights() -> Iterator[None]:
    """transformers 5 ties input and output embeddings where their values are equal, and under
    ZeRO-3 it compares empty placeholders: T5 1.1, whose output is its own, would be tied too."""
    from deepspeed.runtime.zero import GatheredParameters
    from transformers import PreTrainedModel

    tie = PreTrainedModel.tie_weights

    def tie_whole(model: Any, missing_keys: Any = None, **how: Any) -> None:
        pairs = getattr(model, "all_tied_weights_keys", None) or {}
        names = {name for pair in pairs.items() for name in pair}
        tied = [value for name, value in model.named_parameters() if name in names]
        with GatheredParameters(tied):
            tie(model, missing_keys, **how)

    PreTrainedModel.tie_weights = tie_whole
    try:
        yield
    finally:
        PreTrainedModel.tie_weights = tie


@contextmanager
def _placing_by_whole_weights() -> Iterator[None]:
    """transformers 5.23 goes over a model that it has read, module by module, and looks at weights
    that ZeRO-3 keeps elsewhere: Whisper's positions, and those of a normed kernel (wav2vec2)."""
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
    from transformers import PreTrainedModel

    initialise = PreTrainedModel._initialize_weights

    def initialise_whole(model: Any, module: nn.Module, *given: Any, **how: Any) -> None:
        away = [
            value
            for value in _looked_at(module)
            if getattr(value, "ds_status", None) == ZeroParamStatus.NOT_AVAILABLE
        ]
        with GatheredParameters(away, enabled=bool(away)):
            initialise(model, module, *given, **how)

    PreTrainedModel._initialize_weights = initialise_whole
    try:
        yield
    finally:
        PreTrainedModel._initialize_weights = initialise


def _looked_at(module: nn.Module) -> list[nn.Parameter]:
    """Weights of which the first look at a read model asks more than their names."""
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    if isinstance(module, WhisperEncoder):
        return [module.embed_positions.weight]
    return [
        parameter
        for each in (module, *module.children())
        if nn.utils.parametrize.is_parametrized(each)
        for parameter in each.parametrizations.parameters()  # type: ignore[union-attr]
    ]
