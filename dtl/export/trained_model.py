"""The model that a run has trained, opened whole in this process: in fp32, on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dtl.assembly.parts import Parts
from dtl.config.schema import RunConfig
from dtl.core.errors import DtlError
from dtl.core.parallel_dims import ParallelDims
from dtl.engine.base import EngineSettings
from dtl.engine.start import start
from dtl.export.load_export import load_export
from dtl.plan.records import Plan
from dtl.prepare import preparation
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
    """`step`: after which the weights are those; `scores`: as the run has stored them."""

    model: nn.Module
    parts: Parts
    examples: PreparedData
    step: int
    scores: dict[str, dict[str, float]]
    weights_kind: str = "adapted"  # or which average of the weights


def load_trained_model(folder: RunFolder, *, say: Callable[[str], None]) -> TrainedModel:
    """From the checkpoint that the run exports, or else its newest; where a finished run has lost
    it, or exports what is in none, from its export. Raises DtlError."""
    step, saved = _find_exported_checkpoint(folder)
    prepared = preparation.reopen_run(folder, writes=True)
    finished = folder.state == "finished"
    weights = folder.result["weights"] if finished else "adapted"
    parts = prepared.parts.for_phase(prepared.plan.phase_index(max(0, step - 1)))
    if saved is None or weights != "adapted" or (finished and _has_rounded_base(folder.config)):
        if saved is None:
            say(f"there is no checkpoint of step {step}: the weights are those of {folder.export}")
        model = load_export(folder.path).model
    else:
        model = _load_from_checkpoint(prepared, parts, saved)
    scores = folder.result["scores"] if finished else _logged_scores(folder, step)
    return TrainedModel(model.eval(), parts, prepared.data, step, scores, weights)


def _has_rounded_base(config: RunConfig) -> bool:
    """Whether the base is made of rounded weights, as only its export is told."""
    return config.model.quantize is not None


def _find_exported_checkpoint(folder: RunFolder) -> tuple[int, Path | None]:
    """The step whose weights count, and its checkpoint."""
    store = CheckpointStore(folder.checkpoints, folder.identity, folder.previous_identities)
    if folder.state == "finished":
        result = folder.result
        best = result["best"]["step"] if folder.config.train.export == "best" else None
        step = int(result["steps"] if best is None else best)
        path = store.step_path(step)
        if path.is_dir() and (fault := store.find_damage(path)) is not None:
            raise DtlError.of(str(path), fault, "remove it to export from the run's own export")
        return step, path if path.is_dir() else None
    newest, damaged = store.find_newest_intact()
    if newest is None:
        why = f" ({damaged[0].path.name}: {damaged[0].reason})" if damaged else ""
        raise DtlError.of(
            str(folder.path),
            f"the run has not ended and has no whole checkpoint yet{why}",
            f"`dtl resume {folder.path}` goes on with it",
        )
    return checkpoint.read_progress(newest).step, newest


def _load_from_checkpoint(prepared: preparation.Prepared, parts: Parts, saved: Path) -> nn.Module:
    """As the run makes its model, then the learnt weights; every number in fp32."""
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
            saved=saved,
        ).model
        load_weights(saved, engine, model)
    finally:
        engine.close()
    return model


def _single_process_plan(plan: Plan) -> Plan:
    """The same plan on one process that holds everything in fp32."""
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
