"""The section on training: loss, learning rate, gradient norm, throughput and memory over steps."""

from __future__ import annotations

from dtl.core.units import format_seconds
from dtl.report.axis import Axis
from dtl.report.charts import LinePlot, Series, VerticalLine, moving_average
from dtl.report.page import Block, Charts, Text
from dtl.report.run_page.record import MAX_LISTED_ROWS, RunRecord

MIN_STEPS_TO_SMOOTH = 100
WINDOWS = 50  # windows of the moving average per run
STEP_AXIS = Axis("step")


def make_training_section(run: RunRecord) -> list[Block]:
    """Return the charts of all training steps."""
    if not run.steps:
        return [Text("No training step yet.")]
    unit = "frames" if run.task.media_column == "audio" else run.task.length_unit
    throughput = Axis(f"{unit} per second", from_zero=True)
    memory = Axis("memory", "bytes", from_zero=True)
    charts = (
        _make_step_chart(run, "loss", "loss", "Training loss", Axis("loss")),
        _make_loss_over_time_chart(run),
        _make_learning_rate_chart(run),
        _make_step_chart(
            run, "gradient_norm", "gradient_norm", "Gradient norm, before clipping", Axis("norm")
        ),
        _make_step_chart(run, "throughput", "tokens_per_second", "Throughput", throughput),
        _make_step_chart(
            run, "memory", "memory_bytes", f"Peak memory of {run.memory_owner}", memory
        ),
    )
    return [Charts(charts)]


def make_event_lines(run: RunRecord) -> tuple[VerticalLine, ...]:
    """Return a line at the start of each phase, at each loss spike and each skipped step."""
    steps = {line["step"] for line in run.steps}
    phases = [
        VerticalLine(phase.start_step, f"phase {number}: {phase.strategy}")
        for number, phase in enumerate(run.plan.phases[1:], start=2)
        if phase.start_step in steps
    ]
    spikes = [
        VerticalLine(spike["step"], f"loss spike at step {spike['step']}")
        for spike in run.folder.spikes
        if spike["step"] in steps
    ]
    skips = [
        VerticalLine(line["step"], f"step {line['step']} skipped")
        for line in run.lines_of_kind("skip")[:MAX_LISTED_ROWS]
    ]
    return (*phases, *spikes, *skips)


def _make_step_chart(run: RunRecord, key: str, name: str, title: str, axis: Axis) -> LinePlot:
    """Return a value over the steps; with its moving average if the run is long. `name`: of the
    value in the log."""
    x = [line["step"] for line in run.steps]
    y = [line[name] for line in run.steps]
    series: tuple[Series, ...] = (Series(axis.label, x, y),)
    window = len(x) // WINDOWS
    if len(x) >= MIN_STEPS_TO_SMOOTH and axis.unit != "bytes":
        series = (
            Series(f"mean of {window} steps", x, moving_average(y, window=window)),
            Series("each step", x, y, style="faint"),
        )
    known = [(step, value) for step, value in zip(x, y, strict=True) if value is not None]
    description = "No step has a value."
    if known:
        (first_step, first), (last_step, last) = known[0], known[-1]
        values = [value for _, value in known]
        description = (
            f"{axis.format_value(first)} at step {first_step:,}, {axis.format_value(last)} at step "
            f"{last_step:,}; minimum {axis.format_value(min(values))}, maximum "
            f"{axis.format_value(max(values))}."
        )
    return LinePlot(key, title, description, STEP_AXIS, axis, series, make_event_lines(run))


def _make_loss_over_time_chart(run: RunRecord) -> LinePlot:
    """Return the loss over the total time of the steps, without the time between steps."""
    seconds, total = [], 0.0
    for line in run.steps:
        total += line["seconds"]
        seconds.append(total)
    losses = [line["loss"] for line in run.steps]
    window = max(1, len(losses) // WINDOWS)
    return LinePlot(
        "loss_over_time",
        "Training loss over time",
        f"{format_seconds(total)} in {len(seconds):,} steps, "
        f"{format_seconds(total / len(seconds))} per step; without loading, evaluation and "
        "checkpoints.",
        Axis("time in steps", "seconds", from_zero=True),
        Axis("loss"),
        (Series("loss", seconds, moving_average(losses, window=window)),),
    )


def _make_learning_rate_chart(run: RunRecord) -> LinePlot:
    x = [line["step"] for line in run.steps]
    names = {"learning_rate": "learning rate", "head_learning_rate": "of the head"}
    series = tuple(
        Series(label, x, [line.get(name) for line in run.steps])
        for name, label in names.items()
        if name in run.steps[0]
    )
    maximum = max(line["learning_rate"] for line in run.steps)
    description = f"Maximum {maximum:.3g}, schedule {run.folder.config.optim.schedule}."
    axis = Axis("learning rate", from_zero=True)
    return LinePlot(
        "learning_rate",
        "Learning rate",
        description,
        STEP_AXIS,
        axis,
        series,
        make_event_lines(run),
    )
