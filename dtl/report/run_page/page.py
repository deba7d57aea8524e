"""Builds the report page of a run."""

from __future__ import annotations

import time

from dtl.core.lock import is_held
from dtl.core.units import format_bytes, format_count, format_seconds
from dtl.report.axis import Axis
from dtl.report.page import Block, Page, Section, Tile
from dtl.report.run_page.events import make_events_section
from dtl.report.run_page.predictions import (
    make_confusion_section,
    make_groups_section,
    make_labels_section,
    make_numbers_section,
    make_worst_examples_section,
)
from dtl.report.run_page.record import RunRecord
from dtl.report.run_page.scores import make_scores_section
from dtl.report.run_page.setup import make_config_section, make_plan_section
from dtl.report.run_page.training import make_training_section
from dtl.run.folder import RunFolder


def build_run_page(folder: RunFolder) -> Page:
    """Return the page of a run that is finished, running or stopped."""
    run, config = RunRecord.from_folder(folder), folder.config
    strategy = ", then ".join(phase.name for phase in config.phases)
    sections = (
        Section("Scores", tuple(make_scores_section(run))),
        Section("Training", tuple(make_training_section(run))),
        *_section_if_any("Confusion matrix", make_confusion_section(run)),
        *_section_if_any("Predicted numbers", make_numbers_section(run)),
        *_section_if_any("By label", make_labels_section(run)),
        *_section_if_any(f"By {config.task.group_by}", make_groups_section(run)),
        *_section_if_any("Worst examples", make_worst_examples_section(run)),
        Section("Planned and actual", tuple(make_plan_section(run))),
        Section("Events", tuple(make_events_section(run))),
        Section("Config and versions", tuple(make_config_section(run))),
    )
    return Page(
        title=str(config.run.name),
        state=_format_state(folder),
        subtitle=f"{config.task.name} · {strategy} · base {config.model.path} · "
        f"training data {config.data.train.path}",
        tiles=tuple(_make_tiles(run)),
        sections=sections,
        footer=f"dtl report, {time.strftime('%Y-%m-%d %H:%M:%S %z')}, from {folder.path}",
    )


def _section_if_any(title: str, blocks: list[Block]) -> list[Section]:
    return [Section(title, tuple(blocks))] if blocks else []


def _format_state(folder: RunFolder) -> str:
    if folder.state == "finished":
        return "finished"
    return "running" if is_held(folder.path) else "stopped early"


def _make_tiles(run: RunRecord) -> list[Tile]:
    tiles = [*_score_tile(run), Tile("steps", f"{run.last_step:,}", f"of {run.plan.steps:,}")]
    if run.steps:
        loss = next((line["loss"] for line in reversed(run.steps) if line["loss"]), None)
        tiles.append(Tile("training loss", Axis("").format_value(loss), "at the last step"))
        memory = format_bytes(run.peak_memory_bytes)
        tiles.append(Tile("peak memory", memory, f"of {run.memory_owner}"))
    usage = run.results.usage
    if usage is not None:
        tiles.append(Tile("time", format_seconds(usage.seconds), ", ".join(usage.hardware)))
    counts = run.plan.parameters
    share = f"{counts.trainable / counts.total:.2%} of {format_count(counts.total)}"
    tiles.append(Tile("trainable parameters", format_count(counts.trainable), share))
    return tiles


def _score_tile(run: RunRecord) -> list[Tile]:
    """Return the main score of the adapted model, else of the unadapted one; empty without any."""
    scores, name = run.scores, run.score_name
    models = [model for model in scores if model != "unadapted"] or list(scores)
    if not models:
        return []
    model = "adapted" if run.folder.state == "finished" else models[-1]
    notes = [interval] if (interval := run.format_interval(model)) else []
    if "unadapted" in scores and model != "unadapted":
        notes.append(f"unadapted {scores['unadapted'][name]:.4g}")
    return [Tile(f"{name} ({model})", f"{scores[model][name]:.4g}", "; ".join(notes))]
