"""Restoring a prepared engine from a checkpoint, or from other weights."""

from __future__ import annotations

from pathlib import Path

from dtl.assembly.parts import Parts
from dtl.data.loader import Loader
from dtl.engine.base import Engine
from dtl.models.packing import packing_texts
from dtl.train.checkpoint import read_loss_scaler_state, read_progress
from dtl.train.checkpoint_tensors import (
    CheckpointTensors,
    WeightSource,
    restore_buffers,
    restore_optimizer_state,
    restore_weights,
)


def restore_checkpoint(saved: Path, engine: Engine, parts: Parts, loader: Loader) -> None:
    """Restore weights, buffers and optimizer state. Every rank must call."""
    restore_weights_and_buffers(CheckpointTensors(saved), engine, parts, loader)
    restore_optimizer_state(saved, engine, updates=read_progress(saved).updates)
    scaler = read_loss_scaler_state(saved)
    if scaler is not None and engine.loss_scaler_state() is not None:
        engine.set_loss_scaler_state(scaler)


def restore_weights_and_buffers(
    source: WeightSource, engine: Engine, parts: Parts, loader: Loader
) -> None:
    """Restore weights and buffers. The optimizer state is lost where the engine has to create it
    first. Every rank must call."""
    restore_weights(source, engine)
    if engine.needs_optimizer_state_init:
        take_zero_step(engine, parts, loader)
    restore_buffers(source, engine.unwrapped_model)


def init_optimizer_state(engine: Engine, parts: Parts, loader: Loader) -> None:
    """Create the optimizer state as it is before the first step, so that it can be saved."""
    take_zero_step(engine, parts, loader)
    for _, parameter in engine.trainable_parameters():
        engine.set_optimizer_state(parameter, engine.optimizer_state(parameter), step=0)


def take_zero_step(engine: Engine, parts: Parts, loader: Loader) -> None:
    """Take a step with zero gradients and learning rate 0. In a step an optimizer creates its
    state, and under ZeRO the model receives the master weights."""
    engine.set_learning_rate(0.0)
    batch = loader.load_step(1).batches[0]
    with engine.accumulate(is_last=True):
        with engine.autocast(), packing_texts(is_on=loader.packed_positions is not None):
            loss = parts.task.loss(engine.model, engine.to_device(batch.tensors)) * 0.0
        engine.backward(loss, targets=1)
    engine.step()
