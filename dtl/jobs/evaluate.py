"""Evaluate: the export of a finished run, or the base of a config, scored on this machine alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtl.config.load import load_config
from dtl.config.schema import Layout, RunConfig, Source
from dtl.core.errors import DtlError
from dtl.core.files import write_json
from dtl.core.parallel_dims import ParallelDims
from dtl.data.cache.encoded import EncodedData
from dtl.data.cache.encoder import encode_rows
from dtl.data.cache.store import cache_key
from dtl.data.sources.rows import open_rows
from dtl.engine.base import Engine, EngineSettings
from dtl.engine.start import start
from dtl.evaluation.evaluate import Evaluation, evaluate
from dtl.evaluation.scoring import why_unscored
from dtl.export.opened import Exported, open_export
from dtl.models.load import silence_transformers
from dtl.models.processor import get_pad_token_id
from dtl.prepare import preparation
from dtl.run.folder import RunFolder
from dtl.tasks.base import DatasetStats, Task
from dtl.train.model import build_model
from dtl.train.setup import start_engine

if TYPE_CHECKING:
    from torch import nn

PLACE = "--data"


def score_run(
    folder: RunFolder,
    source: Source,
    overrides: list[str],
    *,
    out: Path | None,
    say: Callable[[str], None],
) -> Evaluation:
    """Scores and outcomes; also as evaluation.json and evaluation.jsonl in the run folder, or in
    `out`. Raises DtlError."""
    if folder.state != "finished":
        raise DtlError.of(
            str(folder.path), "the run is not finished", f"`dtl resume {folder.path}` finishes it"
        )
    config = load_config(folder.path / "config.yaml", overrides)
    exported = open_export(folder.path)
    data = _encoded(source, config, exported)
    engine = _engine(dtype=folder.plan.layout.dtype)
    found = _scored(
        engine,
        exported.model,
        exported.task,
        data,
        config,
        dataset_stats=exported.dataset_stats,
        processor=exported.processor,
        say=say,
    )
    _write(found, source.path, out or folder.path)
    return found


def score_base(
    config: RunConfig,
    *,
    out: Path | None,
    say: Callable[[str], None],
    change: Callable[[nn.Module], None] | None = None,
) -> Evaluation:
    """Scores of a config's base on its held-out rows: those that its run takes before the first
    step. `change`: what is done to the base before. Raises DtlError where there are no rows, or no
    head that has learnt the task."""
    held = config.data.eval or config.data.train
    if config.data.eval is None and config.data.eval_fraction is None:
        raise DtlError.of(
            "data.eval", "there are no held-out rows to score on", "set it, or add --data"
        )
    alone = config.model_copy(update={"layout": Layout(processes_per_node=1, zero_stage=0)})
    prepared = preparation.prepare_run(alone)
    parts, examples = prepared.parts, prepared.examples
    if reason := why_unscored(parts, examples):
        raise DtlError.of(
            "model.path",
            f"{reason}: its scores would be those of chance",
            "score it after training, with `dtl evaluate RUN`",
        )
    assert examples.held_out is not None
    engine = start_engine(alone, prepared.plan)
    with silence_transformers():
        model = build_model(alone, prepared.plan, parts, examples, engine).model
    if change is not None:
        change(model)
    found = _scored(
        engine,
        model,
        parts.task,
        examples.held_out,
        alone,
        dataset_stats=examples.dataset_stats,
        processor=examples.processor,
        say=say,
    )
    if out is not None:
        _write(found, held.path, out)
    return found


def _scored(
    engine: Engine,
    model: nn.Module,
    task: Task,
    data: EncodedData,
    config: RunConfig,
    *,
    dataset_stats: DatasetStats,
    processor: Any,
    say: Callable[[str], None],
) -> Evaluation:
    """By one process, in which nothing learns; the engine ends with it. Says how many rows are left
    out, such as clips that are too long."""
    import torch

    if data.summary.skipped:
        say(data.summary.format_line("held out"))
    padding = get_pad_token_id(processor)
    try:
        engine.prepare(model, torch.optim.SGD(list(model.parameters())[:1], lr=0.0))
        return evaluate(
            engine,
            task,
            data,
            partial(task.collate, pad_token_id=0 if padding is None else padding),
            dataset_stats,
            batch=config.train.evaluation_batch,
            processor=processor,
            group_by=config.task.group_by,
            pause=lambda doing: None,
        )
    finally:
        engine.close()


def _write(found: Evaluation, data: str, folder: Path) -> None:
    found.write(folder / "evaluation.jsonl")
    write_json(folder / "evaluation.json", {"data": data, "scores": found.scores})


def _encoded(source: Source, config: RunConfig, exported: Exported) -> EncodedData:
    task, group_by = exported.task, config.task.group_by
    rows = open_rows(
        source,
        config.data.columns,
        PLACE,
        check=task.find_row_fault,
        skip_invalid=config.data.on_bad_row == "skip",
        media=task.media_column,
    )
    if group_by is not None and all(group_by not in row.fields for row in rows):
        raise DtlError.of("task.group_by", f"no row has a column '{group_by}'", "name another")
    key = cache_key(
        scored=rows.fingerprint,
        task=config.task.training_options,
        dataset_stats=exported.dataset_stats,
        base=config.model.model_dump(mode="json"),
        group_by=group_by,
    )
    encoder = task.encoder(exported.processor, exported.dataset_stats, exported.settings)
    return encode_rows(rows, encoder, key=key, location=PLACE, group_by=group_by)


def _engine(*, dtype: str) -> Engine:
    """One process on this machine's device."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return start(
        EngineSettings(
            device=device,
            parallel_dims=ParallelDims(),
            dtype=dtype,
            accumulation_steps=1,
            gradient_clip=None,
            deepspeed=None,
        )
    )
