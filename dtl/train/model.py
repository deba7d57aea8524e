"""The model of a phase: loaded, with the strategy applied, before the engine prepares it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dtl.assembly.parts import Parts
from dtl.config.schema import Model, RunConfig
from dtl.core.process_env import get_local_rank
from dtl.engine.base import Engine
from dtl.models.activation_checkpointing import enable_activation_checkpointing
from dtl.models.dtypes import torch_dtype
from dtl.models.load import LoadedModel, load_in_fp32, load_pretrained
from dtl.models.locate import locate_model
from dtl.models.new_parameters import init_new_parameters, write_language_weights
from dtl.models.packing import use_packed_attention
from dtl.models.peft.base import vera_matrices
from dtl.models.pretrained_config import HeadConfig
from dtl.models.processor import get_pad_token_id, set_pad_token_id
from dtl.models.router_outputs import disable_router_outputs
from dtl.models.staging import resolve_staged_model, stage_weights
from dtl.models.structure.module_kinds import adapted_layers, convolution_kernels
from dtl.models.vocabulary import rows_to_read
from dtl.plan.records import Plan
from dtl.plan.trainable_parameters import find_trainable_names
from dtl.prepare.prepared_data import PreparedData
from dtl.train.checkpoint import read_progress
from dtl.train.checkpoint_tensors import CheckpointTensors, load_weights

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class AdaptedModel:
    """A model with its strategy applied.

    `new_parameters`: names, before the strategy was applied, of the parameters that the base does
    not have. `original_weights`: of the base before it was quantized.
    """

    model: nn.Module
    new_parameters: frozenset[str]
    original_weights: Mapping[str, Tensor]


def build_model(
    config: RunConfig,
    plan: Plan,
    parts: Parts,
    data: PreparedData,
    engine: Engine,
    *,
    saved: Path | None = None,
) -> AdaptedModel:
    """Load the model and apply the strategy of the phase. Every rank must call.

    `saved`: a checkpoint of this phase, or the last one of the phase before, whose adapter is then
    merged. New parameters are the same on every layout.
    """
    layout = plan.layout
    loaded = _load_base(config, plan, parts, data, engine)
    if saved is not None and is_phase_transition(plan, parts, saved):
        previous = parts.for_phase(parts.phase - 1)
        merged = _merge_previous_phase(loaded, config.train.seed, previous, engine, saved)
        loaded_again = replace(loaded, model=merged.model)
        model = _apply_strategy(loaded_again, config.train.seed, parts, engine)
        engine.record_base_buffers(None)
        trained = _find_names(merged.changed_ids, model)
    else:
        model = _apply_strategy(loaded, config.train.seed, parts, engine)
        engine.record_base_buffers(model if parts.phase == 0 else None)
        trained = frozenset[str]()
        if saved is not None and parts.phase > 0:
            load_weights(saved, engine, model)
            trained = frozenset(CheckpointTensors(saved).weight_names)
    engine.previously_trained = frozenset(
        name for name in trained if not model.get_parameter(name).requires_grad
    )
    _cast_frozen(model, torch_dtype(layout.dtype), engine)
    if layout.packed_positions is not None:
        use_packed_attention(model)
    if layout.activation_checkpointing:
        enable_activation_checkpointing(model)
    return AdaptedModel(model, loaded.new_parameters, loaded.original_weights)


def is_phase_transition(plan: Plan, parts: Parts, saved: Path) -> bool:
    """Return whether a checkpoint is the last one of the phase before that of `parts`."""
    start = plan.phases[parts.phase].start_step
    return parts.phase > 0 and read_progress(saved).step == start


def _load_base(
    config: RunConfig, plan: Plan, parts: Parts, data: PreparedData, engine: Engine
) -> LoadedModel:
    """Load the base and initialize what it does not have."""
    precision = _choose_load_precision(config, plan, parts, data, engine)
    with load_in_fp32(precision.in_fp32):
        loaded = load_pretrained(
            config.model if parts.is_from_random else _stage_on_node(config.model, engine),
            head=HeadConfig(parts.task.auto_class, parts.task.head_config(data.dataset_stats)),
            random_init=parts.is_from_random,
            seed=config.train.seed,
            dtype=precision.dtype,
            engine=engine,
        )
    for name, parameter in loaded.model.named_parameters():
        if name in loaded.new_parameters and not engine.is_partitioned(parameter):
            parameter.data = parameter.data.float()  # they are drawn in fp32
    loaded.model.name_or_path = loaded.model.config._name_or_path = locate_model(config.model)  # type: ignore[assignment, union-attr]
    init_new_parameters(
        loaded.model,
        loaded.new_parameters,
        seed=config.train.seed,
        write_parameter=engine.write_full_tensor,
    )
    write_language_weights(loaded, write_parameter=engine.write_full_tensor)
    if (padding := get_pad_token_id(data.processor)) is not None:
        set_pad_token_id(loaded.model.config, padding)
    disable_router_outputs(loaded.model)
    parts.task.configure_model(loaded.model, processor=data.processor)
    return loaded


@dataclass(frozen=True)
class _LoadPrecision:
    """The dtype in which the base is loaded, and parameters that are loaded in fp32 instead."""

    dtype: str
    in_fp32: frozenset[str] = frozenset()


def _choose_load_precision(
    config: RunConfig, plan: Plan, parts: Parts, data: PreparedData, engine: Engine
) -> _LoadPrecision:
    """Return that in which nothing that is trained is rounded: it is loaded in fp32, and what is
    frozen in the run's dtype. ZeRO 3 creates all weights in one dtype."""
    dtype, counts = plan.layout.dtype, plan.phases[parts.phase].parameters
    if dtype == "fp32" or counts.trainable_in_model == 0:
        return _LoadPrecision(dtype)
    is_sharded = plan.layout.zero_stage == 3 and config.model.quantize is None
    if counts.frozen == 0 or is_sharded or parts.is_from_random:
        return _LoadPrecision("fp32")
    return _LoadPrecision(dtype, find_trainable_names(config, parts, data.dataset_stats))


