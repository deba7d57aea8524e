"""Score the export of a finished run, or the base of a config, in one process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtl.config.load import load_config
from dtl.config.schema import Layout, RunConfig, Source
from dtl.core.errors import DtlError
from dtl.core.files import write_record
from dtl.core.parallel_dims import ParallelDims
from dtl.data.cache.encoded import EncodedData
from dtl.data.cache.encoder import encode_rows
from dtl.data.cache.partners import add_partners
from dtl.data.cache.store import cache_key
from dtl.data.evaluation_batch import EvaluationBatchSize
from dtl.data.invalid_rows import skip_invalid
from dtl.data.sources.rows import open_rows
from dtl.engine.base import Engine, EngineSettings
from dtl.engine.start import start
from dtl.evaluation.evaluate import Evaluation, EvaluationSetup, evaluate
from dtl.evaluation.scoring import why_unscored
from dtl.export.load_export import ExportedModel, load_export
from dtl.models.load import silence_transformers
from dtl.models.processor import get_pad_token_id
from dtl.prepare import prepared_run
from dtl.prepare.expanded_rows import ExpandedRows, check_nothing_is_dropped
from dtl.run.folder import RunFolder
from dtl.tasks.base import DatasetStats, Task
from dtl.train.model import build_model
from dtl.train.setup import start_engine

if TYPE_CHECKING:
    from torch import nn

LOCATION = "--data"


def score_run(
    folder: RunFolder,
    source: Source,
    overrides: list[str],
    *,
    out: Path | None,
    print_line: Callable[[str], None],
) -> Evaluation:
    """Return scores and records of a finished run's export on `source`. Raises DtlError.

    Writes evaluation.json and evaluation.jsonl into `out`; None: into the run folder.
    """
    if folder.state != "finished":
        raise DtlError.of(
            str(folder.path),
            "the run is not finished",
            f"finish it with `dtl resume {folder.path}`",
        )
    config = load_config(folder.path / "config.yaml", overrides)
    exported = load_export(folder.path)
    data = _encode_source(source, config, exported)
    engine = _start_single_process_engine(dtype=folder.plan.layout.dtype)
    setup = _make_setup(
        config,
        exported.task,
        data,
        exported.dataset_stats,
        processor=exported.processor,
        batch_size=_requested_batch_size(config) or folder.plan.layout.evaluation_batch,
    )
    evaluation = _score(engine, exported.model, setup, print_line)
    _write(evaluation, source.path, out or folder.path)
    return evaluation


def score_base(
    config: RunConfig,
    *,
    out: Path | None,
    print_line: Callable[[str], None],
    change: Callable[[nn.Module], None] | None = None,
) -> Evaluation:
    """Return scores and records of a config's base on its held-out rows, as before the first step.

    `change`: modifies the base before it is scored. Raises DtlError where there are no held-out
    rows, or no trained head.
    """
    if config.data.eval is None and config.data.eval_fraction is None:
        raise DtlError.of(
            "data.eval", "there are no held-out rows to score on", "set it, or add --data"
        )
    config = config.model_copy(update={"layout": Layout(processes_per_node=1, zero_stage=0)})
    prepared = prepared_run.prepare_run(config)
    parts, examples = prepared.parts, prepared.data
    if reason := why_unscored(parts, examples):
        raise DtlError.of(
            "model.path",
            f"{reason}: its scores would be those of chance",
            "score it after training, with `dtl evaluate RUN`",
        )
    assert examples.held_out is not None
    engine = start_engine(config, prepared.plan)
    with silence_transformers():
        model = build_model(config, prepared.plan, parts, examples, engine).model
    if change is not None:
        change(model)
    setup = _make_setup(
        config,
        parts.task,
        examples.held_out,
        examples.dataset_stats,
        processor=examples.processor,
        batch_size=prepared.plan.layout.evaluation_batch,
    )
    evaluation = _score(engine, model, setup, print_line)
    if out is not None:
        _write(evaluation, (config.data.eval or config.data.train).path, out)
    return evaluation


def _make_setup(
    config: RunConfig,
    task: Task,
    data: EncodedData,
    dataset_stats: DatasetStats,
    *,
    processor: Any,
    batch_size: EvaluationBatchSize,
) -> EvaluationSetup:
    pad_token_id = get_pad_token_id(processor)
    return EvaluationSetup(
        task=task,
        data=data,
        collate=partial(task.collate, pad_token_id=0 if pad_token_id is None else pad_token_id),
        dataset_stats=dataset_stats,
        processor=processor,
        batch_size=batch_size,
        group_by=config.task.group_by,
    )


def _requested_batch_size(config: RunConfig) -> EvaluationBatchSize | None:
    requested = config.train.evaluation_batch
    return None if requested is None else EvaluationBatchSize(requested)


def _score(
    engine: Engine,
    model: nn.Module,
    setup: EvaluationSetup,
    print_line: Callable[[str], None],
) -> Evaluation:
    """Score a model in one process, and close the engine. Prints how many rows are skipped."""
    import torch

    if setup.data.summary.skipped:
        print_line(setup.data.summary.format_line("held out"))
    try:
        # The engine needs an optimizer, which never steps.
        engine.prepare(model, torch.optim.SGD(list(model.parameters())[:1], lr=0.0))
        return evaluate(engine, setup, check_stop=lambda activity: None)
    finally:
        engine.close()


def _write(evaluation: Evaluation, data: str, folder: Path) -> None:
    evaluation.write(folder / "evaluation.jsonl")
    write_record(folder / "evaluation.json", {"data": data, "scores": evaluation.scores})


def _encode_source(source: Source, config: RunConfig, exported: ExportedModel) -> EncodedData:
    task, group_by = exported.task, config.task.group_by
    rows = open_rows(
        config.data.with_file_options(source),
        config.data.columns,
        LOCATION,
        check=task.find_row_fault,
        skip_invalid=config.data.on_bad_row == "skip",
        reads=task.row_input,
    )
    if group_by is not None and all(group_by not in row.fields for row in rows):
        raise DtlError.of(
            "task.group_by", f"no row has a column '{group_by}'", "use another column"
        )
    key = cache_key(
        scored=rows.fingerprint,
        task=config.task.training_options,
        dataset_stats=exported.dataset_stats,
        base=config.model.model_dump(mode="json"),
        group_by=group_by,
        on_bad_row=config.data.on_bad_row,
    )
    encoder = task.encoder(exported.processor, exported.dataset_stats, exported.model_config)
    if config.data.on_bad_row == "skip":
        encoder = skip_invalid(encoder)
    expanded = ExpandedRows(rows, task, exported.processor)
    data = encode_rows(expanded, encoder, key=key, location=LOCATION, group_by=group_by)
    check_nothing_is_dropped(data, config)
    return add_partners(data) if task.reads_partner else data


def _start_single_process_engine(*, dtype: str) -> Engine:
    """Start an engine of one process on this machine's device."""
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
