"""The section on events: launches, phases, loss spikes, skipped steps and rows, checkpoints."""

from __future__ import annotations

import time

from dtl.core.units import format_count, format_seconds
from dtl.report.page import Block, Table, Text
from dtl.report.run_page.record import MAX_LISTED_ROWS, RunRecord
from dtl.run.folder import RunFolder
from dtl.train.usage import read_launches


def make_events_section(run: RunRecord) -> list[Block]:
    """Return the blocks on what happened during the run."""
    return [
        *_list_launches(run.folder),
        *_list_phases(run),
        *_list_spikes(run.folder),
        *_list_skipped_steps(run),
        *_describe_checkpoints(run),
        *_list_skipped_rows(run.folder),
    ]


def _list_launches(folder: RunFolder) -> list[Block]:
    launches = read_launches(folder.usage)
    if not launches:
        return [Text("No launch has saved a checkpoint yet.")]
    rows = tuple(
        (
            time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(launch["began"])),
            format_seconds(launch["seconds"]),
            ", ".join(f"{count} x {name}" for name, count in launch["devices"].items()),
        )
        for launch in launches
    )
    header = ("start", "duration", "devices")
    return [
        Text(f"Launches: {len(launches)}."),
        Table("Launches, each until its last checkpoint", header, rows),
    ]


def _list_phases(run: RunRecord) -> list[Block]:
    if len(run.plan.phases) == 1:
        return []
    rows = tuple(
        (
            f"{number}",
            phase.strategy,
            f"{phase.start_step + 1:,} to {phase.last_step:,}",
            f"{phase.learning_rate:g}",
            format_count(phase.parameters.trainable),
        )
        for number, phase in enumerate(run.plan.phases, start=1)
    )
    header = ("phase", "strategy", "steps", "maximum learning rate", "trainable parameters")
    return [Table("Phases", header, rows)]


def _list_spikes(folder: RunFolder) -> list[Block]:
    rows = tuple(
        tuple(str(spike.get(name, "-")) for name in ("step", "back_to", "loss"))
        for spike in folder.spikes
    )
    header = ("step", "rolled back to", "loss")
    return [Table("Loss spikes, whose batches are skipped", header, rows)] if rows else []


def _list_skipped_steps(run: RunRecord) -> list[Block]:
    rows = tuple((f"{line['step']:,}", str(line["reason"])) for line in run.lines_of_kind("skip"))
    return [Table("Skipped steps", ("step", "reason"), rows[:MAX_LISTED_ROWS])] if rows else []


def _describe_checkpoints(run: RunRecord) -> list[Block]:
    saves = run.lines_of_kind("save")
    if not saves:
        return []
    mean = format_seconds(sum(line["seconds"] for line in saves) / len(saves))
    return [Text(f"Checkpoints: {len(saves):,}, {mean} each on average.")]


def _list_skipped_rows(folder: RunFolder) -> list[Block]:
    rows = list(folder.read_skipped_rows())
    if not rows:
        return [Text("No rows were skipped.")]
    listed = tuple(
        (row["source"], row["location"], row["reason"]) for row in rows[:MAX_LISTED_ROWS]
    )
    caption = f"Skipped rows: {len(rows):,}"
    if len(rows) > MAX_LISTED_ROWS:
        caption += f"; the first {MAX_LISTED_ROWS}, all rows: skipped_rows.jsonl"
    return [Table(caption, ("source", "row", "reason"), listed)]
