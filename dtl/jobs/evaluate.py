"""Evaluate: the export of a finished run, scored on other data, on this machine alone."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from dtl.config.load import load_config
from dtl.config.schema import RunConfig, Source
from dtl.data.encoded import EncodedData, cache_key, encode
from dtl.data.source import open_rows
from dtl.engine import Engine, EngineSettings, start
from dtl.errors import DtlError
from dtl.jobs.exported import Exported, open_export
from dtl.models.load import padding_token
from dtl.run_folder import RunFolder, write_json
from dtl.train.evaluate import Evaluation, evaluate

PLACE = "--data"


def score_run(
    folder: RunFolder, source: Source, overrides: list[str], *, out: Path | None
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
    engine = _engine(exported, dtype=folder.plan.layout.dtype)
    padding = padding_token(exported.processor)
    try:
        found = evaluate(
            engine,
            exported.task,
            data,
            partial(exported.task.collate, padding=0 if padding is None else padding),
            exported.facts,
            batch=config.train.evaluation_batch,
            processor=exported.processor,
            group_by=config.task.group_by,
            pause=lambda doing: None,
        )
    finally:
        engine.close()
    told = out or folder.path
    found.write(told / "evaluation.jsonl")
    write_json(told / "evaluation.json", {"data": source.path, "scores": found.scores})
    return found


def _encoded(source: Source, config: RunConfig, exported: Exported) -> EncodedData:
    task, group_by = exported.task, config.task.group_by
    rows = open_rows(
        source,
        config.data.columns,
        PLACE,
        check=task.check,
        skips=config.data.on_bad_row == "skip",
        media=task.media,
    )
    if group_by is not None and all(group_by not in row.fields for row in rows):
        raise DtlError.of("task.group_by", f"no row has a column '{group_by}'", "name another")
    key = cache_key(
        scored=rows.fingerprint,
        task=config.task.learnt,
        facts=exported.facts,
        base=config.model.model_dump(mode="json"),
        group_by=group_by,
    )
    encoder = task.encoder(exported.processor, exported.facts, exported.settings)
    return encode(rows, encoder, key=key, place=PLACE, group_by=group_by)


def _engine(exported: Exported, *, dtype: str) -> Engine:
    """One process on this machine's device; nothing learns."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    engine = start(
        EngineSettings(
            device=device,
            ranks=1,
            dtype=dtype,
            accumulation=1,
            gradient_clip=None,
            deepspeed=None,
        )
    )
    parameters = list(exported.model.parameters())
    engine.prepare(exported.model, torch.optim.SGD(parameters[:1], lr=0.0))
    return engine
