"""The section on held-out scores: a table with confidence intervals, and the score over steps."""

from __future__ import annotations

from dtl.report.axis import Axis
from dtl.report.charts import HorizontalLine, LinePlot, Series
from dtl.report.page import Block, Charts, Table, Text
from dtl.report.run_page.record import RunRecord
from dtl.report.run_page.training import STEP_AXIS, make_event_lines


def make_scores_section(run: RunRecord) -> list[Block]:
    """Return the blocks on held-out scores."""
    if not run.scores:
        return [Text("No evaluation yet, or no held-out data.")]
    blocks: list[Block] = []
    reported = run.reported_step
    if reported is not None:
        count = len(run.eval_records)
        data = f"{count:,} held-out examples" if count else "held-out data"
        better = "Higher" if run.higher_is_better else "Lower"
        direction = f"{better} {run.score_name} is better."
        blocks.append(Text(f"Evaluated on {data} after step {reported.step:,}. {direction}"))
    if "unadapted" not in run.scores:
        blocks.append(Text("The unadapted base has no score: it has no head for this task."))
    blocks.append(_make_table(run))
    chart = _make_chart(run)
    return [*blocks, Charts((chart,))] if chart is not None else blocks


def _make_table(run: RunRecord) -> Table:
    """Return a row per score: the main score with its interval first."""
    main = run.score_name
    known = dict.fromkeys(name for scores in run.scores.values() for name in scores)
    names = [main, *(name for name in known if "/" not in name and name != main)]
    rows = []
    for name in names:
        cells = [f"{scores[name]:.4g}" if name in scores else "-" for scores in run.scores.values()]
        if name == main:
            intervals = [run.format_interval(model) for model in run.scores]
            cells = [
                f"{cell} ({interval})" if interval else cell
                for cell, interval in zip(cells, intervals, strict=True)
            ]
        rows.append((name, *cells))
    caption = f"Held-out scores; {main} with 95% confidence interval (bootstrap over examples)"
    return Table(caption, ("score", *run.scores), tuple(rows))


def _make_chart(run: RunRecord) -> LinePlot | None:
    """Return the main score over the steps; None without an evaluation after training."""
    name = run.score_name
    points_by_model: dict[str, list[tuple[int, float]]] = {}
    for evaluation in run.evaluations:
        if evaluation.model != "unadapted":
            point = evaluation.step, evaluation.scores[name]
            points_by_model.setdefault(evaluation.model, []).append(point)
    if not points_by_model:
        return None
    series = tuple(
        Series(
            model,
            [step for step, _ in evaluations],
            [value for _, value in evaluations],
            style="lines+markers",
        )
        for model, evaluations in points_by_model.items()
    )
    base = run.scores.get("unadapted")
    points = next(iter(points_by_model.values()))
    (first_step, first), (last_step, last) = points[0], points[-1]
    description = f"{first:.4g} after step {first_step:,}, {last:.4g} after step {last_step:,}"
    description += "." if base is None else f"; unadapted base {base[name]:.4g}."
    references = () if base is None else (HorizontalLine(base[name], "unadapted base"),)
    return LinePlot(
        key="score",
        title=f"Held-out {name}",
        description=description,
        x_axis=STEP_AXIS,
        y_axis=Axis(name),
        series=series,
        vertical_lines=make_event_lines(run),
        horizontal_lines=references,
    )
