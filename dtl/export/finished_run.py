"""The export of a run that has finished training."""

from __future__ import annotations

from dtl.evaluation.final_weights import FinalWeights
from dtl.export.model_card import write_run_card
from dtl.export.write import export, build_export_metadata
from dtl.models.quantization import quantize
from dtl.train.state import RunContext, TrainState


def export_run(
    context: RunContext,
    state: TrainState,
    final: FinalWeights,
    scores: dict[str, dict[str, float]],
) -> None:
    """Export the final weights to the run folder. Every rank must call; rank 0 writes."""
    kind, dataset_stats = state.parts.strategy.export_kind, state.examples.dataset_stats
    dtype, card = context.plan.layout.dtype, ""
    if context.engine.is_main_process:
        card = write_run_card(
            context.folder,
            state.parts.task,
            dataset_stats,
            kind=kind,
            scores=scores,
            step=_exported_step(context, state, final),
            weights=final.name,
            quantized=quantize.get_quantization_kwargs(context.engine.unwrapped_model),
        )
    export(
        context.engine,
        context.folder.export,
        processor=state.examples.processor,
        kind=kind,
        dtype=dtype,
        card=card,
        note=build_export_metadata(context.config, dataset_stats, kind=kind, dtype=dtype),
        learnt=final.source,
        pause=context.safe_points.check_stop,
    )


def _exported_step(context: RunContext, state: TrainState, final: FinalWeights) -> int:
    """Return the step after which the weights are those that are exported."""
    progress = state.progress
    is_best = context.config.train.export == "best" and final.name == "adapted"
    return progress.best_step if is_best and progress.best_step is not None else progress.step
