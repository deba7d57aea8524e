"""Export the final weights of a run, as the last part of its training."""

from __future__ import annotations

import shutil

import torch

from dtl.core.files import replace_folder
from dtl.evaluation.final_weights import FinalWeights
from dtl.export.folder import (
    build_export_metadata,
    seal_export,
    staging_folder,
    write_card_and_metadata,
    write_texts,
)
from dtl.export.model_card import ExportedRun, render_run_card
from dtl.export.weights import gather_state_dict, write_adapter, write_model
from dtl.models.dtypes import torch_dtype
from dtl.models.quantization import quantize
from dtl.models.vocabulary import resized_rows
from dtl.train.state import RunContext, TrainState


def export_finished_run(
    context: RunContext,
    state: TrainState,
    final: FinalWeights,
    scores: dict[str, dict[str, float]],
) -> None:
    """Write the final weights to the run folder: an adapter in fp32, a model in the run's dtype.

    Every rank must call; rank 0 writes. Raises RunFailed if the files read back are not what was
    trained, and StopRequested.
    """
    engine, folder = context.engine, context.folder.export
    kind, dataset_stats = state.parts.strategy.export_kind, state.data.dataset_stats
    dtype = context.plan.layout.dtype
    card = _render_card(context, state, final, scores) if engine.is_main_process else ""

    # 1. Gather the weights on rank 0.
    context.safe_points.check_stop("export, gathering weights")
    weights = gather_state_dict(engine, final.source, trainable_only=kind == "adapter")

    # 2. Write all files under a temporary name, and read the weights back.
    context.safe_points.check_stop("export, writing")
    staged = staging_folder(folder)
    if engine.is_main_process:
        shutil.rmtree(staged, ignore_errors=True)
        with engine.init_context(False):
            if kind == "adapter":
                write_adapter(engine.unwrapped_model, weights, staged, dtype=torch.float32)
            else:
                write_model(engine.unwrapped_model, weights, staged, dtype=torch_dtype(dtype))
        state.data.processor.save_pretrained(staged)
        write_texts(
            staged,
            state.parts.task.export_files(engine.unwrapped_model.config, state.data.processor),
        )
        metadata = build_export_metadata(
            context.config, dataset_stats, kind=kind, dtype=dtype, target=folder
        )
        write_card_and_metadata(staged, card=card, metadata=metadata)
        seal_export(staged)

    # 3. Rename.
    context.safe_points.check_stop("export, renaming")
    if engine.is_main_process:
        replace_folder(staged, folder)
    engine.barrier()


def _render_card(
    context: RunContext,
    state: TrainState,
    final: FinalWeights,
    scores: dict[str, dict[str, float]],
) -> str:
    exported = ExportedRun(
        folder=context.folder,
        task=state.parts.task,
        dataset_stats=state.data.dataset_stats,
        step=_exported_step(context, state, final),
        scores=scores,
        weights=final.name,
        embedding_rows=resized_rows(context.engine.unwrapped_model),
    )
    return render_run_card(
        exported,
        kind=state.parts.strategy.export_kind,
        quantization=quantize.get_quantization_kwargs(context.engine.unwrapped_model),
    )


def _exported_step(context: RunContext, state: TrainState, final: FinalWeights) -> int:
    """Return the step of the exported weights."""
    progress = state.progress
    is_best = context.config.train.exported_weights == "best" and final.name == "adapted"
    return progress.best_step if is_best and progress.best_step is not None else progress.step