def _stage_on_node(model: Model, engine: Engine) -> Model:
    """Return the model's copy on this node, which the node's first process makes; the model itself
    without `model.staging_dir`."""
    if model.staging_dir is None:
        return model
    if get_local_rank(os.environ) == 0:
        stage_weights(model)
    engine.barrier()
    return resolve_staged_model(model)


def _apply_strategy(loaded: LoadedModel, seed: int, parts: Parts, engine: Engine) -> nn.Module:
    """Apply the strategy, and cast what is trainable to fp32, until the engine prepares it."""
    torch.manual_seed(seed)
    with engine.gather_for_read(
        convolution_kernels(loaded.model) + rows_to_read(loaded.model)
    ):  # PEFT reads the shape of a kernel, and the initial values of new rows
        model = parts.apply_strategy(loaded)
    for parameter in model.parameters():
        if parameter.requires_grad and not engine.is_partitioned(parameter):
            parameter.data = parameter.data.float()
    for matrix in vera_matrices(model).values():
        matrix.data = matrix.data.to(engine.trainable_dtype)
    parts.strategy.load_initial_values(model, write_parameter=engine.write_full_tensor)
    return model


@dataclass(frozen=True)
class _MergedModel:
    """The model at the end of a phase, without adapters, and the ids of the parameters that differ
    from the base."""

    model: nn.Module
    changed_ids: frozenset[int]


def _merge_previous_phase(
    loaded: LoadedModel, seed: int, parts: Parts, engine: Engine, saved: Path
) -> _MergedModel:
    """Return the model that a phase has trained, its adapters merged. They are merged layer by
    layer, because a rank may have only a part of each (ZeRO-3)."""
    model = _apply_strategy(loaded, seed, parts, engine)
    load_weights(saved, engine, model)
    by_name = dict(model.named_parameters())
    changed = {id(by_name[name]) for name in CheckpointTensors(saved).weight_names}
    for layer in adapted_layers(model):
        changed |= {id(parameter) for parameter in layer.base_layer.parameters()}
        with engine.gather_for_update(list(layer.parameters())):
            layer.merge(safe_merge=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All adapters are already merged")
        return _MergedModel(parts.strategy.merge(model), frozenset(changed))


def _find_names(ids: frozenset[int], model: nn.Module) -> frozenset[str]:
    return frozenset(name for name, value in model.named_parameters() if id(value) in ids)


def _cast_frozen(model: nn.Module, dtype: torch.dtype, engine: Engine) -> None:
    """Cast frozen parameters from fp32, in which the base may be loaded, to the run's dtype."""
    for parameter in model.parameters():
        is_own = not engine.is_partitioned(parameter)
        if is_own and not parameter.requires_grad and parameter.dtype == torch.float32:
            parameter.data = parameter.data.to(dtype)
