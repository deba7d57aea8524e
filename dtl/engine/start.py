"""Starting an engine: join the process group and check its size."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
)

from dtl.core.process_env import find_free_port
from dtl.engine.base import Engine, EngineSettings
from dtl.engine.cpu_adam import build_on_every_node
from dtl.engine.ddp import DdpEngine
from dtl.engine.deepspeed import DeepSpeedEngine
from dtl.engine.extension_builds import guard_extension_builds

# What `accelerate launch` sets; the plan already contains these settings.
ACCELERATE_VARIABLES = (
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_USE_CPU",
    "ACCELERATE_MIXED_PRECISION",
    "ACCELERATE_CONFIG_DS_FIELDS",
)


def start(settings: EngineSettings) -> Engine:
    """Join the process group and return the engine of this process.

    Call it before any weight is read, because ZeRO-3 has to be configured first. Raises
    RuntimeError where the processes are not those of the plan.
    """
    _remove_accelerate_variables()
    choose_algorithms(os.environ, deterministic=settings.deterministic)
    engine = _start_ddp(settings) if settings.deepspeed is None else _start_deepspeed(settings)
    _check_world_size(engine, settings.parallel_dims.world_size)
    if (settings.deepspeed or {}).get("zero_force_ds_cpu_optimizer"):
        build_on_every_node(engine)
    return engine


def choose_algorithms(environment: MutableMapping[str, str], *, deterministic: bool) -> None:
    """Have torch use only algorithms that give the same bits in every run, or any again.

    An operation that has none raises RuntimeError. Call it before CUDA is initialized.
    """
    if deterministic:
        environment.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        environment["FLASH_ATTENTION_DETERMINISTIC"] = "1"  # transformers reads it
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = deterministic
    torch.use_deterministic_algorithms(deterministic)


def _remove_accelerate_variables() -> None:
    for name in ACCELERATE_VARIABLES:
        os.environ.pop(name, None)
    for name in [name for name in os.environ if name.startswith("ACCELERATE_DEEPSPEED")]:
        del os.environ[name]


def _start_ddp(settings: EngineSettings) -> DdpEngine:
    wrapper = DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)
    is_distributed = settings.parallel_dims.world_size > 1
    accelerator = Accelerator(
        cpu=settings.device == "cpu",
        mixed_precision="no",
        gradient_accumulation_plugin=_accumulation_plugin(settings),
        kwargs_handlers=[wrapper, _process_group(settings)] if is_distributed else [wrapper],
    )
    return DdpEngine(settings, accelerator)


def _start_deepspeed(settings: EngineSettings) -> DeepSpeedEngine:
    from accelerate.utils import DeepSpeedPlugin

    guard_extension_builds()
    _describe_single_process_group(os.environ)
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    if settings.device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    accelerator = Accelerator(
        mixed_precision="no",
        deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=settings.deepspeed),
        gradient_accumulation_plugin=_accumulation_plugin(settings),
        kwargs_handlers=[_process_group(settings)],
    )
    return DeepSpeedEngine(settings, accelerator)


def _describe_single_process_group(environment: MutableMapping[str, str]) -> None:
    """Describe a process group of one process where no launcher has described one: DeepSpeed needs
    a group in any case."""
    if "RANK" not in environment:
        environment.update({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"})
        environment.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_port())})


def _accumulation_plugin(settings: EngineSettings) -> GradientAccumulationPlugin:
    return GradientAccumulationPlugin(num_steps=settings.accumulation_steps, adjust_scheduler=False)


def _process_group(settings: EngineSettings) -> InitProcessGroupKwargs:
    return InitProcessGroupKwargs(
        backend="gloo" if settings.device == "cpu" else "nccl",
        timeout=timedelta(seconds=settings.timeout_seconds),
    )


def _check_world_size(engine: Engine, planned: int) -> None:
    if engine.world_size != planned:
        raise RuntimeError(f"the world size is {engine.world_size}, planned were {planned}")
    if len({int(rank) for rank in engine.all_gather_object([engine.rank])}) != planned:
        raise RuntimeError("two processes have the same rank")
