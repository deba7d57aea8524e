"""How a training begins: the checkpoint that it goes on from, and the model that will learn."""

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
from dtl.core.errors import RunFailed
from dtl.core.process_env import number_on_node
from dtl.data.loader import Loader
from dtl.engine.base import DTYPES, Engine, EngineSettings, start
from dtl.models.anatomy import adapted_layers, convolutions
from dtl.models.load import Loaded, fill_given, initialise, load_pretrained, locate, padding_token
from dtl.models.peft.adapters import shared_matrices
from dtl.models.staging import stage, staged
from dtl.plan.records import Layout, Plan
from dtl.prepare.dataset import Examples
from dtl.run.folder import RunFolder
from dtl.train import checkpoint
from dtl.train.checkpoint import CheckpointStore, Learnt, Stored
from dtl.train.log import RunLog

if TYPE_CHECKING:
    from torch import Tensor, nn


def start_engine(config: RunConfig, plan: Plan) -> Engine:
    """Join the other ranks of this plan."""
    layout = plan.layout
    return start(
        EngineSettings(
            device=layout.device,
            ranks=layout.ranks,
            dtype=layout.dtype,
            accumulation=layout.accumulation,
            gradient_clip=config.optim.gradient_clip,
            deepspeed=plan.deepspeed,
        )
    )


def find_checkpoint(
    folder: RunFolder, store: CheckpointStore, engine: Engine, log: RunLog
) -> Path | None:
    """The newest whole checkpoint, the same on every rank; damaged ones are named and set aside.

    The log forgets what was done after it. Raises RunFailed when there are only damaged ones.
    """
    found, lost = None, False
    if engine.is_first and store.folder.exists():
        found, damaged = store.newest_whole()
        for damage in damaged:
            log.say(f"set aside {damage.path}: {damage.reason}")
            damage.path.rename(_free(damage.path.with_name(f"damaged-{damage.path.name}")))
        lost = found is None and any(store.folder.glob("damaged-*"))
    found, lost = engine.broadcast_object((found, lost))
    if lost:
        raise RunFailed.of(
            str(store.folder),
            "there were checkpoints, and none is whole",
            "start a new run under another name",
        )
    if engine.is_first:
        folder.forget_after(checkpoint.read_progress(found).step if found else -1)
    if found is not None:
        log.say(f"resuming from {found}")
    return found


def _free(path: Path) -> Path:
    """The path, or with a number where something has its name already."""
    number = 2
    tried = path
    while tried.exists():
        tried, number = path.with_name(f"{path.name}-{number}"), number + 1
    return tried


@dataclass(frozen=True)
class Adapted:
    """A model with its strategy applied. `new`: names of the parameters that the base did not
    bring, before that. `whole`: the base's weights before they were quantized."""

    model: nn.Module
    new: frozenset[str]
    whole: Mapping[str, Tensor]


def open_model(
    config: RunConfig,
    plan: Plan,
    parts: Parts,
    examples: Examples,
    engine: Engine,
    *,
    saved: Path | None = None,
) -> Adapted:
    """The model with the strategy of the phase applied, as far as it has come: `saved` is a
    checkpoint of this phase or the last one of the phase before.

    New parameters are the same on every layout.
    """
    phase, layout = plan.phases[parts.phase], plan.layout
    whole_in_fp32 = layout.zero == 0 and phase.parameters.frozen == 0
    loaded = load_pretrained(
        config.model if parts.from_random else _on_this_node(config.model, engine),
        head=parts.task.auto_class,
        changes=parts.task.head_config(examples.facts),
        random=parts.from_random,
        seed=config.train.seed,
        dtype="fp32" if whole_in_fp32 else layout.dtype,
        loading=engine.loading,
    )
    loaded.model.name_or_path = loaded.model.config._name_or_path = locate(config.model)  # type: ignore[assignment, union-attr]
    initialise(loaded.model, loaded.new, seed=config.train.seed, fill=engine.write_full_tensor)
    fill_given(loaded, fill=engine.write_full_tensor)
    if (padding := padding_token(examples.processor)) is not None:
        loaded.model.config.pad_token_id = padding  # type: ignore[union-attr]
    parts.task.configure_model(loaded.model, processor=examples.processor)
    if saved is not None and is_phase_transition(plan, parts, saved):
        former = _go_over(loaded, config, layout, parts.in_phase(parts.phase - 1), engine, saved)
        model = _adapt(replace(loaded, model=former.model), config, layout, parts, engine)
        engine.watch_buffers(None)
        kept = _names_of(former.moved, model)
    else:
        model = _adapt(loaded, config, layout, parts, engine)
        engine.watch_buffers(model if parts.phase == 0 else None)
        kept = frozenset()
        if saved is not None and parts.phase > 0:
            checkpoint.fill_weights(saved, engine, model)
            kept = frozenset(checkpoint.Stored(saved).weights)
    by_name = dict(model.named_parameters())
    engine.previously_trained = frozenset(name for name in kept if not by_name[name].requires_grad)
    for name in engine.previously_trained:
        if not hasattr(by_name[name], "ds_id"):
            by_name[name].data = by_name[name].data.to(DTYPES[layout.dtype])
    if layout.activation_checkpointing:
        recompute_activations(model)
    return Adapted(model, loaded.new, loaded.whole)


