"""The start of a training run: the engine, and what stays the same on this rank."""

from __future__ import annotations

import torch

from dtl.assembly.parts import assemble
from dtl.config.schema import RunConfig
from dtl.engine.accelerate_trackers import open_tracker
from dtl.engine.base import Engine, EngineSettings
from dtl.engine.start import start
from dtl.plan.disk import checkpoint_bytes
from dtl.plan.records import Plan
from dtl.prepare.prepared_data import PreparedData
from dtl.run.folder import RunFolder
from dtl.tasks.base import Task
from dtl.train.checkpoint import CheckpointStore
from dtl.train.deadline import Deadline
from dtl.train.log import RunLog
from dtl.train.process import ProcessContext
from dtl.train.safe_points import SafePoints
from dtl.train.state import RunContext
from dtl.train.tracker_queue import Trackers
from dtl.train.usage import UsageMeter


def start_engine(config: RunConfig, plan: Plan) -> Engine:
    """Join the process group of this plan."""
    layout = plan.layout
    _set_tf32(is_allowed=config.model.tf32)
    return start(
        EngineSettings(
            device=layout.device,
            parallel_dims=layout.parallel_dims,
            dtype=layout.dtype,
            accumulation_steps=layout.accumulation_steps,
            gradient_clip=config.optim.gradient_clip,
            deepspeed=plan.deepspeed,
            deterministic=config.run.deterministic,
            timeout_seconds=config.layout.collective_timeout_seconds,
        )
    )


def _set_tf32(*, is_allowed: bool) -> None:
    """Set whether a GPU may round the inputs of fp32 operations to TF32; torch's own default allows
    it for convolutions only."""
    torch.set_float32_matmul_precision("high" if is_allowed else "highest")
    torch.backends.cudnn.allow_tf32 = is_allowed


def open_context(
    folder: RunFolder, engine: Engine, data: PreparedData, process: ProcessContext
) -> RunContext:
    """Return what stays the same during the run. Every rank must call."""
    config, plan = folder.config, folder.plan
    parts = assemble(config)
    meter = UsageMeter(folder.usage, engine)
    log = _open_log(folder, config, plan, parts.task, process)
    deadline = Deadline.from_config(
        config.train, checkpoint_bytes=checkpoint_bytes(plan.parameters)
    )
    store = CheckpointStore(
        folder.checkpoints,
        folder.identity,
        folder.previous_identities,
        newest_to_keep=config.train.keep_last,
        keeps_best=config.train.keep_best,
        rollback_steps=config.train.loss_spike.rollback_steps if config.train.loss_spike else None,
        check_lease=process.check_lease,
    )
    return RunContext(
        folder=folder,
        config=config,
        plan=plan,
        parts=parts,
        data=data,
        engine=engine,
        process=process,
        log=log,
        store=store,
        safe_points=SafePoints(process, engine, log, deadline, config.train),
        meter=meter,
    )


def _open_log(
    folder: RunFolder, config: RunConfig, plan: Plan, task: Task, process: ProcessContext
) -> RunLog:
    log = RunLog(folder, process.terminal, plan.steps, length_unit=task.length_unit)
    if log.is_writer:
        log.trackers = Trackers.start(
            config.tracking, folder, log.print_line, open_tracker=open_tracker
        )
    return log
