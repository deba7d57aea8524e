"""Load the trained model of a run into this process: in fp32, on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dtl.assembly.parts import Parts
from dtl.core.errors import DtlError
from dtl.core.parallel_dims import ParallelDims
from dtl.engine.base import EngineSettings
from dtl.engine.start import start
from dtl.export.load_export import load_export
from dtl.plan.records import Plan
from dtl.prepare import prepared_run
from dtl.prepare.prepared_data import PreparedData
from dtl.run.evaluations import read_evaluations
from dtl.run.folder import RunFolder
from dtl.train import checkpoint
from dtl.train.checkpoint import CheckpointStore
from dtl.train.checkpoint_tensors import load_weights
from dtl.train.model import build_model

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class TrainedModel:
    """The model that a run exports.

    `step`: step of the weights. `scores`: as the run has stored them, by model.
    `weights_kind`: adapted, or the name of an average.
    """

    model: nn.Module
    parts: Parts
    data: PreparedData
    step: int
    scores: dict[str, dict[str, float]]
    weights_kind: str = "adapted"


def load_trained_model(folder: RunFolder, *, print_line: Callable[[str], None]) -> TrainedModel:
    """Load the checkpoint that a run exports; of an unfinished run, its newest.

    The export of a finished run is loaded instead where no checkpoint has its weights. Raises
    DtlError.
    """
    step, checkpoint_path = _find_exported_checkpoint(folder)
    prepared = prepared_run.reopen_run(folder, writes=True)
    is_finished = folder.state == "finished"
    weights_kind = folder.result["weights"] if is_finished else "adapted"
    # Only dtl.json records the dtype before quantization.
    has_quantized_export = is_finished and folder.config.model.quantize is not None
    parts = prepared.parts.for_phase(prepared.plan.phase_index(max(0, step - 1)))
    if checkpoint_path is None or weights_kind != "adapted" or has_quantized_export:
        if checkpoint_path is None:
            print_line(
                f"There is no checkpoint of step {step}. The weights are read from {folder.export}"
            )
        model = load_export(folder.path).model
    else:
        model = _load_from_checkpoint(prepared, parts, checkpoint_path)
    scores = folder.result["scores"] if is_finished else _logged_scores(folder, step)
    return TrainedModel(model.eval(), parts, prepared.data, step, scores, weights_kind)


def _find_exported_checkpoint(folder: RunFolder) -> tuple[int, Path | None]:
    """Return the step whose weights are exported, and its checkpoint; None if it was removed."""
    store = CheckpointStore(folder.checkpoints, folder.identity, folder.previous_identities)
    if folder.state == "finished":
        result = folder.result
        best = result["best"]["step"] if folder.config.train.exported_weights == "best" else None
        step = int(result["steps"] if best is None else best)
        path = store.step_path(step)
        if path.is_dir() and (reason := store.find_damage(path)) is not None:
            raise DtlError.of(str(path), reason, "remove it; then the run's own export is used")
        return step, path if path.is_dir() else None
    newest, damaged = store.find_newest_intact()
    if newest is None:
        reason = f" ({damaged[0].path.name}: {damaged[0].reason})" if damaged else ""
        raise DtlError.of(
            str(folder.path),
            f"the run is not finished and has no intact checkpoint{reason}",
            f"continue the run with `dtl resume {folder.path}`",
        )
    return checkpoint.read_progress(newest).step, newest


def _load_from_checkpoint(
    prepared: prepared_run.PreparedRun, parts: Parts, checkpoint_path: Path
) -> nn.Module:
    """Return the model built as in the run, with the weights of the checkpoint, in fp32."""
    engine = start(
        EngineSettings(
            device="cpu",
            parallel_dims=ParallelDims(),
            dtype="fp32",
            accumulation_steps=1,
            gradient_clip=None,
            deepspeed=None,
        )
    )
    try:
        model = build_model(
            prepared.config,
            _single_process_plan(prepared.plan),
            parts,
            prepared.data,
            engine,
            saved=checkpoint_path,
        ).model
        load_weights(checkpoint_path, engine, model)
    finally:
        engine.close()
    return model


def _single_process_plan(plan: Plan) -> Plan:
    """Return the same plan for one process on the CPU, in fp32."""
    layout = replace(
        plan.layout,
        nodes=1,
        processes_per_node=1,
        zero_stage=0,
        dtype="fp32",
        device="cpu",
        activation_checkpointing=False,
    )
    return replace(plan, layout=layout)


def _logged_scores(folder: RunFolder, step: int) -> dict[str, dict[str, float]]:
    """Return the scores that the log of an unfinished run has: of the base, and of the model at
    this step."""
    steps = {"unadapted": 0, "adapted": step}
    return {
        evaluation.model: evaluation.scores
        for evaluation in read_evaluations(folder.read_metrics())
        if evaluation.step == steps.get(evaluation.model)
    }