def _on_this_node(model: Model, engine: Engine) -> Model:
    """With `model.stage_to`, the node's own copy, which its first process has made by now."""
    if model.stage_to is None:
        return model
    if number_on_node(os.environ) == 0:
        stage(model)
    engine.barrier()
    return staged(model)


def recompute_activations(model: nn.Module) -> None:
    """Keep nothing inside a block for the backward pass, which computes it again.

    transformers then lets the input have a gradient, which only the reentrant kind needs. It would
    take the backward pass through all that is frozen below, with the activations kept there.
    """
    model.gradient_checkpointing_enable(  # type: ignore[operator]
        gradient_checkpointing_kwargs={"use_reentrant": False}
    )
    model.disable_input_require_grads()  # type: ignore[operator]


def is_phase_transition(plan: Plan, parts: Parts, saved: Path) -> bool:
    """Whether a checkpoint is the last one of the phase before that of `parts`."""
    before = plan.phases[parts.phase].before
    return parts.phase > 0 and checkpoint.read_progress(saved).step == before


def _adapt(
    loaded: Loaded, config: RunConfig, layout: Layout, parts: Parts, engine: Engine
) -> nn.Module:
    torch.manual_seed(config.train.seed)
    with engine.gather_for_read(
        convolutions(loaded.model)
    ):  # an adapter looks at a kernel's dimensions
        model = parts.adapt(loaded)
    # At stage 0 the optimizer works on the weights themselves: they are fp32. ZeRO keeps fp32
    # copies and wants one dtype, also where PEFT puts an fp32 adapter beside a head in bf16.
    dtype = torch.float32 if layout.zero == 0 else DTYPES[layout.dtype]
    for parameter in model.parameters():
        if parameter.requires_grad and not hasattr(parameter, "ds_id"):  # those are so already
            parameter.data = parameter.data.to(dtype)
    for matrix in shared_matrices(model).values():
        matrix.data = matrix.data.to(dtype)
    parts.strategy.load_initial_values(model, fill=engine.write_full_tensor)
    return model


@dataclass(frozen=True)
class _Former:
    """A plain model at the end of a phase, and the numbers (id) of the parameters that are no
    longer the base's."""

    model: nn.Module
    moved: frozenset[int]


def _go_over(
    loaded: Loaded, config: RunConfig, layout: Layout, parts: Parts, engine: Engine, saved: Path
) -> _Former:
    """What a phase has left, without what its strategy added: adapters are merged layer by layer,
    since a rank may hold only a part of each (ZeRO-3)."""
    model = _adapt(loaded, config, layout, parts, engine)
    checkpoint.fill_weights(saved, engine, model)
    by_name = dict(model.named_parameters())
    moved = {id(by_name[name]) for name in checkpoint.Stored(saved).weights}
    for layer in adapted_layers(model):
        moved |= {id(parameter) for parameter in layer.base_layer.parameters()}
        with engine.gather_for_update(list(layer.parameters())):
            layer.merge(safe_merge=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All adapters are already merged")
        return _Former(parts.strategy.merge(model), frozenset(moved))


def _names_of(numbers: frozenset[int], model: nn.Module) -> frozenset[str]:
    return frozenset(name for name, value in model.named_parameters() if id(value) in numbers)


def restore(saved: Path, engine: Engine, parts: Parts, loader: Loader) -> None:
    """Give a prepared engine the weights, buffers and optimizer of a checkpoint."""
    show(Stored(saved), engine, parts, loader)
    checkpoint.restore_moments(saved, engine)


def show(learnt: Learnt, engine: Engine, parts: Parts, loader: Loader) -> None:
    """Give a prepared engine other weights and buffers; its moments are lost where it is primed."""
    checkpoint.restore_weights(learnt, engine)
    if engine.needs_priming:
        _prime(engine, parts, loader)
    checkpoint.restore_buffers(learnt, engine.plain_model)


def start_moments(engine: Engine, parts: Parts, loader: Loader) -> None:
    """Moments as before the first step, so that a run can be saved there."""
    _prime(engine, parts, loader)
    for _, parameter in engine.trainable_parameters():
        engine.set_moments(parameter, engine.moments(parameter), step=0)


def _prime(engine: Engine, parts: Parts, loader: Loader) -> None:
    """An optimizer makes its states, and ZeRO's model takes over the masters, in a step: take one
    that changes nothing."""
    engine.set_learning_rate(0.0)
    batch = loader.window(1).batches[0]
    with engine.micro_batch(last=True):
        with engine.forward():
            loss = parts.task.loss(engine.model, engine.to_device(batch.tensors)) * 0.0
        engine.backward(loss, targets=1)
    engine.step()
