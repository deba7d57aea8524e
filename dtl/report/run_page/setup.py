"""The sections on the setup of a run: planned against actual resources, config and versions."""

from __future__ import annotations

import yaml

from dtl.core.units import format_bytes, format_seconds
from dtl.plan.disk import checkpoint_bytes
from dtl.plan.records import Plan
from dtl.report.page import Block, Code, Table, Text
from dtl.report.run_page.record import RunRecord


def make_plan_section(run: RunRecord) -> list[Block]:
    """Return planned and measured values, and the decisions of the plan."""
    plan = run.plan
    rows = [("steps", f"{plan.steps:,}", f"{run.last_step:,}")]
    if run.steps:
        state = ", ".join(f"{name} {format_bytes(size)}" for name, size in plan.model_state.items())
        rows.append(
            (
                "memory",
                f"model state per rank: {format_bytes(plan.model_state_bytes)} ({state})",
                f"peak of {run.memory_owner}, with activations and libraries: "
                f"{format_bytes(run.peak_memory_bytes)}",
            )
        )
    if saves := run.lines_of_kind("save"):
        planned = format_bytes(checkpoint_bytes(plan.parameters))
        rows.append(("checkpoint size", planned, format_bytes(saves[-1]["bytes"])))
    limit = run.folder.config.train.wall_time or "no limit"
    rows.append(("time", limit, _format_time(run)))
    usage = run.results.usage
    if usage is not None:
        joules = usage.energy_joules
        energy = "not measured" if joules is None else f"{joules / 3.6e6:.3g} kWh"
        rows.append(("hardware", _format_layout(plan), ", ".join(usage.hardware)))
        rows.append(("GPU energy", "-", energy))
    decisions = tuple((one.key, one.value, one.reason) for one in plan.decisions)
    header = ("key", "value", "reason")
    return [
        Table("", ("", "planned", "actual"), tuple(rows)),
        Table("Decisions of the plan", header, decisions, is_collapsed=True),
    ]


def _format_layout(plan: Plan) -> str:
    layout = plan.layout
    return f"{layout.world_size} x {layout.device}, ZeRO {layout.zero_stage}, {layout.dtype}"


def _format_time(run: RunRecord) -> str:
    steps = sum(line["seconds"] for line in run.steps)
    saves = sum(line["seconds"] for line in run.lines_of_kind("save"))
    parts = f"{format_seconds(steps)} in steps, {format_seconds(saves)} in checkpoints"
    usage = run.results.usage
    return parts if usage is None else f"{format_seconds(usage.seconds)} in total; {parts}"


def make_config_section(run: RunRecord) -> list[Block]:
    """Return the config, the package versions and the data hashes."""
    folder = run.folder
    text = yaml.safe_dump(folder.config.model_dump(mode="json"), sort_keys=False)
    versions = tuple((name, str(number)) for name, number in folder.versions.items() if number)
    sources = tuple(
        (key, f"{source['rows']:,}", source["sha256"])
        for key, source in folder.data.get("sources", {}).items()
    )
    commit, base = folder.commit or "unknown", folder.data.get("base", "unknown")
    return [
        Text(f"Git commit {commit}; base model {base}."),
        Code("Config", text),
        Table("Versions", ("package", "version"), versions, is_collapsed=True),
        Table("Data", ("source", "rows", "SHA-256"), sources, is_collapsed=True),
    ]
